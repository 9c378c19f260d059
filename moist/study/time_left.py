"""The time that a search has left: that of the trials to come, without what they share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from moist.results.expected import Expected
from moist.study import events


class TimeLeft:
    """Follows a search; `left` expects how long it will go on.

    A trial's own time is that of the stages that no other trial calls. It is the mean of the
    trials trained here, until there is one that of the trials planned at the start. A stage
    that trials share counts once, until it is stored.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.requested = self.complete = self.trained = 0
        self.workers = 1
        self.own: Expected | None = None
        self.shared: dict[str, Expected | None] = {}
        """The stages to compute that planned trials share."""
        self.common: set[str] = set()
        """The keys of all these."""
        self.ended: set[int] = set()
        """The trials that trained and ended here."""
        self.callers: dict[str, set[int]] = {}
        self.computed: dict[str, float] = {}
        self.since: dict[int, float] = {}
        """When each running trial began with its own stages, as far as is known."""
        self.at: dict[int | None, tuple[str, float]] = {}
        """The stage that each running trial computes, and since when."""

    def observe(self, event: events.Event) -> None:
        """Take in what happened."""
        match event:
            case events.StudyOpened():
                self._open(event)
            case events.TrialStarted():
                self.since[event.number] = self.clock()
            case events.StageStarted():
                self.at[event.number] = event.key, self.clock()
            case events.StageFinished():
                self._finish(event)
            case events.Deferred() | events.Lost():
                self._forget(event.number)
            case events.TrialEnded(trial):
                self._forget(trial.number)
                self.complete += trial.state == "complete"
                self.trained += event.outcome == "trained"
                if event.outcome in {"trained", "pruned"}:
                    self.ended.add(trial.number)

    def left(self) -> Expected | None:
        """Return the seconds left, as far as there are comparable records; else None.

        Its `records` are the trials that it was measured on, 0 while it is only expected.
        """
        own, shared = self._measured() or self.own, [*self.shared.values()]
        if own is None or None in shared:
            return None
        return Expected(
            self._left(lambda one: one.seconds, own),
            self._left(lambda one: one.low, own),
            self._left(lambda one: one.high, own),
            own.records,
        )

    def _open(self, event: events.StudyOpened) -> None:
        self.requested, self.complete = event.requested, len(event.trials)
        self.workers = event.workers
        count = Counter(key for calls in event.planned for key in {call.key for call in calls})
        calls = {call.key: call for calls in event.planned for call in calls if not call.reused}
        own = []
        for key, call in calls.items():
            if count[key] > 1:
                self.common.add(key)
                self.shared[key] = call.expected
            else:
                own.append(call.expected)
        known = [one for one in own if one is not None]
        if known and len(known) == len(own):
            trials = len(event.planned)
            self.own = Expected(
                sum(one.seconds for one in known) / trials,
                sum(one.low for one in known) / trials,
                sum(one.high for one in known) / trials,
                records=0,
            )

    def _finish(self, event: events.StageFinished) -> None:
        self.at.pop(event.number, None)
        if event.number is not None:
            self.callers.setdefault(event.key, set()).add(event.number)
        if not event.reused and event.number is not None:
            self.computed[event.key] = event.seconds
        if event.key in self.shared:
            del self.shared[event.key]
            if event.number in self.since:
                self.since[event.number] = self.clock()

    def _forget(self, number: int) -> None:
        self.since.pop(number, None)
        self.at.pop(number, None)

    def _measured(self) -> Expected | None:
        """Return the own time of a trial, of those trained here."""
        if not self.trained:
            return None
        own = dict.fromkeys(self.ended, 0.0)
        for key, seconds in self.computed.items():
            if key not in self.common and len(self.callers[key]) == 1:
                (number,) = self.callers[key]
                own[number] = own.get(number, 0.0) + seconds
        each = [seconds for number, seconds in own.items() if number in self.ended]
        mean = sum(each) / self.trained  # a pruned trial's time was spent for one that is complete
        return Expected(mean, min(mean, *each), max(mean, *each), self.trained)

    def _left(self, pick: Callable[[Expected], float], own: Expected) -> float:
        now, common = self.clock(), 0.0
        began = {key: at for key, at in self.at.values()}
        for key, one in self.shared.items():
            if one is not None:
                common += max(0.0, pick(one) - (now - began.get(key, now)))
        sharing = {number for number, (key, _) in self.at.items() if key in self.shared}
        running = sum(
            max(0.0, pick(own) - (0.0 if number in sharing else now - since))
            for number, since in self.since.items()
        )
        waiting = max(0, self.requested - self.complete - len(self.since))
        return common + (running + waiting * pick(own)) / self.workers
