"""The experiments behind the tables and figures: what is done, and the command that continues.

    uv run python -m analysis.experiments                     list them: runs done, hours left
    uv run python -m analysis.experiments run --data IMAGES   train what is missing, in order
    uv run python -m analysis.experiments run --data IMAGES students --jobs 2 --threads 1
    uv run python -m analysis.experiments repeat students student.arch=residual_7mf seed=0 \\
        --data IMAGES                                         train one again, compare with its row

IMAGES is a folder with CIFAR-10's images, `IMAGES/{train,test}/<class>/*`. An experiment is a
sweep file, of which every point is trained under several seeds, from a teacher that is trained
first if `analysis/weights` lacks it. Each run that ends becomes a row of
`analysis/results/NAME.csv` at once, and only runs without a row are trained: the command may be
stopped at any time, and continued on another machine from a checkout alone. On the same machine a
run that was stopped continues after its last epoch.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from analysis.rows import Rows, beside, packed
from analysis.rows import settings as by_setting
from moist.cli.options import HOME, PATH
from moist.config import Config, flat
from moist.config.schema import is_location
from moist.disk import write_atomically
from moist.errors import MoistError, StageError
from moist.reporting import terminal
from moist.store.runs import Run, RunRecords, command_for, commit
from moist.sweepfile import config_of, grid, read_sweep

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "analysis" / "weights"
RESULTS = ROOT / "analysis" / "results"
ORIGIN = ["point", "key", "created", "commit"]
COUNT = click.IntRange(1)
PER_CLASS = {"sent", "per_class_accuracy", "silhouette"}


@dataclass(frozen=True)
class Teacher:
    """A teacher that is trained once, by a recipe, for experiments that distill its weights.

    The weights are kept in analysis/weights if they are `committed`, else in the home.
    """

    arch: str
    recipe: tuple[str, ...]
    committed: bool = True


ALL = ("data.val_fraction=0",)
"""As the paper: all training images are trained on. Nothing is selected from these runs."""
FASTNET = Teacher("fastnet", ("@sweeps/teacher.yaml",))
RESNET18 = Teacher("resnet18", ("@sweeps/paper.yaml", *ALL), committed=False)


@dataclass(frozen=True)
class Experiment:
    """A sweep file of which every point is trained under each seed.

    `hours` is its expected time on two idle cores with bf16 instructions. `settings` are overrides
    of the file. `control` is the setting that the others are compared with, if one is.
    """

    name: str
    hours: float
    sweep: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    teacher: Teacher = FASTNET
    control: str = ""
    results: Path = RESULTS

    @property
    def table(self) -> Path:
        return self.results / f"{self.name}.csv"

    def configs(self) -> dict[str, Config]:
        """Return the config of each run by its point: the searched values and the seed."""
        settings = ["data.name=folder", *self.settings, f"teacher.arch={self.teacher.arch}"]
        sweep = read_sweep(ROOT / "sweeps" / f"{self.sweep}.yaml", settings)
        found = {}
        for seed in self.seeds:
            for chosen in grid(sweep):
                config = config_of(sweep, {**chosen, "seed": seed})
                words = (f"{name}={flat(config)[name]}" for name in (*chosen, "seed"))
                found[shlex.join(words)] = config
        return found

    def done(self) -> list[dict[str, str]]:
        """Return the rows of the runs that ended, as written."""
        return read(self.table)

    def missing(self) -> dict[str, Config]:
        """Return the configs of the runs that have no row, by point."""
        points = {row["point"] for row in self.done()}
        return {point: one for point, one in self.configs().items() if point not in points}

    def committed(self, words: Iterable[str]) -> tuple[Rows, Config]:
        """Return the rows of a setting and the config of one of its points, named by its words.

        Raises UsageError, which lists the points that have rows.
        """
        configs, rows = self.configs(), self.done()
        for row in rows:
            if set(shlex.split(row["point"])) == set(words):
                [runs] = [one for one in by_setting(rows).values() if row in one.values()]
                return [*runs.values()], configs[row["point"]]
        points = "\n  ".join(row["point"] for row in rows) or "none yet"
        asked = shlex.join(words) or "nothing"
        raise click.UsageError(
            f"asked for {asked}; the runs of `{self.name}` that have rows are:\n  {points}"
        )

    def add(self, point: str, run: Run, right: str) -> None:
        """Write a run's row: where it comes from, the values that are no defaults, its report.

        Values per class are JSON texts, as `sent`: the test images of each class by student.
        `right` has a bit for each test image, so that runs can be compared image by image.
        """
        defaults = flat(Config())
        changed = {
            name: value
            for name, value in run.config.items()
            if value != defaults[name] and not is_location(name)
        }
        report = run.report.model_dump(mode="json", exclude={"key"})
        origin = dict(zip(ORIGIN, [point, run.key, run.created, commit()], strict=True))
        append(self.table, {**origin, **changed, **dict(_leaves(report)), "right": right})


LONG = (
    "distill.epochs=60",
    "distill.views=16",
    "distill.batch_size=256",
    "distill.lr=0.004",
    "augment.shift=2",
    "temperature=2",
)
"""The recipe of the frontier's students: many epochs on many views; the rest as in single.yaml."""
MIXED = (*LONG, "joint.epochs=20")
DOUBT = (*LONG, "specialists.epochs=20")
PLAIN = ("student.arch=residual_2mf", "cascade.fallback=residual_26mf", "cascade.defer=0.16")
FIFTY = tuple(f"{stage}.epochs=50" for stage in ("distill", "routing", "joint"))


