"""What is written is true: sweep files, the README's commands, and a docstring for all."""

import ast
import re
import shlex

import click
import pytest
import yaml
from readme import README, ROOT, blocks, commands

from moist.cli.main import cli
from moist.config.overrides import parse
from moist.results.objectives import DEFAULT
from moist.study.spec import check_search
from moist.sweepfile import config_of, problems, read_sweep

SWEEPS = sorted((ROOT / "sweeps").glob("*"))
MODULES = sorted((ROOT / "moist").rglob("*.py"))
BLOCKS = "\n".join(block for language, block in blocks(README) if language != "python")
HELP = "\n".join(path.read_text() for path in ROOT.glob("moist/cli/*.py"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_a_sweep_file_can_be_searched_and_one_of_constants_be_run(path):
    assert problems(path) == []
    sweep = read_sweep(path)
    *start, last = yaml.safe_load(path.read_text())["command"]
    assert (start[:3], last) == (["${env}", "moist", "run"], "${args_no_hyphens}")
    recipes = ([], ["single"], ["short"], ["sound"], ["paper"], ["single", "teacher"])
    assert start[3:] in [[f"@sweeps/{name}.yaml" for name in names] for names in recipes]
    if sweep.parameters:
        check_search(sweep.name, sweep, [one.name for one in sweep.objectives or DEFAULT])
    else:
        assert parse([f"@{path}"]) == config_of(sweep, {})


def in_help() -> list[str]:
    """The examples in docstrings of commands, without the words on what they do."""
    examples = re.findall(r"\\b\n(.*?)(?:\n\n|\"\"\")", HELP, re.DOTALL)
    return [re.split(r"\s{3,}", c)[0] for c in commands("\n".join(examples))]


def check_understood(command: str) -> None:
    """Parse a command as the terminal would, and its overrides; execute nothing."""
    context, words = cli.make_context("moist", shlex.split(command)[1:]), None
    node: click.Command = cli
    while isinstance(node, click.Group):
        name, node, words = node.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = node.make_context(name, words, parent=context)
    overrides = context.params.get("overrides", ())
    files = [word for word in overrides if word.startswith("@sweeps/")]
    assert all((ROOT / file[1:]).exists() for file in files), command
    parse([f"@{ROOT / word[1:]}" if word in files else word for word in overrides
           if word in files or not word.startswith("@")])  # fmt: skip


def test_the_readme_shows_commands():
    assert len(commands(BLOCKS)) >= 5


def test_a_clone_is_checked_with_commands_of_the_readme():
    check = (ROOT / ".ci" / "run").read_text()
    assert commands(check) and {*commands(check)} <= {*commands(BLOCKS)}
    assert "\nuv run pytest --all" in check and "\nuv run pytest --all " in BLOCKS


@pytest.mark.parametrize("command", dict.fromkeys(commands(BLOCKS)))
def test_a_command_of_the_readme_is_understood(command):
    check_understood(command)


@pytest.mark.parametrize("command", dict.fromkeys(in_help()))
def test_an_example_of_the_help_is_understood(command):
    check_understood(command)


def test_the_readme_links_only_to_what_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    for code in re.findall(r"`((?:moist|sweeps|tests|analysis)/[\w/.]*)`", README):
        assert (ROOT / code).exists(), code


def public(tree: ast.AST) -> list[ast.AST]:
    """The module, and the classes, functions and methods that others may use."""
    found = [tree]
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            found += public(node) if isinstance(node, ast.ClassDef) else [node]
    return found


def obvious(node: ast.AST) -> bool:
    """A function of a few lines, whose name and signature say it all."""
    return isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno < 8


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_has_a_docstring(path):
    bare = [
        getattr(node, "name", path.name)
        for node in public(ast.parse(path.read_text()))
        if not ast.get_docstring(node) and not obvious(node)
    ]
    assert bare == []


def test_the_readme_has_its_figures_and_the_log_its_dated_entries():
    assert "@@" not in README
    assert re.search(r"^## \d{4}-\d\d-\d\d", (ROOT / "analysis" / "LOG.md").read_text(), re.M)
