"""Train and record one model; load the model of a recorded run. Imports torch only when called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.api.compute import Compute
from moist.config import Config, sections
from moist.config.overrides import build, given
from moist.config.unread import check_read
from moist.disk import expanded, home_of, store_url
from moist.errors import ConfigError
from moist.results.objectives import quantities, reported
from moist.results.report import Report
from moist.serving import SUFFIXES
from moist.store.keys import SHORT
from moist.store.runs import Run, RunRecords, command_for
from moist.study.query import Study, ref_of
from moist.study.reader import NoStudy
from moist.study.ref import StudyRef
from moist.study.storage import existing
from moist.tracking.client import agent_sweep, run_info

if TYPE_CHECKING:
    from moist.serving.predict import Model


@dataclass(frozen=True, repr=False)
class Result:
    """A run on record: its report in short and whole, and its model.

    `record` has the config by dotted names, the keys of all stages and the time of the run.
    """

    record: Run
    home: Path

    def __repr__(self) -> str:
        key = self.key[:SHORT]
        return f"<run {key}: accuracy {self.accuracy:.4f}, {self.mflops:.4g} MFLOPs>"

    @property
    def key(self) -> str:
        """Return the key by which `moist.load` and the commands find the run."""
        return self.record.key

    @property
    def accuracy(self) -> float:
        """Return the accuracy on the test split, a fraction in [0, 1]."""
        return self.report.accuracy

    @property
    def mflops(self) -> float:
        """Return the millions of flops of an image, a multiply-add counting as one."""
        return self.report.mflops

    @property
    def report(self) -> Report:
        """Return every number of the run, also of its teacher and its single student."""
        return self.record.report

    @property
    def command(self) -> str:
        """Return the command that repeats the run."""
        return self.record.command

    def model(self, device: str | None = None) -> Model:
        """Load the trained model, as `moist.load` does."""
        return load(self.key, home=self.home, device=device)


def run(
    *overrides: str,
    home: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
    wandb: str = "auto",
    **keys: Any,
) -> Result:
    """Train, measure and record one model, exactly as the command `moist run` does.

    Config keys are given as keywords (`k=2`, `student={"arch": "residual"}` or
    `**{"student.arch": "residual"}`), or as the command's words (`"k=2"`, `"@sweeps/short.yaml"`);
    keywords win. Stages whose outputs are stored are reused, and `moist show` finds the run.
    MOIST_STORE is the URL of a store to share outputs with other machines.

    Args:
        home: folder of models and records; default: MOIST_HOME, else ~/.moist.
        device: cpu, cuda, cuda:1, ...; default: cuda if available.
        threads: number of CPU threads, from now on in this process.
        quiet: print warnings only.
        wandb: auto, online, offline or off.

    Raises ConfigError for an unknown key, a bad value, a conflict or a key without effect,
    DataError for images that can't be read, StageError for a stage that can't finish, and
    StoreError for a home that can't be written: all are MoistErrors.
    """
    config = checked(overrides, _flat(keys))
    compute = Compute(home_of(home), device, threads, quiet, store_url(None))
    return Result(record(config, compute, wandb), compute.home)


def load(
    model: str | Path,
    *,
    home: str | Path | None = None,
    storage: str | None = None,
    device: str | None = None,
) -> Model:
    """Load a model: of a recorded run, the best of a study, or an exported file.

    `moist.load(KEY)(images)` gives logits, `.predict(images)` classes, probabilities and experts.

    Args:
        model: a study's name, a run's key, a unique prefix of one or `last`, or an exported file,
            `FILE.onnx` or `FILE.pt2` (which torch reads with pickle: load only what you trust).
        home: folder of models and records; default: MOIST_HOME, else ~/.moist.
        storage: database of studies; default: MOIST_STORAGE, else HOME/studies.db.
        device: cpu, cuda, cuda:1, ...; default: cuda if available. Files run on the CPU.

    Raises ConfigError for what is neither, StoreError for a model that is no longer stored.
    """
    if Path(model).suffix in SUFFIXES.values():
        from moist.serving.exported import ExportedModel

        return ExportedModel(expanded(Path(model)))
    from moist.serving.predict import TorchModel

    compute = Compute(home_of(home), device, quiet=True)
    run = run_of(ref_of(str(model), compute.home, storage))
    with compute.plan() as store:
        return TorchModel(store, run)


def study_or_run(ref: StudyRef) -> StudyRef | Run:
    """Return the study, or if there is none of this name, the run whose key begins with it.

    Raises ConfigError if there is neither.
    """
    try:
        existing(ref)
        return ref
    except NoStudy as no_study:
        try:
            return RunRecords(ref.home).find(ref.name)
        except ConfigError as no_run:
            raise ConfigError(
                f"`{ref.name}` is neither a study nor a run: {no_study.args[0]}; {no_run.args[0]}",
                no_study.hint or no_run.hint,
            ) from None


def run_of(ref: StudyRef) -> Run:
    """Return a run by its key, or of a study the best trial's. Raises ConfigError."""
    one = study_or_run(ref)
    if not isinstance(one, StudyRef):
        return one
    return RunRecords(ref.home).find(Study(one).best().key or "")


def record(
    config: Config, compute: Compute, wandb: str, show: Callable[[Run], object] = lambda run: None
) -> Run:
    """Train and measure what a config describes, log it to W&B, and record it.

    `show` is called with the record before the last upload is waited for.
    """
    from moist.data.sources import locate
    from moist.pipeline import run as run_pipeline
    from moist.store.store import Store
    from moist.systems.checks import check
    from moist.tracking.journal import summary_of
    from moist.tracking.progress import WandbProgress
    from moist.tracking.tracker import open_tracker

    home, command = compute.home, command_for(config)
    source = locate(config.data, home)
    check(config, source)  # before anything is tracked
    remote = compute.remote()
    with compute.progress() as progress:
        env = compute.env(progress)
        for warning in (env.crowding(), env.emulation(config.precision)):
            if warning:
                progress.noted(warning)
        with (
            open_tracker(wandb, home, progress.noted, progress.warned) as tracked,
            tracked.open(run_info(config, home, command), config) as journal,
        ):
            tracking = replace(env, progress=WandbProgress(progress, journal))
            store = Store(home, tracking, remote=remote)
            report = run_pipeline(config, store, source)
            recorded = RunRecords(home).save(
                command=command,
                config=config,
                report=report,
                artifacts=store.keys(),
                computed=store.computed(),
            )
            facts = {"key": report.key, "command": command, "seconds": report.seconds}
            journal.end("complete", summary_of(quantities(report), reported(report), **facts))
            show(recorded)
            return recorded


def checked(overrides: Sequence[str], keywords: Mapping[str, Any] | None = None) -> Config:
    """Build a run's config. Raises ConfigError also for a key that has no effect."""
    keywords = keywords or {}
    config = build({**given(overrides), **keywords})
    if not agent_sweep():  # an agent sets every parameter, also those that its others leave unread
        check_read(overrides, keywords)
    return config


def _flat(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted name, those of a section given as a dict too."""
    found: dict[str, Any] = {}
    for name, value in keys.items():
        whole = name in sections() and isinstance(value, Mapping)
        found |= {f"{name}.{leaf}": one for leaf, one in value.items()} if whole else {name: value}
    return found
