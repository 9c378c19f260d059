"""How long commands take to start: those that only read, and until the first epoch is trained."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from moist.bench.rows import Row, row
from moist.disk import write_atomically
from moist.errors import StageError

BASELINE = "import torch"
RUN = ["run", "@tiny", "precision=float32", "latency.seconds=0.01", "--wandb", "off", "--quiet"]
SWEEP = """
method: grid
command: [moist, run, "@tiny", "${args_no_hyphens}"]
parameters:
  precision: {value: float32}
  latency.seconds: {value: 0.01}
  hidden_width: {values: [4, 8, 16, 32]}
"""
READING = {
    "--version": ["--version"],
    "--help": ["--help"],
    "runs": ["runs"],
    "show": ["show", "last"],
    "best": ["best", "bench"],
    "pareto": ["pareto", "bench"],
    "sweep status": ["sweep", "status", "bench"],
    "studies": ["studies"],
    "plan": ["plan", *RUN[1:4], "temperature=2"],
    "run, nothing to do": RUN,
}
"""Commands, and the words of each."""

Seconds = Callable[[], float]


def start(*, rounds: int) -> list[Row]:
    """Time commands in a home with a run and a study, beside a Python that imports torch.

    A run and a sweep with two workers are timed until the first epoch of a small teacher, or of a
    student whose teacher is stored, is on disk.
    """
    with tempfile.TemporaryDirectory(prefix="moist-bench-") as folder:
        home, file = Path(folder) / "home", Path(folder) / "bench.yaml"
        write_atomically(file, SWEEP.encode())
        sweep = ["sweep", "optuna", str(file), "--wandb", "off", "--quiet", "--home", str(home)]
        located = {name: [*words, "--home", str(home)] for name, words in READING.items()}
        located |= {name: READING[name] for name in ("--version", "--help")}
        for words in ([*sweep, "--trials", "2"], located["run, nothing to do"]):
            whole(words)
        found: dict[str, Seconds] = {
            f"moist {name}": lambda words=words: whole(words)  # type: ignore[misc]
            for name, words in located.items()
        }
        run = [*RUN, "--home", str(home)]
        numbers = iter(range(1, 1_000_000))
        found["moist run, first epoch"] = lambda: first_epoch(
            [*run, f"seed={next(numbers)}"], home
        )
        found["moist run, first epoch, teacher stored"] = lambda: first_epoch(
            [*run, f"distill.alpha={0.5 + next(numbers) / 1e4}"], home
        )
        found["moist sweep, 2 workers, first epoch"] = lambda: first_epoch(
            [*sweep, "--workers", "2", f"seed={(n := next(numbers))}", "--study", f"s{n}"], home
        )
        return timed(found, rounds=rounds)


def timed(commands: Mapping[str, Seconds], *, rounds: int) -> list[Row]:
    """Time each in turn, round by round, with an import of torch before each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, seconds in commands.items():
            baseline = whole([], [sys.executable, "-c", BASELINE])
            found[name].append((1e3 * seconds(), 1e3 * baseline))
    return [
        row("start", name, BASELINE, *zip(*pairs, strict=True)) for name, pairs in found.items()
    ]


def whole(words: list[str], program: list[str] | None = None) -> float:
    """Return the seconds of a command, or another program. Raises StageError if it fails."""
    begin = time.perf_counter()
    command = [*(program or [sys.executable, "-m", "moist"]), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"`{' '.join(command[1:])}` failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - begin


def first_epoch(words: list[str], home: Path) -> float:
    """Return the seconds until a command has trained an epoch; it is killed then.

    Raises StageError if it ends before.
    """
    old = set((home / "partial").glob("*"))
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "moist", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while not _trained(home, old):
                if process.poll() is not None:
                    said = process.stderr.read().decode() if process.stderr else ""
                    raise StageError(f"`moist {' '.join(words)}` trained nothing: {said[-500:]}")
                time.sleep(0.005)
            return time.perf_counter() - begin
        finally:
            process.kill()


def _trained(home: Path, old: set[Path]) -> bool:
    """Return whether a stage that is not among the `old` ones has stored an epoch."""
    new = set((home / "partial").glob("*")) - old
    return any(any(folder.glob("step-*.safetensors")) for folder in new)
