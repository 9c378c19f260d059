"""Imports only point downward; what must answer at once never imports torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "moist"
LAYERS = [
    "errors config schema overrides report artifacts env",
    "recipe data public fingerprint images augment nets peers routers losses latent gates"
    " objects checkpoint",
    "objectives trials pareto frontier averages space",
    "merge topk mixture opinions models fit measure",
    "stages",
    "store plan cache runs",
    "pipeline predict bench static",
    "terminal printed",
    "figures",
    "track",
    "study",
    "agents",
    "bench_sweep bench_tracking no_pipeline",
    "cli",
    "__init__",
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
AT_ONCE = (
    "config errors report runs terminal printed overrides schema recipe cache objects"
    " objectives trials pareto frontier averages space cli.main cli.options cli.store"
    " cli.bench cli.sweep cli.study cli.run cli.table cli.upkeep cli.wandb study.listing"
    " study.table study.storage study.ledger study.policy study.commands"
).split()
READS_TEST = {"stages/evaluate.py", "stages/prepare.py", "data.py", "images.py", "cli/store.py"}


def imports(path: Path) -> set[str]:
    """The modules of moist that a file names in an import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in found]
    return {second for first, second, *_ in (p for p in parts if len(p) > 1) if first == "moist"}


GRAPH = {
    name: set.union(*map(imports, [*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/*.py")])) - {name}
    for name in LAYER
}


def test_every_module_has_a_layer_and_every_layer_its_modules():
    assert {path.stem for path in ROOT.glob("*.py")} | FOLDERS == set(LAYER)


def test_imports_point_downward_and_never_round():
    upward = [f"{a} -> {b}" for a in GRAPH for b in GRAPH[a] if LAYER[b] > LAYER[a]]
    assert upward == []
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


@pytest.mark.parametrize("heavy", ["torch", "sklearn", "pandas", "wandb"])
def test_what_answers_at_once_imports_nothing_heavy(heavy):
    assert not imports_too(", ".join(f"moist.{name}" for name in AT_ONCE), heavy)


def test_the_command_line_starts_without_optuna():
    assert not imports_too("moist.cli.main", "optuna")


def imports_too(modules: str, heavy: str) -> bool:
    """Whether importing these modules imports that one."""
    code = f"import sys, {modules}; sys.exit('{heavy}' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code]).returncode != 0
