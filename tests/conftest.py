"""Two tiers, parallel by default, and fixtures that several test files share.

`pytest` runs the tests that everybody runs, `pytest --all` those marked `slow` too. No setting of
the machine's user reaches a test, and runs are not logged unless a test wants it.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before anything imports torch: two processes with two threads each on two cores wait for one
# another most of the time.
os.environ["OMP_NUM_THREADS"] = "1"
for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_API_KEY"]:
    del os.environ[name]
os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)  # which tells that `uv run` has started moist

import forked  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from shell import of_nobody  # noqa: E402
from tiny import STUDY, TINY  # noqa: E402
from wandb_standin import Server, checked  # noqa: E402

# Studies that are driven in this process have their workers forked there, too.
util.spawnv_passfds = forked.forks_for  # type: ignore[attr-defined]
# Workers inherit it; a path of a socket is short.
os.environ.setdefault(forked.SERVER, f"{tempfile.gettempdir()}/moist-tests-{os.getpid()}")

FEW_FILES = 3
"""So many files are run by the process that was started: workers import everything again."""
MOST_WORKERS = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked `slow` too")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads these options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run more than a few files on all cores, unless `-n`, `--dist` or `--pdb` was given."""
    options = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    paths = {Path(arg.partition("::")[0]) for arg in config.args}
    few = len(paths) <= FEW_FILES and not any(path.is_dir() for path in paths)
    if options.numprocesses is None and not (options.tx or options.usepdb or few):
        options.numprocesses = "logical"
        options.maxprocesses = options.maxprocesses or MOST_WORKERS
    if options.dist == "no":
        options.dist = "worksteal"  # neighbours, which share fixtures, stay together


def pytest_configure(config: pytest.Config) -> None:
    # A busy machine is no defect: no test fails by the clock. Fewer examples are the same for all,
    # so that a test which fails does so because of a change; all of them are drawn anew each time.
    fewer = {} if config.getoption("--all") else {"max_examples": 25, "derandomize": True}
    slow = [HealthCheck.too_slow]
    settings.register_profile("moist", deadline=None, suppress_health_check=slow, **fewer)
    settings.load_profile("moist")
    if config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ClosingLine())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is slow, unless everything or a test by its name is requested."""
    if config.getoption("--all") or all("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)


def pytest_deselected(items: list[Any]) -> None:
    """Count them, in a worker, for the closing line."""
    config = getattr(items[0], "config", None) if items else None
    if hasattr(config, "workeroutput"):
        config.workeroutput["deselected"] = config.workeroutput.get("deselected", 0) + len(items)


class ClosingLine:
    """Counts what was deselected where the workers are started and nothing is collected."""

    counted = False

    def pytest_testnodedown(self, node: Any) -> None:
        if not self.counted:  # every worker deselects the same tests
            self.counted = True
            count = getattr(node, "workeroutput", {}).get("deselected", 0)
            node.config.hook.pytest_deselected(items=[SimpleNamespace()] * count)


@pytest.fixture(autouse=True)
def _threads_of_others() -> Iterator[None]:
    """Take back a number of threads that a test set: results differ by it in their last bits."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_home_of_a_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MOIST_HOME"] = str(tmp_path_factory.mktemp("moist"))


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user without an account, trained once for all workers; only to be read.

    The home folder `moist` in it has a run of `TINY` and the finished study `four`.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            train(folder.with_name("training"))
            folder.with_name("training").rename(folder)
    return folder


def train(folder: Path) -> None:
    (folder / "files").mkdir(parents=True)
    file = folder / "files" / "four.yaml"
    file.write_text(STUDY)
    for words in (["run", *TINY], ["sweep", "optuna", file, "--workers", "2"]):
        done = forked.moist(*words, "--threads", 1, "--quiet", env=of_nobody(folder))
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def trained(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Copies of the home folder that was trained once, each with a run and a study of four."""

    def copy() -> Path:
        home = tmp_path_factory.mktemp("copy") / "home"
        return Path(shutil.copytree(trained_once / "moist", home, symlinks=True))

    return copy


@pytest.fixture
def wandb_server() -> Iterator[Server]:
    """A stand-in for the W&B server; whatever goes against its API fails the test."""
    with checked() as server:
        yield server
