"""What a config will compute, cost and be called, found without training it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from moist.config import Config
from moist.config.systems import known_students
from moist.pipeline import stages
from moist.store.calls import Backend, Call
from moist.store.plan import Plan
from moist.study.costs import known
from moist.study.schedule import Foreseen
from moist.systems.outputs import run_key

LATENCY = "measure_latency"


@dataclass
class Foresight:
    """Foresees configs over one home; `quiet` keeps workers still while a time is taken.

    So that no latency is measured beside a training: an architecture's is measured once, before
    its first trial starts, and not at all if the counts are reason enough against it. Two are
    measured by the trial: that of `k=auto`, whose architecture isn't known yet, and with
    `reuse=False`, where every trial computes all its stages.
    """

    store: Backend
    reuse: bool = True
    quiet: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)

    def __call__(self, config: Config) -> Foreseen:
        """Prepares the data, and counts; what is foreseen can be `measured`, too."""
        foreseen = self.plan(config)
        counted = known(config, self.store, latency=False)
        if known_students(config) is None or not self.reuse:
            return replace(foreseen, known=counted)
        return replace(foreseen, known=counted, measure=partial(self._time, config))

    def _time(self, config: Config) -> dict[str, float]:
        # The data are prepared by now: a worker that is kept still may hold their lock.
        timed = all(call.reused for call in self.plan(config).calls if call.stage == LATENCY)
        with nullcontext() if timed else self.quiet():
            return known(config, self.store, latency=True)

    def plan(self, config: Config) -> Foreseen:
        """The same without the quantities: computes nothing."""
        forecast = self._first.fresh()
        key = run_key(config, stages(config, forecast))
        calls: dict[str, Call] = {}
        for call in forecast.calls:  # of two calls of one stage the second finds it planned
            calls.setdefault(call.key, call)
        return Foreseen(key, tuple(calls.values()), {})

    @cached_property
    def _first(self) -> Plan:
        return Plan(self.store.home, self.store.env, self.reuse, verify=False)
