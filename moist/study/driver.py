"""The driver: the one process that owns a study, draws trials, starts workers, stores results.

All policy is here: what is not worth training (`screening.py`), what a record answers, what is
retried, when to stop (`stopping.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.config.systems import SYSTEMS
from moist.disk import writing
from moist.errors import ConfigError, StageError
from moist.interrupts import check, deferred, undeferred
from moist.results.objectives import check_honest, check_measured, quantities, reported
from moist.results.report import Report
from moist.results.trials import Trial
from moist.stages import LATENCIES
from moist.store.runs import RunRecords, command_for
from moist.study import events
from moist.study.executor import (
    LOSSES,
    Executor,
    Task,
    failure,
    is_device_error,
    log_of,
)
from moist.study.ledger import Ledger
from moist.study.ref import StudyRef
from moist.study.samplers import Untried, chosen, seed_of, suggest
from moist.study.schedule import Entry, Schedule
from moist.study.screening import Screening, excesses
from moist.study.settings import Settings, Stats
from moist.study.stopping import EQUAL_FAILURES, Stopping
from moist.sweepfile import Sweep, config_of, size

if TYPE_CHECKING:
    from moist.study.costs import CostEstimate

TICK = 0.5
"""Seconds after which the driver checks its deadline, whether or not workers send events."""

OWN_STAGES = ("prepare", *LATENCIES)
"""Stages that the driver computes for all trials: no trial saves their seconds."""


class Driver:
    """Runs a study's trials until there are enough."""

    def __init__(
        self,
        ref: StudyRef,
        ledger: Ledger,
        sweep: Sweep,
        executor: Executor,
        estimate: Callable[[Config], CostEstimate],
        settings: Settings,
        notify: events.Send,
    ) -> None:
        self.ref, self.ledger, self.sweep, self.executor = ref, ledger, sweep, executor
        self.estimate, self.settings, self.notify = estimate, settings, notify
        self.schedule = Schedule(ref.home)
        self.stats = Stats()
        self.screening = Screening(ledger.objectives, settings)
        self.stopping = Stopping(settings.timeout)
        self.stop_requests: dict[int, str] = {}
        """Reasons by trial, from observers; they may come from other threads."""
        for trial in ledger.trials():
            self._learn(trial)

    def run(self) -> Stats:
        """Run trials until there are enough, those of a lost driver first.

        Raises StageError when going on makes no sense: there is no healthy worker left, or the
        last trials failed with the same error.
        """
        for trial in self.ledger.unfinished():
            self._admit(trial.number, trial.params, trial.attempts)
        self.ledger.enqueue(self.settings.points or ())
        with deferred() as interrupted:
            while not interrupted() and self._fill(interrupted):
                self.ledger.check_lease()
                for event in self.executor.wait(TICK):
                    self._handle(event)
                for number in self.stop_requests.keys() & self.schedule.running.keys():
                    self._stop(self.schedule.running[number], self.stop_requests[number])
            check()
        return self.stats

    def _fill(self, interrupted: Callable[[], bool]) -> bool:
        """Give every free worker a trial; return False when nothing is left to do."""
        if self._is_over():
            return False
        while self._has_room() and not interrupted() and not self._is_over():
            if entry := self.schedule.pick(exclude=self.executor.capacity().refused):
                self._start(entry)
            elif self._wants_more():
                self._draw()
            elif not self.schedule.running and (entry := self.schedule.pick(blocking=True)):
                self._start(entry, blocking=True)
            else:
                break
        return bool(self.schedule.running)

    def _has_room(self) -> bool:
        """Return whether a worker is free. Raises StageError if none is healthy."""
        workers = self.executor.capacity().workers
        if not workers:
            raise StageError(
                f"no healthy workers left: each lost {LOSSES} different trials in a row",
                f"see `{self.ref.command('sweep status')}`; the same command continues",
            )
        return len(self.schedule.running) < workers

    def _is_over(self) -> bool:
        timed_out = self.stopping.timed_out
        self.stats.ended = timed_out or self.stats.ended
        return bool(timed_out)

    def _wants_more(self) -> bool:
        """Return whether to draw another trial: too few have ended or are on their way."""
        workers = self.executor.capacity().workers
        ahead = 1 if workers == 1 else 2 * workers
        if len(self.schedule) >= ahead:
            return False
        if self.ledger.has_waiting():
            return True
        missing = self.settings.trials - len(self.screening.complete) - len(self.schedule)
        return self.settings.points is None and missing > 0 and not self._is_exhausted()

    def _is_exhausted(self) -> bool:
        if useless := self.stopping.draws_are_useless:
            self.stats.ended = useless
        elif (points := size(self.sweep)) is not None and len(self.ledger.tried) >= points:
            self.stats.ended = f"all {points} points of the space have been tried"
        return bool(self.stats.ended)

    def _draw(self) -> None:
        index, complete = self.ledger.drawn, self.screening.complete
        name = chosen(self.settings.sampler, self.sweep, complete, self.settings.trials)
        number, params = self.ledger.ask(
            Untried(
                self.sweep,
                name,
                seed_of(self.ledger.spec.facts.seed, index),
                self.ledger.tried,
                alone=not len(self.schedule),
            ),
            partial(suggest, self.sweep),
            {"index": index, "sampler": name},
        )
        self.stopping.drew()
        self._admit(number, params)

    def _admit(self, number: int, params: Mapping[str, Any], attempts: Sequence[str] = ()) -> None:
        """End a trial at once if it needs no training; else let it wait for a worker."""
        try:
            config = config_of(self.sweep, params)
            needed = self.settings.needed(self.ledger.objectives)
            check_measured(needed, config.data.val_fraction)
            check_honest(config.router)
            with undeferred():  # it may decode a large data set
                estimate = self.estimate(config)
                if not self.screening.reject(estimate.quantities):
                    estimate = estimate.measured()
        except ConfigError as error:
            self._fail(number, f"ConfigError: {error}")
            return
        except (MemoryError, RuntimeError) as error:  # of counting or timing too large a network
            self._fail(number, self._reason(number, error))
            return
        self.ledger.note_stages(call.stage for call in estimate.calls)
        self._store_excesses(number, estimate.quantities)
        if reason := self.screening.reject(estimate.quantities):
            self._end(number, "screened", self.ledger.prune, reason=reason)
        elif self.settings.reuse and (run := RunRecords(self.ref.home).get(estimate.key)):
            reason = f"reused the run recorded at {run.created[:19]}"
            found = quantities(run.report) | estimate.quantities
            self._complete(number, "reused", run.report, found, reason=reason, command=run.command)
        else:
            command = command_for(config)
            self.schedule.add(
                Entry(
                    number, params, config, command=command, estimate=estimate,
                    attempts=list(attempts),
                )
            )  # fmt: skip

    def _reason(self, number: int, error: Exception) -> str:
        """Describe why a trial failed in this process. Raises StageError if its device failed."""
        failed = failure(number, error)
        if is_device_error(error):
            raise StageError(
                f"the driver's device failed: {failed.error}", "the same command continues"
            ) from error
        return failed.text

    def _store_excesses(self, number: int, known: Mapping[str, float]) -> None:
        """Store how far a trial exceeds each limit on quantities that are known of it."""
        for name, excess in excesses(known, self.settings.limits).items():
            self.ledger.limit(number, name, excess)

    def _start(self, entry: Entry, blocking: bool = False) -> None:
        stop = partial(self.stop_requests.__setitem__, entry.number)
        self.notify(
            events.TrialStarted(
                entry.number, entry.params, entry.config, command=entry.command, stop=stop
            )
        )
        timed_on = self.ledger.spec.facts.machine
        self.executor.submit(Task(entry.number, entry.config, entry.command, blocking, timed_on))

    def _handle(self, event: events.WorkerEvent) -> None:
        """Act on a worker's event."""
        number = event.number
        entry = None if number is None else self.schedule.running.get(number)
        if entry is None:  # the trial was stopped while its worker sent this
            return
        self.notify(event)
        match event:
            case events.StageStarted():
                entry.stage = event.stage
            case events.StageFinished():
                self._add_stage(entry, event)
            case events.EpochDone():
                self._report(entry, event)
                self._prune(entry, event)
            case events.Deferred():
                entry.locked = set(event.keys)
                self.schedule.add(entry)
            case events.Completed():
                self.schedule.drop(entry.number)
                stage = SYSTEMS[entry.config.system].model_stage
                for epoch, accuracy in enumerate(event.curves.get(stage, ()), 1):
                    if epoch not in entry.reported:
                        self.ledger.report(entry.number, epoch, accuracy)
                found = quantities(event.report)
                self._complete(
                    entry.number, "trained", event.report, found, entry=entry, curves=event.curves
                )
            case events.Failed(out_of_memory=False):
                self.schedule.drop(entry.number)
                self._fail(entry.number, event.text, entry)
            case events.Failed():
                self._retry(entry, f"out of memory: {event.lines[-1]}")
            case events.Lost():
                self._retry(entry, event.reason)

    def _add_stage(self, entry: Entry, event: events.StageFinished) -> None:
        entry.stage = ""
        self.schedule.stored.add(event.key)
        if not event.reused:
            entry.computed[event.key] = event.seconds
        elif event.key not in entry.computed and event.stage not in OWN_STAGES:
            entry.reused[event.key] = event.seconds

    def _report(self, entry: Entry, event: events.EpochDone) -> None:
        """Store an epoch of the model's training, where accuracy is the study's only objective.

        With several objectives only complete trials get intermediate values, when they end:
        Optuna's TPE fails on a pruned trial that has some, and its pruners refuse such studies.
        """
        accuracy = event.metrics.get("val_accuracy")
        alone = [one.name for one in self.ledger.objectives] == ["accuracy"]
        if alone and accuracy is not None:
            if event.stage == SYSTEMS[entry.config.system].model_stage:
                self.ledger.report(entry.number, event.done, accuracy)
                entry.reported.add(event.done)

    def _prune(self, entry: Entry, event: events.EpochDone) -> None:
        """Stop a trial whose optimistic bound is dominated; with `audit` only note it."""
        if not (self.settings.prune or self.settings.audit):
            return
        reason = self.screening.prune(
            entry.estimate.quantities,
            stage=event.stage,
            done=event.done,
            total=event.total,
            accuracy=event.metrics.get("val_accuracy"),
        )
        if reason is None:
            return
        epoch = f"{event.stage} epoch {event.done} of {event.total}"
        if self.settings.audit:
            self.stats.would_prune.setdefault(entry.number, epoch)
            return
        self._stop(entry, f"after {epoch}, {reason}")

    def _stop(self, entry: Entry, reason: str) -> None:
        self.executor.cancel(entry.number)
        self.schedule.drop(entry.number)
        self._end(entry.number, "pruned", self.ledger.prune, entry, reason=reason)

    def _retry(self, entry: Entry, reason: str) -> None:
        """Retry a trial that was lost through no fault of its own, up to `retries` times."""
        where = f" in {entry.stage}" if entry.stage else ""
        entry.attempts.append(reason + where)
        self.ledger.lost(entry.number, entry.attempts)
        if len(entry.attempts) <= self.settings.retries:
            text = f"trial {entry.number}: {entry.attempts[-1]}; retrying"
            self.notify(events.Warned(None, text))
            self.schedule.add(entry)
            return
        self.schedule.drop(entry.number)
        self._fail(entry.number, f"lost {len(entry.attempts)} times; last: {reason}{where}", entry)

    def _fail(self, number: int, reason: str, entry: Entry | None = None) -> None:
        self._end(number, "failed", self.ledger.fail, entry, reason=reason)
        if self.stopping.failures_are_equal:
            raise StageError(
                f"the last {EQUAL_FAILURES} trials failed with the same error: {reason}",
                f"fix it, then requeue with `{self.ref.command('sweep retry')}`",
            )

    def _complete(
        self,
        number: int,
        outcome: str,
        report: Report,
        found: Mapping[str, float],
        entry: Entry | None = None,
        **facts: Any,
    ) -> None:
        if missing := [o.name for o in self.ledger.objectives if o.name not in found]:
            reason = f"its run has no {' and no '.join(missing)}, an objective of this study"
            self._fail(number, f"StageError: {reason}", entry)
            return
        facts |= {"found": found, "key": report.key, "reported": reported(report)}
        self._end(number, outcome, self.ledger.complete, entry, **facts)

    def _end(
        self,
        number: int,
        outcome: str,
        write: Callable[..., None],
        entry: Entry | None = None,
        **facts: Any,
    ) -> None:
        """Write the end of a trial, once, and learn from it."""
        if entry is not None:
            self.stats.add(entry.computed, entry.reused)
            facts |= {
                "seconds": sum(entry.computed.values()),
                "saved": sum(entry.reused.values()),
                "command": entry.command,
            }
        with self.ledger.together():
            self._annotate(number, outcome, facts)
            self._store_excesses(number, facts.get("found", {}))
            write(number, **facts)
        self.stats.outcomes[outcome] += 1
        trial = self.ledger.trial(number)
        self._learn(trial)
        self.notify(events.TrialEnded(trial, outcome))
        self.stopping.ended(outcome)

    def _annotate(self, number: int, outcome: str, facts: Mapping[str, Any]) -> None:
        """Show a trial's note, run record and log in optuna-dashboard."""
        record = RunRecords(self.ref.home).path(str(facts.get("key")))
        with writing(self.ref.home):
            present = [
                path
                for path in (record, log_of(self.executor.logs, number))
                if path.exists() and path.stat().st_size > 0
            ]
            self.ledger.annotate(number, _note(outcome, facts), present)

    def _learn(self, trial: Trial) -> None:
        self.stopping.learn(trial)
        if trial.state == "complete":
            self.screening.learn(trial)


def _note(outcome: str, facts: Mapping[str, Any]) -> str:
    """Describe a trial in Markdown."""
    lines = [f"**{outcome}**", facts.get("reason")]
    if "command" in facts:
        lines.append(f"`{facts['command']}`")
    if "seconds" in facts:
        lines.append(f"{facts['seconds']:.1f} s computed, {facts['saved']:.1f} s saved")
    return "\n\n".join(filter(None, lines))
