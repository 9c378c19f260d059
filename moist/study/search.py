"""A sweep file, a study and workers put together: `search` until there are enough trials."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from moist.config import DataConfig
from moist.config.overrides import build
from moist.config.schema import is_where
from moist.errors import ConfigError
from moist.reporting.progress import Aside, Board
from moist.results.objectives import Objective, check_honest, check_measured
from moist.results.report import Machine
from moist.results.trials import Trial
from moist.store import runs
from moist.store.calls import Call
from moist.store.objects import now
from moist.study.driver import Driver
from moist.study.ledger import in_memory, opened
from moist.study.patience import FRUITLESS
from moist.study.ref import StudyRef
from moist.study.resuming import earlier, told
from moist.study.samplers import Untried, chosen, point, seed_of, suggest
from moist.study.settings import Outcome, Settings, Watch
from moist.study.storage import Described, Facts, load
from moist.study.tracking import Told
from moist.study.workers import Pool, Slot
from moist.sweepfile import Parameter, Sweep, config_of, size
from moist.tracking.tracker import Tracker

TRIALS = 20
"""Complete trials of a sweep that says nothing of their number."""


def requested(sweep: Sweep, asked: int | None) -> int:
    """Complete trials to end with: as asked, the file's `run_cap`, all of a grid, or 20."""
    points = size(sweep) if sweep.method == "grid" else None
    return asked or sweep.run_cap or points or TRIALS


def facts_of(
    sweep: Sweep, objectives: Sequence[Objective], seed: int, slots: Sequence[Slot] = ()
) -> Facts:
    """What makes a study of this search that study; a latency's machine is that of `slots`."""
    timed = any(one.name == "latency_ms" for one in objectives)
    return Facts(
        parameters=tuple(asdict(parameter) for parameter in sweep.parameters),
        fixed={name: value for name, value in sweep.fixed.items() if not is_where(name)},
        objectives=tuple(map(str, objectives)),
        seed=seed,
        machine=machine_of(slots) if timed and slots else None,
    )


def describe(
    sweep: Sweep,
    objectives: Sequence[Objective],
    seed: int,
    command: str,
    slots: Sequence[Slot] = (),
) -> Described:
    """What a study of this search is remembered by."""
    return Described(
        facts=facts_of(sweep, objectives, seed, slots),
        where={name: value for name, value in sweep.fixed.items() if is_where(name)},
        method=sweep.method,
        command=command,
        created=now(),
        moist=runs.version(),
    )


def sweep_of(described: Described, name: str) -> Sweep:
    """The search that a study was made for, without its file."""
    parameters = tuple(
        Parameter(
            **{
                **one,
                "choices": tuple(one["choices"]),
                "when": {key: tuple(values) for key, values in one["when"].items()},
            }
        )
        for one in described.facts.parameters
    )
    fixed = {**described.facts.fixed, **described.where}
    return Sweep(name, Path(name), described.method, described.objectives, fixed, parameters)


def slots(devices: str | None, workers: int, threads: int | None) -> list[Slot]:
    """Workers spread over devices (all GPUs, or the CPU); torch's threads (OMP_NUM_THREADS, or the
    cores) are shared out among them.

    Raises ConfigError for a device that isn't there.
    """
    import torch

    from moist.env import Silent, make_env

    found: list[str | None] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = [*devices.split(",")] if devices else found or [None]
    for device in dict.fromkeys(found if devices else ()):
        make_env(Silent(), device)
    each = threads or max(1, torch.get_num_threads() // workers)
    return [Slot(found[i % len(found)], each) for i in range(workers)]


def machine_of(slots: Sequence[Slot]) -> Machine:
    """What latencies are taken on. Raises ConfigError when that depends on the worker."""
    from moist.env import Silent, make_env

    places = dict.fromkeys((slot.device, slot.threads) for slot in slots)
    found = list(dict.fromkeys(make_env(Silent(), *place).machine() for place in places))
    if len(found) > 1:
        raise ConfigError(
            "objective `latency_ms` would be measured on different devices:"
            f" {' and '.join(map(told, found))}",
            "give `--devices` of one kind",
        )
    return found[0]


def search(
    ref: StudyRef,
    sweep: Sweep,
    described: Described,
    settings: Settings,
    *,
    slots: Sequence[Slot],
    quiet: bool = False,
    tracker: Tracker | None = None,
) -> Outcome:
    """Run a sweep's trials until `settings.trials` are complete, those of earlier starts included.

    Raises Held when another process drives the study, ConfigError when it is another search's,
    KeyboardInterrupt once what Ctrl-C interrupted has been written.
    """
    from moist.data.sources import locate
    from moist.env import Silent, make_env
    from moist.store.store import Store
    from moist.study.foresight import Foresight
    from moist.study.trainer import Trainer

    data = _checked(ref, sweep, described, settings)
    locate(data, ref.home)
    env = make_env(Silent(), slots[0].device, slots[0].threads)
    crowded = env.crowding(len(slots))  # before the workers' server starts to import
    with ExitStack() as stack:
        ledger = stack.enter_context(opened(ref, described))
        pool = stack.enter_context(
            Pool(Trainer(ref.home, settings.reuse), slots, ref.home / "logs" / ref.name)
        )
        board = stack.enter_context(Board(ref.name, described.objectives, settings.trials, quiet))
        if crowded:
            board.said(crowded)
        store = Store(ref.home, replace(env, progress=Aside(board)))
        foresight = Foresight(store, settings.reuse, pool.quiet)
        watch: Watch = board
        if tracker and not tracker.off:
            watch = Told(board, tracker, ref.name, load(ref)[0])
        driver = Driver(
            ref, ledger, sweep, pool, foresight, settings, watch, seed=described.facts.seed
        )
        board.resumed(sum(trial.state == "complete" for trial in ledger.trials()))
        tally = driver.run()
        tally.add({call.key: call.seconds or 0.0 for call in store.calls if not call.reused})
        return Outcome(ledger.trials(), tally)


@dataclass(frozen=True)
class Rehearsal:
    """Trials to run, trials complete before, and the stages that all of them call."""

    trials: int
    complete: int
    calls: Sequence[Call]

    @property
    def called(self) -> int:
        return len(self.calls)

    @property
    def distinct(self) -> int:
        return len({call.key for call in self.calls})

    @property
    def missing(self) -> list[Call]:
        """The stages to compute: each once, whoever calls it."""
        return [call for call in {c.key: c for c in self.calls}.values() if not call.reused]

    @property
    def seconds(self) -> float:
        """What computing them took before, where it is known."""
        return sum(call.seconds for call in self.missing if call.seconds is not None)

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "trials": self.trials,
            "complete": self.complete,
            "stages_called": self.called,
            "stages_distinct": self.distinct,
            "stages_to_compute": len(self.missing),
            "seconds": self.seconds,
            "stages_never_timed": sum(call.seconds is None for call in self.missing),
        }