def papers(
    name: str, hours: float, sweep: str, *settings: str, seeds: tuple[int, ...] = (0,)
) -> Experiment:
    """Return an experiment of the paper, by its recipe and from its teacher."""
    return Experiment(name, hours, sweep, (*ALL, *settings), seeds, RESNET18)


PLAN = (
    Experiment("students", 4.4, "residual", LONG),
    Experiment("specialists", 3.5, "specialists", DOUBT, control="k=1"),
    Experiment("late_half", 2.5, "late_half", MIXED, control="k=1"),
    Experiment("peers", 6.0, "peers", LONG, seeds=(0,)),
    Experiment(
        "specialists_shuffled", 0.5, "specialists", (*DOUBT, "k=3", "cluster.method=random"), (0,)
    ),
    Experiment("plain_cascade", 0.1, "cascade", (*LONG, *PLAIN), (0,)),
    Experiment("late_half_shuffled", 0.5, "late_half", (*MIXED, "k=4", "cluster.method=random")),
    Experiment("late_half_oracle", 0.5, "late_half", (*MIXED, "k=4", "router=oracle"), (0,)),
    Experiment("merged", 1.0, "ones", (*MIXED, "student.batch_norm=true"), (0,)),
    Experiment("moe_kd", 0.6, "moe_kd", LONG, (0,)),
    papers("paper_table", 4.5, "paper_table", seeds=(0, 1, 2)),
    papers("paper_oracle", 1.5, "paper_table", "router=oracle", seeds=(0, 1, 2)),
    papers("paper_k", 3.0, "paper_k"),
    papers("paper_width", 4.0, "paper_width"),
    papers("paper_router", 2.0, "paper_router"),
    papers("paper_longer", 3.0, "paper_table", *FIFTY),
)
"""In the order of training; hours are estimates from milliseconds an image."""


