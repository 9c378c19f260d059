"""One run as W&B shows it: a row an epoch, the stages, and how it ended.

    train_jointly/loss, /lr, /images_per_second, /val_accuracy   a row an epoch, by /epoch
    objective/accuracy, objective/mflops, ...                    what is chosen by
    test/accuracy, ...                                           what is only reported
    limit/mflops, ...                                            how far beyond a study's limit
    stages/train_teacher = computed | reused                     and stages/train_teacher/seconds
    trial/state = COMPLETE | PRUNED | FAIL | KILLED              and trial/key, trial/reason, ...

The step of a row is the epochs of all stages before it and its own, whether those were computed
or reused: a run that is killed and continued gives its rows the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.errors import brief
from moist.results.objectives import PREFIX, TEST, TRAINED_BY
from moist.tracking.files import marked_open

if TYPE_CHECKING:
    import wandb

TRIAL, LIMIT = "trial/", "limit/"

OFFLINE = "-offline"
"""After the id of a run that its server refused while others were open."""
STUDY = "study"
"""The job type of the run that tells of a study as a whole."""

ENDS = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "killed": "KILLED"}
NOTHING: Mapping[str, Any] = MappingProxyType({})
EXITS = {"complete": 0, "pruned": 0, "failed": 1, "killed": 130}


def epochs_of(config: Config) -> dict[str, int]:
    """The epochs of each stage that trains, in order."""
    c = config
    found = {"train_teacher": c.teacher.epochs, "distill_student": c.distill.epochs}
    if c.system in {"moist", "ones"}:
        found |= {"pretrain_router": c.routing.epochs, "train_jointly": c.joint.epochs}
    if c.system == "ones":
        found |= {"integrate": c.merge.epochs}
    if c.system == "ensemble":
        found |= {"distill_ensemble": c.distill.epochs}
    if c.cascade.fallback not in {"none", "teacher"}:
        found |= {"distill_fallback": c.distill.epochs}
    return found


def offsets(config: Config) -> dict[str, int]:
    """The step before the first epoch of each stage that trains."""
    epochs = epochs_of(config)
    before = accumulate(epochs.values(), initial=0)
    return dict(zip(epochs, before, strict=False))


class Journal:
    """What is told of one run. Nothing here waits: `do` has it written behind."""

    def __init__(
        self,
        do: Callable[[Callable[[], Any]], None],
        opened: Callable[[], wandb.Run],
        config: Config | None,
    ) -> None:
        self._do, self._opened = do, opened
        self._before = offsets(config) if config else {}
        self._last = TRAINED_BY[config.system] if config else None
        self._run: wandb.Run | None = None
        self._took: dict[str, tuple[bool, float]] = {}
        self.ended = False
        self.open = False
        """Whether wandb has it open; known behind only."""
        self._mark = ExitStack()
        do(self._open)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """A run that fails says why; one that is broken off was killed, if not by its agent."""
        if isinstance(error, SystemExit) and not error.code:
            self.end("pruned", {f"{TRIAL}reason": "stopped by its agent"})
        elif isinstance(error, Exception):
            self.end("failed", {f"{TRIAL}reason": brief(error)})
        elif error is not None:
            self.end("killed")

    def _open(self) -> None:
        self._run = self._opened()
        self.open = True
        # `moist sync` leaves it until it has ended
        self._mark.enter_context(marked_open(Path(self._run.dir).parent))
        for stage in self._before:
            self._run.define_metric(f"{stage}/epoch", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")

    def epoch(self, stage: str, done: int, metrics: Mapping[str, float]) -> None:
        """A row of scalars, after an epoch of a stage that trains."""
        if stage not in self._before:
            return
        row = {f"{stage}/{name}": value for name, value in metrics.items()}
        row[f"{stage}/epoch"] = done
        if stage == self._last and "val_accuracy" in metrics:
            row[f"{PREFIX}accuracy"] = metrics["val_accuracy"]
        step = self._before[stage] + done
        self._do(lambda: self._run and self._run.log(row, step=step, commit=True))

    def stage(self, stage: str, seconds: float, reused: bool) -> None:
        """What a stage took, or would have taken had it not been stored; of one that is called
        several times, all together."""
        every, before = self._took.get(stage, (True, 0.0))
        every, took = every and reused, before + seconds
        self._took[stage] = every, took
        state = "reused" if every else "computed"
        self.note({f"stages/{stage}": state, f"stages/{stage}/seconds": took})

    def note(self, values: Mapping[str, Any]) -> None:
        """Values of the run as a whole."""
        self._do(lambda: self._run and self._run.summary.update(dict(values)))

    def show(self, work: Callable[[wandb.Run], None]) -> None:
        """Have something logged that is no scalar: tables, figures, artifacts."""
        self._do(lambda: work(self._run) if self._run else None)

    def end(self, state: str, values: Mapping[str, Any] = NOTHING) -> None:
        """How it ended (see ENDS), and what was `found`; a run ends once."""
        if self.ended:
            return
        self.ended = True
        self.note({f"{TRIAL}state": ENDS[state], f"{TRIAL}reason": None, **values})
        self._do(lambda: self._close(EXITS[state]))

    def _close(self, exit_code: int) -> None:
        if self._run:
            self._run.finish(exit_code=exit_code)
            self.open = False
        self._mark.close()


def found(
    quantities: Mapping[str, float], reported: Mapping[str, float], **facts: Any
) -> dict[str, Any]:
    """What a run found, as summary values; facts that are None are left out."""
    return {
        **{f"{PREFIX}{name}": value for name, value in quantities.items()},
        **{f"{TEST}{name}": value for name, value in reported.items()},
        **{f"{TRIAL}{name}": value for name, value in facts.items() if value is not None},
    }
