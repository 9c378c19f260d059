"""Search a sweep: open its study, start workers, drive it; or plan what that would compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, islice
from math import inf
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.config.overrides import build, pinned
from moist.config.plugins import split_name
from moist.config.schema import keys
from moist.errors import ConfigError, DataError
from moist.results.expected import Expected, total
from moist.results.trials import Trial
from moist.store.calls import Call
from moist.study.driver import Driver
from moist.study.events import (
    Event,
    EventProgress,
    Noted,
    Observer,
    StageFinished,
    StudyOpened,
    Warned,
    broadcast,
)
from moist.study.ledger import in_memory, opened
from moist.study.reader import NoStudy
from moist.study.ref import StudyRef
from moist.study.samplers import Untried, chosen, point, seed_of, suggest
from moist.study.settings import SearchResult, Settings
from moist.study.spec import (
    Content,
    SearchSpec,
    StudySpec,
    check_content,
    check_search,
    continued,
)
from moist.study.stopping import USELESS_DRAWS
from moist.study.storage import existing, trials_of
from moist.study.workers import PRELOADED, Engine, Pool, Slot, server
from moist.sweepfile import EXHAUSTIVE, Sweep, config_of, ends, grid, size

if TYPE_CHECKING:
    from moist.data.sources import Source
    from moist.stages.teacher import WeightsFile
    from moist.store.plan import Plan

TRIALS = 20
"""Complete trials to end with, unless the sweep or the user says."""
FORECAST = 6
"""Trials that are planned when a search starts, for the time that it will take."""
SAMPLE = 100
"""Points of a larger space that are checked against the data before the first trial."""
WEIGHTS = "teacher.weights"


def requested_trials(sweep: Sweep, trials: int | None) -> int:
    """Return how many complete trials to end with.

    `trials` if given, else the file's `run_cap`, else all points of a grid, else 20.
    """
    points = size(sweep) if sweep.method == "grid" else None
    return trials or sweep.run_cap or points or TRIALS


def search(
    ref: StudyRef,
    sweep: Sweep,
    spec: StudySpec,
    settings: Settings,
    *,
    slots: Sequence[Slot],
    observers: Sequence[Observer] = (),
    engine: Engine = Pool,
) -> SearchResult:
    """Run a sweep's trials until `settings.trials` are complete, those before included.

    Raises AlreadyDriven when another process drives the study, what `check_start` raises unless
    `spec` is its result, KeyboardInterrupt once the results at the time of Ctrl-C are written.
    """
    from moist.env import Silent, make_env
    from moist.store.plan import Plan
    from moist.store.remote import checkpoints_shared, connected
    from moist.store.store import Store
    from moist.study.costs import CostEstimator
    from moist.study.trainer import Trainer

    if not spec.installed:
        spec, *_ = check_start(ref, sweep, spec, settings)
    env = make_env(Silent(), slots[0].device, slots[0].threads)
    crowded = env.crowding(len(slots), besides=server())
    emulated = env.emulation(sweep.fixed.get("precision", Config().precision))
    remote, pulled = connected(ref.store), Pulled()
    if remote is not None and engine is Pool:  # a client takes seconds to import
        engine = partial(Pool, preload=(*PRELOADED, remote.client))
    notify = broadcast([*observers, pulled])
    with (
        opened(ref, spec) as ledger,
        checkpoints_shared(ref.home, remote, lambda text: notify(Warned(None, text))),
        engine(
            Trainer(ref.home, settings.reuse, ref.store), slots, ref.home / "logs" / ref.name
        ) as executor,
    ):
        trials = ledger.trials()
        complete = [trial for trial in trials if trial.state == "complete"]
        workers = executor.capacity().workers
        planned = Plan(ref.home, env, remote=remote)
        plan = _planned(planned, sweep, spec, settings, trials, workers, FORECAST)
        notify(StudyOpened(ref.name, ledger.spec, settings.trials, complete, plan.each, workers))
        for warning in filter(None, (crowded, emulated)):
            notify(Noted(warning))
        store = Store(ref.home, replace(env, progress=EventProgress(notify)), remote=remote)
        estimate = CostEstimator(store, settings.reuse, executor.paused)
        stats = Driver(
            ref, ledger, sweep, executor, estimate=estimate, settings=settings, notify=notify
        ).run()
        stats.add({call.key: call.seconds or 0.0 for call in store.calls if not call.reused})
        stats.pulled = len(pulled.keys)
        return SearchResult(ledger.trials(), stats)


@dataclass(frozen=True)
class Pulled:
    """An observer of the stages whose outputs came from a shared store."""

    keys: set[str] = field(default_factory=set)

    def observe(self, event: Event) -> None:
        """Note the key of a stage that was pulled."""
        if isinstance(event, StageFinished) and event.origin:
            self.keys.add(event.key)


@dataclass(frozen=True)
class SearchPlan:
    """The stages that each trial to run calls, trials complete before, and workers."""

    each: Sequence[Sequence[Call]]
    complete: int
    workers: int = 1

    @property
    def trials(self) -> int:
        return len(self.each)

    @property
    def calls(self) -> list[Call]:
        return [call for calls in self.each for call in calls]

    @property
    def missing(self) -> list[Call]:
        """Return the stages to compute, each once."""
        return [call for call in {c.key: c for c in self.calls}.values() if not call.reused]

    @property
    def expected(self) -> Expected | None:
        """Return the time that all of it will take, as far as there are comparable records."""
        return total(self.missing, self.workers)

    def record(self) -> dict[str, Any]:
        """Return it as JSON values; seconds are None without a comparable record."""
        missing, whole = self.missing, self.expected
        return {
            "trials": self.trials,
            "complete": self.complete,
            "stages_called": len(self.calls),
            "stages_distinct": len({call.key for call in self.calls}),
            "stages_to_compute": len(missing),
            "stages_to_pull": len({call.key for call in self.calls if call.origin}),
            "stages_without_comparable": sum(call.expected is None for call in missing),
            "seconds": whole and whole.seconds,
            "seconds_low": whole and whole.low,
            "seconds_high": whole and whole.high,
        }


def check_start(
    ref: StudyRef, sweep: Sweep, spec: StudySpec, settings: Settings, fetch: bool = True
) -> tuple[StudySpec, Source, str]:
    """Check a search against its data, weights and earlier trials, before anything is trained.

    Returns the spec with their content, the data, and a warning of points that can't run, empty
    if all can.
    Raises DataError if the data are missing, and ConfigError for what fails every trial, for
    weights that can't be read, and when the study was made for another search.
    """
    from moist.data.sources import locate
    from moist.stages.teacher import read_state, weights_of

    check_search(ref.name, sweep, settings.needed(spec.objectives))
    if settings.sampler == "grid" and size(sweep) is None:
        raise ConfigError(
            "`--sampler grid` needs a finite space, and a range of reals is infinite",
            "write `values`, or `distribution: q_uniform` with `q`",
        )
    names = [name for name in sweep.fixed if name.startswith("data.")]
    source = locate(build({name: sweep.fixed[name] for name in names}).data, ref.home, fetch)
    for file in ends(sweep, WEIGHTS):
        if weights := weights_of(build({WEIGHTS: file}).teacher):
            read_state(weights.path)
    fixed = build({WEIGHTS: sweep.fixed.get(WEIGHTS)}).teacher
    spec = with_content(ref, spec, source, weights_of(fixed))
    with suppress(NoStudy):
        continued(ref, existing(ref), spec)
    return spec, source, _conflicts(sweep, spec, settings, source)


def with_content(
    ref: StudyRef, spec: StudySpec, source: Source, weights: WeightsFile | None
) -> StudySpec:
    """Describe the content of a search's data, and of the teacher's weights, in its spec.

    Raises ConfigError if the spec has other content.
    """
    from moist import pipeline  # noqa: F401  every stage that it imports registers its version
    from moist.stages import VERSIONS

    content = {"data": Content(key=source.key, text=str(source))}
    if weights:
        text = f"weights of content {weights.key[:12]}"
        content[WEIGHTS] = Content(key=weights.key, text=text)
    if packages := _packages(spec.facts):
        content["packages"] = Content(key=packages, text=packages)
    found = spec.model_copy(update={"content": content, "installed": VERSIONS})
    check_content(ref, spec, found)
    return found


def _packages(facts: SearchSpec) -> str:
    """Describe the packages, with versions, whose names a search has."""
    given = [*facts.fixed.items()]
    given += [(one["name"], value) for one in facts.parameters for value in one["choices"]]
    named = [pinned(key, value) for key, value in given if "registry" in keys()[key]]
    return ", ".join(sorted({split_name(name)[1] for name in named} - {""}))


def _conflicts(sweep: Sweep, spec: StudySpec, settings: Settings, source: Source) -> str:
    """Describe which points can't run on the data; empty if all can. Raises it if none can."""
    from moist.systems.checks import check

    points, what = list(settings.points or ()), "points"
    if not points and (size(sweep) or inf) <= EXHAUSTIVE:
        points, what = list(grid(sweep)), "points of the space"
    elif not points:
        fresh = _draws(sweep, spec, replace(settings, sampler="random"), ())
        points, what = list(islice(fresh, SAMPLE)), "points drawn at random"
    found: list[tuple[str, ConfigError]] = []
    for params in points:
        try:
            check(config_of(sweep, params), source)
        except ConfigError as error:
            found.append((" ".join(f"{key}={value}" for key, value in params.items()), error))
    if not found:
        return ""
    values, first = found[0]
    of = f"{len(found)} of {len(points)} {what} can't run, for example `{values}`: {first.args[0]}"
    if len(found) < len(points):
        return of
    raise first if len({str(error) for _, error in found}) == 1 else ConfigError(of, first.hint)


