"""Imports only point downward; what must answer at once never imports torch."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "moist"
FLOORS = (
    "errors interrupts disk config results env sweepfile store data nets tracking measure training"
    " stages systems pipeline serving study reporting bench agents api cli __init__ __main__"
).split()
"""Rooms, lowest first: each imports only from rooms that stand before it."""
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
ANSWERS_AT_ONCE = (
    "config config.overrides errors results results.report results.queries results.aggregate"
    " sweepfile disk store.runs store.comparison store.keys store.maintenance store.objects"
    " reporting.terminal"
    " reporting.run_tables reporting.study_tables study.storage study.ledger"
    " study.query api.compute api.runs api.sweeps"
).split()
COMMANDS = [name for name in FILES if name.startswith("cli.")]
READS_TEST = {
    "stages/evaluate.py", "stages/prepare.py", "data/sources.py", "data/decode.py",
    "serving/inspection.py",  # shows what a chosen model answers
    "measure/stage_times.py",  # counts its images
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """List the modules of moist that a file imports, wherever in the file the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n.removeprefix("moist.") in FILES else node.module for n in names}
    return {name.removeprefix("moist.") for name in found if name.startswith("moist.")}


GRAPH = {name: (imports(path) & FILES.keys()) - {name} for name, path in FILES.items()}


def floor(module: str) -> int:
    return FLOORS.index(module.partition(".")[0])


def test_every_room_has_a_floor():
    assert {name.partition(".")[0] for name in FILES} <= set(FLOORS)
    assert len(list(ROOT.glob("*.py"))) <= 7


def test_every_room_says_what_it_is_for():
    for init in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), init


def test_imports_point_downward():
    upward = [f"{a} -> {b}" for a in GRAPH for b in GRAPH[a] if floor(b) > floor(a)]
    assert upward == []


def test_no_imports_go_round_inside_a_room_either():
    list(TopologicalSorter(GRAPH).static_order())


def test_no_stage_imports_another():
    names = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    for path in (ROOT / "stages").glob("*.py"):
        assert not any(f"moist.stages.{name}" in path.read_text() for name in names), path


def test_only_evaluation_reads_the_test_split():
    for path in ROOT.rglob("*.py"):
        reads = [
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr == "test"
        ]
        assert not reads or str(path.relative_to(ROOT)) in READS_TEST, path


@pytest.fixture(scope="module")
def imported() -> list[list[str]]:
    """What is imported from outside, once a sweep can be read; the command line started; all."""
    steps = [["sweepfile"], COMMANDS, ANSWERS_AT_ONCE]
    code = IMPORT.format([[f"moist.{name}" for name in names] for names in steps])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return list(map(json.loads, done.stdout.splitlines()))


IMPORT = """
import importlib, json, sys
for modules in {}:
    for module in modules: importlib.import_module(module)
    print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("heavy", ["torch", "sklearn", "pandas", "wandb"])
def test_what_answers_at_once_imports_nothing_heavy(imported, heavy):
    assert heavy not in imported[-1]


def test_the_command_line_starts_without_optuna(imported):
    assert "optuna" not in imported[1]


def test_a_sweep_file_is_read_without_optuna(imported):
    assert "optuna" not in imported[0]
