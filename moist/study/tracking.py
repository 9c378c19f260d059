"""A study in W&B: one run for each trial, logged by the driver.

Not by the workers: one client process serves all trials, so that a trial costs milliseconds, and
a trial whose worker is lost is one run whatever becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from moist.config import flat
from moist.results.trials import Trial
from moist.store.keys import canonical
from moist.store.runs import commit, version
from moist.study import events
from moist.study.spec import StudySpec
from moist.tracking.client import RunInfo
from moist.tracking.journal import LIMIT, Journal, summary_of
from moist.tracking.tracker import Tracker

STOPPED = "stopped from the W&B dashboard"


class WandbObserver:
    """Logs each trial to W&B, and stops those that are stopped in its dashboard."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.journals: dict[int, Journal] = {}
        self.logged: dict[int, set[str]] = {}
        """Keys of the stages that each trial's run has: later attempts reuse them."""

    def observe(self, event: events.Event) -> None:
        """Log the event to its W&B run."""
        match event:
            case events.StudyOpened():
                self.study, self.spec = event.name, event.spec
            case events.TrialStarted():
                self._start(event)
            case events.EpochDone(number=int(number)):
                self.journals[number].log_epoch(event.stage, event.done, event.metrics)
            case events.StageFinished(number=int(number)):
                self._log_stage(number, event)
            case events.TrialEnded():
                self._end(event.trial, event.outcome)

    def _start(self, event: events.TrialStarted) -> None:
        """Open a run, unless this is another attempt at its trial."""
        if event.number not in self.journals:
            about = self._about(event.number, event.params, flat(event.config))
            stopped = partial(event.stop, STOPPED)
            about = replace(about, notes=event.command, on_stop=stopped)
            self.journals[event.number] = self.tracker.open(about, event.config)

    def _log_stage(self, number: int, event: events.StageFinished) -> None:
        logged = self.logged.setdefault(number, set())
        if event.key not in logged:
            logged.add(event.key)
            self.journals[number].log_stage(event.stage, event.seconds, event.reused)

    def _end(self, trial: Trial, outcome: str) -> None:
        """End a trial's run; open it first if the trial was never started."""
        number, values = trial.number, self.spec.facts.fixed | trial.params
        journal = self.journals.pop(number, None) or self.tracker.open(
            self._about(number, trial.params, values)
        )
        facts = {
            "how": outcome, "key": trial.key, "reason": trial.reason, "command": trial.command,
            "seconds": trial.seconds, "saved": trial.saved, "attempts": len(trial.attempts),
        }  # fmt: skip
        journal.update_summary(
            {f"{LIMIT}{name}": excess for name, excess in trial.constraints.items()}
        )
        journal.end(trial.state, summary_of(trial.quantities, trial.reported, **facts))

    def _about(self, number: int, params: Mapping[str, Any], values: Mapping[str, Any]) -> RunInfo:
        shown = {**values, "trial": number, "params": [*params]}
        return about_of(self.study, self.spec, f"{number:05d}", "trial", shown)


def about_of(
    study: str, spec: StudySpec, part: str, job_type: str, values: Mapping[str, Any]
) -> RunInfo:
    """Describe the W&B run of a trial, or of the study itself.

    Its id is the same whenever the study is continued; studies of one name that were made at
    different times differ in it.
    """
    made = canonical([study, spec.created, spec.facts.model_dump(mode="json")])
    digest = hashlib.sha256(made).hexdigest()[:8]
    extra = {"study": study, "moist": version(), "commit": commit()}
    return RunInfo(
        id=f"{digest}-{part}",
        name=f"{study} {part}",
        job_type=job_type,
        config={**values, **extra},
        group=study,
        tags=("optuna", study),
    )
