"""The log of one run in W&B: a row per epoch, the outcome of each stage, and the end state.

    train_jointly/loss, /lr, /images_per_second, /val_accuracy   a row per epoch, by /epoch
    objective/accuracy, objective/mflops, ...                    used for selection
    test/accuracy, ...                                           only reported
    limit/mflops, ...                                            excess over a study's limit
    stages/train_teacher = computed | reused                     and stages/train_teacher/seconds
    trial/state = COMPLETE | PRUNED | FAIL | KILLED              and trial/key, trial/reason, ...

The step of a row is the number of epochs so far, of all stages, whether those were computed or
reused: a run that is killed and continued gives its rows the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.config.systems import SYSTEMS, epochs_of
from moist.errors import brief
from moist.results.objectives import PREFIX, TEST
from moist.tracking.client import is_stopped_by_agent
from moist.tracking.files import marked_open

if TYPE_CHECKING:
    import wandb

TRIAL, LIMIT = "trial/", "limit/"

OFFLINE = "-offline"
"""Suffix of the id of a run that the server rejected while others were open."""
STUDY = "study"
"""Job type of the run of a study as a whole."""

ENDS = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "killed": "KILLED"}
NOTHING: Mapping[str, Any] = MappingProxyType({})
EXITS = {"complete": 0, "pruned": 0, "failed": 1, "killed": 130}


def offsets(config: Config) -> dict[str, int]:
    """Return the step before the first epoch of each stage that trains."""
    epochs = epochs_of(config)
    before = accumulate(epochs.values(), initial=0)
    return dict(zip(epochs, before, strict=False))


class Journal:
    """The log of one run. No method waits: `submit` runs callables on a background thread."""

    def __init__(
        self,
        submit: Callable[[Callable[[], Any]], None],
        open_run: Callable[[], wandb.Run],
        config: Config | None,
    ) -> None:
        self._submit, self._open_run = submit, open_run
        self._before = offsets(config) if config else {}
        self._last = SYSTEMS[config.system].model_stage if config else None
        self._run: wandb.Run | None = None
        self._stages: dict[str, tuple[bool, float]] = {}
        self.ended = False
        self.open = False
        """Whether wandb has it open; only the background thread knows."""
        self._mark = ExitStack()
        submit(self._open)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the run as failed, with the error; as pruned by its agent; or as killed."""
        if is_stopped_by_agent(error):
            self.end("pruned", {f"{TRIAL}reason": "stopped by its agent"})
        elif isinstance(error, Exception):
            self.end("failed", {f"{TRIAL}reason": brief(error)})
        elif error is not None:
            self.end("killed")

    def _open(self) -> None:
        self._run = self._open_run()
        self.open = True
        # `moist sync` leaves it until it has ended
        self._mark.enter_context(marked_open(Path(self._run.dir).parent))
        for stage in self._before:
            self._run.define_metric(f"{stage}/epoch", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")

    def log_epoch(self, stage: str, done: int, metrics: Mapping[str, float]) -> None:
        """Log a row of scalars after an epoch; stages that do not train have none."""
        if stage not in self._before:
            return
        row = {f"{stage}/{name}": value for name, value in metrics.items()}
        row[f"{stage}/epoch"] = done
        if stage == self._last and "val_accuracy" in metrics:
            row[f"{PREFIX}accuracy"] = metrics["val_accuracy"]
        step = self._before[stage] + done
        self._submit(lambda: self._run and self._run.log(row, step=step, commit=True))

    def log_stage(self, stage: str, seconds: float, reused: bool) -> None:
        """Log a stage and its seconds, as recorded if it was reused.

        The seconds of a stage that is called several times are summed.
        """
        all_reused, before = self._stages.get(stage, (True, 0.0))
        all_reused, total = all_reused and reused, before + seconds
        self._stages[stage] = all_reused, total
        state = "reused" if all_reused else "computed"
        self.update_summary({f"stages/{stage}": state, f"stages/{stage}/seconds": total})

    def update_summary(self, values: Mapping[str, Any]) -> None:
        """Set values of the run as a whole."""
        self._submit(lambda: self._run and self._run.summary.update(dict(values)))

    def submit(self, work: Callable[[wandb.Run], None]) -> None:
        """Log what is not a scalar: tables, figures, artifacts."""
        self._submit(lambda: work(self._run) if self._run else None)

    def end(self, state: str, values: Mapping[str, Any] = NOTHING) -> None:
        """Log the end state (see ENDS) and a last summary; later calls do nothing."""
        if self.ended:
            return
        self.ended = True
        self.update_summary({f"{TRIAL}state": ENDS[state], f"{TRIAL}reason": None, **values})
        self._submit(lambda: self._close(EXITS[state]))

    def _close(self, exit_code: int) -> None:
        if self._run:
            self._run.finish(exit_code=exit_code)
            self.open = False
        self._mark.close()


def summary_of(
    quantities: Mapping[str, float], reported: Mapping[str, float], **facts: Any
) -> dict[str, Any]:
    """Name the results of a run as summary values; facts that are None are left out."""
    return {
        **{f"{PREFIX}{name}": value for name, value in quantities.items()},
        **{f"{TEST}{name}": value for name, value in reported.items()},
        **{f"{TRIAL}{name}": value for name, value in facts.items() if value is not None},
    }