def plan_search(
    ref: StudyRef, sweep: Sweep, spec: StudySpec, settings: Settings, *, slots: Sequence[Slot]
) -> SearchPlan:
    """Plan what `search` would run if trials had no results, which only some samplers ignore.

    First come trials that were begun or requeued. Values that conflict are skipped: the search
    fails such a trial at once and draws another. Raises what `check_start` raises, unless `spec`
    is its result.
    """
    from moist.env import Silent, make_env
    from moist.store.plan import Plan
    from moist.store.remote import connected

    if not spec.installed:
        spec, *_ = check_start(ref, sweep, spec, settings, fetch=False)
    env = make_env(Silent(), slots[0].device, slots[0].threads)
    return _planned(
        Plan(ref.home, env, remote=connected(ref.store, write=False)),
        sweep,
        spec,
        settings,
        earlier_trials(ref, spec),
        len(slots),
    )


def _planned(
    store: Plan,
    sweep: Sweep,
    spec: StudySpec,
    settings: Settings,
    before: Sequence[Trial],
    workers: int,
    most: int | None = None,
) -> SearchPlan:
    """Plan the next trials, `most` of them if given."""
    from moist.data.sources import locate
    from moist.measure.stage_times import StageTimes
    from moist.study.costs import CostEstimator

    located = cache(partial(locate, home=store.home, fetch=False))  # once for all these trials
    estimator = CostEstimator(store, settings.reuse, times=StageTimes(store.env))
    begun = [trial.params for trial in before if _is_begun(trial)]
    complete = sum(trial.state == "complete" for trial in before)
    wanted = max(settings.trials - complete, len(begun))
    wanted = wanted if most is None else min(wanted, most)
    found: list[Sequence[Call]] = []
    tried = {point(trial.params) for trial in before}
    fresh: Iterator[Mapping[str, Any]] = (
        _draws(sweep, spec, settings, before)
        if settings.points is None
        else (params for params in settings.points if point(params) not in tried)
    )
    points = chain(begun, islice(fresh, wanted + USELESS_DRAWS))
    while len(found) < wanted and (params := next(points, None)) is not None:
        try:
            config = config_of(sweep, params)
            calls = estimator.plan(config, located(config.data)).calls
            found.append(calls if settings.reuse else _own(calls, len(found)))
        except DataError:
            raise
        except ConfigError:  # these values conflict
            continue
    return SearchPlan(found, complete, workers)


