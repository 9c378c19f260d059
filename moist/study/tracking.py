"""A study as W&B shows it: a run a trial, and one of the study with its frontier.

The driver tells W&B, not its workers: one client process serves all trials, so that a trial costs
milliseconds, and one that is lost is told as what becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moist.config.overrides import build
from moist.results.trials import Trial
from moist.store.keys import canonical
from moist.store.runs import commit, version
from moist.study.schedule import Entry
from moist.study.settings import Watch
from moist.study.storage import Described
from moist.study.workers import Message
from moist.tracking.client import RunInfo
from moist.tracking.journal import LIMIT, Journal, summary_of
from moist.tracking.tracker import Tracker

if TYPE_CHECKING:
    from moist.config import Config


class Told:
    """Tells W&B of each trial what the driver tells `watch`."""

    def __init__(self, watch: Watch, tracker: Tracker, study: str, described: Described) -> None:
        self.watch, self.tracker, self.study, self.described = watch, tracker, study, described
        self.journals: dict[int, Journal] = {}
        self.stopped: set[int] = set()
        self.had: dict[int, set[str]] = {}

    def started(self, entry: Entry) -> None:
        """A run begins, unless this is another attempt at its trial."""
        self.watch.started(entry)
        if entry.number not in self.journals:
            config = build(entry.config)
            self.journals[entry.number] = self._open(
                entry.number, entry.params, entry.config, config, entry.command
            )

    def heard(self, entry: Entry, message: Message) -> None:
        self.watch.heard(entry, message)
        journal, about = self.journals[entry.number], message.about
        if message.kind == "epoch":
            metrics = {k: v for k, v in about.items() if k not in {"stage", "done", "total"}}
            journal.log_epoch(about["stage"], about["done"], metrics)
        elif message.kind == "stage" and self._is_news(entry.number, **about):
            journal.log_stage(about["stage"], about["seconds"], about["state"] == "reused")

    def _is_news(self, number: int, key: str, state: str, **_: Any) -> bool:
        """Whether a stage's output was had for the first time: attempts have it again."""
        had = self.had.setdefault(number, set())
        new = state != "started" and key not in had
        had |= {key} if new else set()
        return new

    def told(self, trial: Trial, how: str) -> None:
        """The end of a trial's run; of one that was never trained, all of it."""
        self.watch.told(trial, how)
        journal = self.journals.pop(trial.number, None) or self._open(
            trial.number, trial.params, self.described.facts.fixed | trial.params
        )
        facts = {
            "how": how, "key": trial.key, "reason": trial.reason, "command": trial.command,
            "seconds": trial.seconds, "saved": trial.saved, "attempts": len(trial.attempts),
        }  # fmt: skip
        journal.update_summary(
            {f"{LIMIT}{name}": excess for name, excess in trial.constraints.items()}
        )
        journal.end(trial.state, summary_of(trial.quantities, trial.reported, **facts))

    def warned(self, text: str) -> None:
        self.watch.warned(text)

    def unwanted(self) -> Collection[int]:
        """Those stopped in W&B's dashboard, too."""
        return {*self.watch.unwanted(), *self.stopped}

    def _open(
        self,
        number: int,
        params: Mapping[str, Any],
        values: Mapping[str, Any],
        config: Config | None = None,
        command: str | None = None,
    ) -> Journal:
        shown = {**values, "trial": number, "params": [*params]}
        about = about_of(self.study, self.described, f"{number:05d}", "trial", shown, command)
        asked = replace(about, on_stop=lambda: self.stopped.add(number))
        return self.tracker.open(asked, config)


def about_of(
    study: str,
    described: Described,
    part: str,
    job_type: str,
    values: Mapping[str, Any],
    notes: str | None,
) -> RunInfo:
    """What a trial, or the study itself, is told as: the same again when the study goes on.

    Two studies of one name that were made at different times are two to W&B.
    """
    made = canonical([study, described.created, described.facts.model_dump(mode="json")])
    digest = hashlib.sha256(made).hexdigest()[:8]
    extra = {"study": study, "moist": version(), "commit": commit()}
    return RunInfo(
        id=f"{digest}-{part}",
        name=f"{study} {part}",
        job_type=job_type,
        config={**values, **extra},
        group=study,
        tags=("optuna", study),
        notes=notes,
    )
