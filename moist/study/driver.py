"""The one process that owns a study: asks, starts workers, judges, tells.

All policy meets here: what is not worth training (`judge.py`), what was measured before, what
is tried again, when to give up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from moist.config import Config, flat
from moist.errors import ConfigError, StageError
from moist.results.objectives import check_honest, check_measured, quantities, reported
from moist.results.trials import Trial
from moist.store.runs import RunRecords, reproducing
from moist.study.interrupts import interruptible
from moist.study.judge import Judge
from moist.study.ledger import Ledger
from moist.study.notes import note, with_content
from moist.study.patience import ALIKE, Patience
from moist.study.ref import StudyRef
from moist.study.samplers import Untried, chosen, seed_of, suggest
from moist.study.schedule import Entry, Foreseen, Schedule
from moist.study.settings import Settings, Tally, Watch
from moist.study.worker import failure, of_device
from moist.study.workers import SLOT_LOSSES, Message, Pool, Task
from moist.sweepfile import Sweep, config_of, size

TICK = 0.5
"""Seconds after which the driver looks at the clock, whatever workers say."""

DRIVERS = ("prepare", "measure_latency")
"""Stages that the driver computes for all trials: what they took is nobody's saving."""


Foresee = Callable[[Config], Foreseen]


class Driver:
    """Runs a study's trials until there are enough, one `step` after another."""

    def __init__(
        self,
        ref: StudyRef,
        ledger: Ledger,
        sweep: Sweep,
        pool: Pool,
        foresee: Foresee,
        settings: Settings,
        watch: Watch,
        *,
        seed: int,
    ) -> None:
        self.ref, self.ledger, self.sweep, self.pool = ref, ledger, sweep, pool
        self.foresee, self.settings, self.watch, self.seed = foresee, settings, watch, seed
        self.schedule = Schedule(ref.home)
        self.tally = Tally()
        self.judge = Judge(ledger.objectives, settings)
        self.patience = Patience(settings.timeout)
        for trial in ledger.trials():
            self._learn(trial)

    def run(self) -> Tally:
        """All trials asked for, those of a lost driver first. Raises StageError when going on
        makes no sense: no sound worker is left, or every trial fails alike."""
        for trial in self.ledger.unfinished():
            self._admit(trial.number, trial.params, trial.attempts)
        self.ledger.line_up(self.settings.points or ())
        with interruptible() as interrupted:
            while not interrupted() and self._fill(interrupted):
                for message in self.pool.wait(TICK):
                    self._hear(message)
                for number in {*self.watch.unwanted()} & {*self.schedule.running}:
                    self._stop(self.schedule.running[number], "somebody stopped it")
        if interrupted():
            raise KeyboardInterrupt
        return self.tally

    def _fill(self, interrupted: Callable[[], bool]) -> bool:
        """Give every free worker a trial; False when nothing is left to do."""
        if self._is_over():
            return False
        if not any(slot.sound for slot in self.pool.slots):
            raise StageError(
                f"no worker is sound: each lost {SLOT_LOSSES} different trials in a row",
                f"see `{self.ref.command('sweep status')}`; the same command continues",
            )
        while self.pool.free and not interrupted() and not self._is_over():
            if entry := self.schedule.pick(but=self.pool.unlucky):
                self._start(entry)
            elif self._wants_more():
                self._draw()
            elif not self.pool.busy and (entry := self.schedule.pick(patient=True)):
                self._start(entry, patient=True)
            else:
                break
        return bool(self.pool.busy)

    def _is_over(self) -> bool:
        over = self.patience.over
        self.tally.ended = over or self.tally.ended
        return bool(over)

    def _wants_more(self) -> bool:
        """Whether to draw another trial: enough are neither told nor on their way."""
        workers = len(self.pool.slots)
        ahead = 1 if workers == 1 else 2 * workers
        if len(self.schedule) >= ahead:
            return False
        if self.ledger.has_waiting():
            return True
        left = self.settings.trials - len(self.judge.finished) - len(self.schedule)
        return self.settings.points is None and left > 0 and not self._is_exhausted()

    def _is_exhausted(self) -> bool:
        if fruitless := self.patience.fruitless:
            self.tally.ended = fruitless
        elif (points := size(self.sweep)) is not None and len(self.ledger.tried) >= points:
            self.tally.ended = f"all {points} points of the space have been tried"
        return bool(self.tally.ended)

    def _draw(self) -> None:
        index = self.ledger.drawn
        finished = self.judge.finished
        name = chosen(self.settings.sampler, self.sweep, finished, self.settings.trials)
        number, params = self.ledger.ask(
            Untried(
                self.sweep,
                name,
                seed_of(self.seed, index),
                self.ledger.tried,
                alone=not len(self.schedule),
            ),
            partial(suggest, self.sweep),
            {"index": index, "sampler": name},
        )
        self.patience.drew()
        self._admit(number, params)

    def _admit(self, number: int, params: Mapping[str, Any], attempts: Sequence[str] = ()) -> None:
        """Tell at once what needs no training; let the rest wait for a worker."""
        try:
            config = config_of(self.sweep, params)
            check_measured(self.ledger.objectives, config.data.val_fraction)
            check_honest(config.router)
            foreseen = self.foresee(config)
            if not self.judge.hopeless(foreseen.known):
                foreseen = foreseen.measured()
        except ConfigError as error:
            self._fail(number, f"ConfigError: {error}")
            return
        except (MemoryError, RuntimeError) as error:  # of counting or timing too large a network
            self._fail(number, self._said(error))
            return
        self._hold_to_limits(number, foreseen.known)
        if reason := self.judge.hopeless(foreseen.known):
            self._tell(number, "screened", self.ledger.prune, reason=reason)
        elif self.settings.reuse and (run := RunRecords(self.ref.home).get(foreseen.key)):
            found = quantities(run.report) | foreseen.known
            reason = f"told from the run of {run.created[:19]}"
            self._tell(
                number, "known", self.ledger.complete, found=found, key=run.key, reason=reason,
                reported=reported(run.report), command=run.command,
            )  # fmt: skip
        else:
            command = reproducing(config)
            self.schedule.add(
                Entry(number, params, flat(config), command, foreseen, list(attempts))
            )

    def _said(self, error: Exception) -> str:
        """What a trial failed of in this process. Raises StageError for what it can't survive."""
        about = failure(error)
        if of_device(error):
            raise StageError(
                f"the driver's device failed: {about['error']}", "the same command continues"
            ) from error
        return "\n".join([about["error"], *about["lines"]])

    def _hold_to_limits(self, number: int, known: Mapping[str, float]) -> None:
        """Note how far a trial is beyond each limit on what is known of it."""
        for name, excess in self.judge.beyond(known).items():
            self.ledger.limit(number, name, excess)

    def _start(self, entry: Entry, patient: bool = False) -> None:
        self.watch.started(entry)
        self.pool.start(Task(entry.number, entry.config, entry.command, patient))

    def _hear(self, message: Message) -> None:
        """Act on what a worker said."""
        entry = self.schedule.running.get(message.number)
        if entry is None:  # it was stopped while it spoke
            return
        self.watch.heard(entry, message)
        about = message.about
        if message.kind == "stage":
            self._note_stage(entry, **about)
        elif message.kind == "epoch":
            self._judge(entry, **about)
        elif message.kind == "held":
            entry.held = set(about["keys"])
            self.schedule.add(entry)
        elif message.kind == "done":
            self.schedule.drop(entry.number)
            self._tell(entry.number, "trained", self.ledger.complete, entry=entry, **about)
        elif message.kind == "failed" and not about["memory"]:
            self.schedule.drop(entry.number)
            self._fail(entry.number, "\n".join([about["error"], *about["lines"]]), entry)
        elif message.kind in {"lost", "failed"}:
            self._lose(entry, about.get("reason") or f"out of memory: {about['lines'][-1]}")

    def _note_stage(self, entry: Entry, stage: str, key: str, state: str, seconds: float) -> None:
        entry.stage = stage if state == "started" else ""
        if state != "started":
            self.schedule.stored.add(key)
        if state == "computed":
            entry.computed[key] = seconds
        elif state == "reused" and key not in entry.computed and stage not in DRIVERS:
            entry.reused[key] = seconds

    def _judge(self, entry: Entry, stage: str, done: int, total: int, **metrics: float) -> None:
        """Stop a trial, or only doubt it, when even an optimistic end would be dominated."""
        if not (self.settings.prune or self.settings.audit):
            return
        accuracy = metrics.get("val_accuracy")
        overtaken = self.judge.overtaken(entry.known, stage, done, total, accuracy)
        if overtaken is None:
            return
        said = f"{stage} epoch {done} of {total}"
        if self.settings.audit:
            self.tally.doubted.setdefault(entry.number, said)
            return
        self._stop(entry, f"after {said}, {overtaken}")

    def _stop(self, entry: Entry, reason: str) -> None:
        self.pool.stop(entry.number)
        self.schedule.drop(entry.number)
        self._tell(entry.number, "pruned", self.ledger.prune, entry=entry, reason=reason)

    def _lose(self, entry: Entry, reason: str) -> None:
        """Try again what no fault of its own ended, so many times."""
        where = f" in {entry.stage}" if entry.stage else ""
        entry.attempts.append(reason + where)
        self.ledger.lost(entry.number, entry.attempts)
        if len(entry.attempts) <= self.settings.retries:
            self.watch.warned(f"trial {entry.number}: {entry.attempts[-1]}; trying again")
            self.schedule.add(entry)
            return
        self.schedule.drop(entry.number)
        self._fail(entry.number, f"lost {len(entry.attempts)} times; last: {reason}{where}", entry)

    def _fail(self, number: int, reason: str, entry: Entry | None = None) -> None:
        self._tell(number, "failed", self.ledger.fail, entry=entry, reason=reason)
        if self.patience.alike:
            raise StageError(
                f"the last {ALIKE} trials failed alike, the last with: {reason}",
                f"mend it; `{self.ref.command('sweep retry')}` puts them in line again",
            )

    def _tell(
        self,
        number: int,
        how: str,
        tell: Callable[..., None],
        entry: Entry | None = None,
        **facts: Any,
    ) -> None:
        """Write what became of a trial, once, and learn from it."""
        if entry is not None:
            self.tally.add(entry.computed, entry.reused)
            facts |= {
                "seconds": sum(entry.computed.values()),
                "saved": sum(entry.reused.values()),
                "command": entry.command,
            }
        self._annotate(number, how, facts)
        self._hold_to_limits(number, facts.get("found", {}))
        tell(number, **facts)
        self.tally.told[how] += 1
        trial = self.ledger.trial(number)
        self._learn(trial)
        self.watch.told(trial, how)
        self.patience.told(how)

    def _annotate(self, number: int, how: str, facts: Mapping[str, Any]) -> None:
        record = RunRecords(self.ref.home).path(str(facts.get("key")))
        files = with_content([record, self.pool.log(number)])
        self.ledger.annotate(number, note(how, facts), files)

    def _learn(self, trial: Trial) -> None:
        self.patience.learn(trial)
        if trial.state == "complete":
            self.judge.learn(trial)