def _own(calls: Sequence[Call], trial: int) -> list[Call]:
    """Return calls of a trial that shares none of their outputs."""
    return [
        replace(
            call,
            key=f"{trial}/{call.key}",
            needs=tuple(f"{trial}/{need}" for need in call.needs),
        )
        for call in calls
    ]


def earlier_trials(ref: StudyRef, spec: StudySpec) -> list[Trial]:
    """Read the trials of a study that this search would continue; none if there is no study.

    Raises ConfigError when the study was made for another search.
    """
    try:
        study = existing(ref)
    except NoStudy:
        return []
    continued(ref, study, spec)
    return trials_of(study, spec.objectives)


def _is_begun(trial: Trial) -> bool:
    """Return whether a driver would run a trial before it draws another."""
    retried = trial.state == "waiting" and trial.retry_of is not None
    return retried or (trial.state == "running" and trial.drawn)


def _draws(
    sweep: Sweep, spec: StudySpec, settings: Settings, before: Sequence[Trial]
) -> Iterator[dict[str, Any]]:
    """Draw the points that a driver would draw next if the trials before had no results."""
    ledger, points = in_memory(spec), size(sweep)
    ledger.tried |= {point(trial.params) for trial in before if trial.drawn}
    drawn = sum(trial.drawn and trial.retry_of is None for trial in before)
    while points is None or len(ledger.tried) < points:
        name = chosen(settings.sampler, sweep, before, settings.trials)
        seed = seed_of(spec.facts.seed, drawn + ledger.drawn)
        yield ledger.ask(Untried(sweep, name, seed, ledger.tried), partial(suggest, sweep), {})[1]