def read(table: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as texts, none if there is no file."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def append(table: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file, which gets a column for each of its names."""
    write(table, [*read(table), row])


def write(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV file with a column for each of their names."""
    text = io.StringIO(newline="")
    heads = dict.fromkeys(name for one in rows for name in one)
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(table, text.getvalue().encode())


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a report's values by dotted name, the lists and those per class as JSON texts."""
    for name, value in tree.items():
        if isinstance(value, dict) and name not in PER_CLASS:
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, json.dumps(value) if isinstance(value, dict | list) else value


@dataclass(frozen=True)
class Trainer:
    """Trains what is missing in processes of their own: `jobs` runs at a time."""

    data: Path
    home: Path
    jobs: int = 1
    threads: int = 2
    precision: str = "bf16"
    weights: Path = WEIGHTS
    running: list[subprocess.Popen[str]] = field(default_factory=list, compare=False)

    def teach(self, teacher: Teacher) -> Path:
        """Return the weights of a teacher, which is trained first if they are not there."""
        folder = self.weights if teacher.committed else self.home / "weights"
        path = folder / f"{teacher.arch}.safetensors"
        if not path.exists():
            arch = f"teacher.arch={teacher.arch}"
            words = [*teacher.recipe, "data.name=folder", arch, *self._where()]
            options = [f"--home={self.home}", f"--threads={self.threads}", "-o", str(path)]
            self._call(["analysis.teacher", *words, *options], stdout=None)
        return path

    def train(self, experiments: Iterable[Experiment]) -> None:
        """Train the missing runs and write the row of each.

        When one fails, those that are running end first; a signal ends them all. Raises
        StageError.
        """
        missing = [(one, *item) for one in experiments for item in one.missing().items()]
        weights = {
            teacher: self.teach(teacher) for teacher in {one.teacher for one, *_ in missing}
        }
        with ThreadPoolExecutor(self.jobs) as pool:
            started = {
                pool.submit(self.run, config, weights[one.teacher]): (one, point)
                for one, point, config in missing
            }
            try:
                for future in as_completed(started):
                    (one, point), run = started[future], future.result()
                    one.add(point, run, self.right(run))
                    score = f"{100 * run.report.accuracy:.2f} % of the test images"
                    click.echo(f"{one.name}: {point}: {score}", err=True)
            except StageError:
                pool.shutdown(cancel_futures=True)
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in [*self.running]:
                    process.terminate()
                raise

    def run(self, config: Config, weights: Path) -> Run:
        """Train a run in a process of its own, unless the home has it; return its record."""
        words = [*shlex.split(command_for(config))[2:], *self._where()]
        words.append(f"teacher.weights={weights}")
        options = ["--json", "--wandb=off", f"--home={self.home}", f"--threads={self.threads}"]
        output = self._call(["moist", "run", *words, *options], stdout=subprocess.PIPE)
        return RunRecords(self.home).find(json.loads(output)["key"])

    def right(self, run: Run) -> str:
        """Classify the test images once more; return which the run's model classifies right."""
        from moist.env import Silent, make_env
        from moist.serving import inspection
        from moist.store.store import Store

        store = Store(self.home, make_env(Silent(), None, self.threads))
        return packed(inspection.right(store, run).numpy())

    def _where(self) -> list[str]:
        return [f"data.root={self.data}", f"precision={self.precision}"]

    def _call(self, words: Sequence[str], stdout: int | None) -> str:
        command = [sys.executable, "-m", *words]
        with subprocess.Popen(command, stdout=stdout, text=True, cwd=ROOT) as process:
            self.running.append(process)
            try:
                output, _ = process.communicate()
            except BaseException:
                process.terminate()
                raise
        self.running.remove(process)
        if process.returncode:
            raise StageError(f"`{shlex.join(command)}` ended with exit code {process.returncode}")
        return output or ""


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """List the experiments behind the tables and figures, or train what is missing.

    \b
    python -m analysis.experiments
    python -m analysis.experiments run --data IMAGES
    """
    if context.invoked_subcommand is None:
        rows = []
        for one in PLAN:
            runs, missing = len(one.configs()), len(one.missing())
            hours = f"{one.hours * missing / runs:.1f}" if missing else ""
            rows.append([one.name, f"{runs - missing} of {runs}", hours])
        terminal.print_table("", ["experiment", "runs", "hours left"], rows)


def where(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that trains: where, on how many threads, how precisely."""
    for option in (
        click.option("--data", required=True, type=PATH, help="Folder of CIFAR-10's images."),
        click.option("--threads", default=2, show_default=True, type=COUNT, help="Of each run."),
        click.option(
            "--precision",
            default="bf16",
            show_default=True,
            type=click.Choice(["bf16", "float32"]),
            help="float32 is faster on a processor without bf16 instructions.",
        ),
        HOME,
    ):
        command = option(command)
    return command


def named(name: str) -> Experiment:
    """Return an experiment of the plan. Raises UsageError, which lists them."""
    for one in PLAN:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in PLAN)
    raise click.UsageError(f"no experiment `{name}`; there are: {known}")


@cli.command()
@click.argument("names", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--jobs", default=1, show_default=True, type=COUNT, help="Runs at once.")
@where
def run(names: tuple[str, ...], data: Path, **options: Any) -> None:
    """Train the runs that have no row yet: all, or those of the named experiments."""
    plan = [named(name) for name in names] or PLAN
    Trainer(data.resolve(), **options).train(plan)


@cli.command()
@click.argument("name", metavar="EXPERIMENT")
@click.argument("words", nargs=-1, metavar="KEY=VALUE...")
@where
def repeat(name: str, words: tuple[str, ...], data: Path, **options: Any) -> None:
    """Train a run that has a row again, and compare it with the committed runs of its setting.

    \b
    python -m analysis.experiments repeat students student.arch=residual_7mf seed=0 --data IMAGES

    Exits with 1 if the test accuracies differ by more than three standard deviations. A home that
    has the run answers from its record: to train it again, name an empty one.
    """
    experiment = named(name)
    committed, config = experiment.committed(words)
    trainer = Trainer(data.resolve(), **options)
    found = trainer.run(config, trainer.teach(experiment.teacher)).report.accuracy
    text, close = beside(found, committed)
    click.echo(text)
    if not close:
        sys.exit(1)


def main() -> None:
    """Run the command line; a signal of a batch system ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        cli.main(prog_name="python -m analysis.experiments")
    except MoistError as error:
        terminal.fail(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