def _checked(ref: StudyRef, sweep: Sweep, described: Described, settings: Settings) -> DataConfig:
    """The data section of all trials. Raises ConfigError for what no trial could mend."""
    if not re.fullmatch(r"\w[\w.+-]*", ref.name):
        raise ConfigError(
            f"`{ref.name}` can't be a study's name", "use letters, digits and any of `_ . + -`"
        )
    if settings.sampler == "grid" and size(sweep) is None:
        raise ConfigError(
            "`--sampler grid` needs an end of points, and a range of reals has none",
            "write `values`, or `distribution: q_uniform` with `q`",
        )
    check_honest(str(sweep.fixed.get("router", "")))
    data = build({k: v for k, v in sweep.fixed.items() if k.startswith("data.")}).data
    check_measured(described.objectives, data.val_fraction)
    return data


def rehearse(
    ref: StudyRef,
    sweep: Sweep,
    described: Described,
    settings: Settings,
    *,
    slots: Sequence[Slot],
) -> Rehearsal:
    """What `search` would run, had trials no results: a guess, unless the sampler ignores them.

    First those that were begun or are in line. Values that don't go together are passed over:
    the search fails such a trial at once and draws another. Raises ConfigError when the study is
    another search's, as the search would.
    """
    from moist.env import Silent, make_env
    from moist.store.plan import Plan
    from moist.study.foresight import Foresight

    _checked(ref, sweep, described, settings)
    env = make_env(Silent(), slots[0].device, slots[0].threads)
    foresight = Foresight(Plan(ref.home, env), settings.reuse)
    before = earlier(ref, described)
    begun = [trial.params for trial in before if _is_begun(trial)]
    complete = sum(trial.state == "complete" for trial in before)
    wanted = max(settings.trials - complete, len(begun))
    found: list[Sequence[Call]] = []
    fresh = _draws(sweep, described, settings, before)
    points = chain(begun, islice(fresh, wanted + FRUITLESS))
    while len(found) < wanted and (params := next(points, None)) is not None:
        with suppress(ConfigError):
            found.append(foresight.plan(config_of(sweep, params)).calls)
    return Rehearsal(len(found), complete, [call for calls in found for call in calls])


def _is_begun(trial: Trial) -> bool:
    """Whether a driver would run it before it draws any other."""
    retried = trial.state == "waiting" and trial.retry_of is not None
    return retried or (trial.state == "running" and trial.asked)


def _draws(
    sweep: Sweep, described: Described, settings: Settings, before: Sequence[Trial]
) -> Iterator[dict[str, Any]]:
    """The points that a driver would draw next, had the trials before no results."""
    ledger, points = in_memory(described.objectives), size(sweep)
    ledger.tried |= {point(trial.params) for trial in before if trial.asked}
    drawn = sum(trial.asked and trial.retry_of is None for trial in before)
    while points is None or len(ledger.tried) < points:
        name = chosen(settings.sampler, sweep, before, settings.trials)
        seed = seed_of(described.facts.seed, drawn + ledger.drawn)
        yield ledger.ask(Untried(sweep, name, seed, ledger.tried), partial(suggest, sweep), {})[1]
