"""The search that a study is made for, as stored with it; only an equal one may continue it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from moist.config import Config, flat
from moist.config.schema import is_location
from moist.errors import ConfigError, StoreError, first_line
from moist.results.objectives import Objective, check_honest, check_measured, parse_objectives
from moist.results.report import Machine, Record
from moist.store import runs
from moist.store.objects import now
from moist.study.reader import StoredStudy
from moist.study.ref import StudyRef, check_name
from moist.sweepfile import Parameter, Sweep, ends
from moist.sweepfile.errors import noted, raised_together

if TYPE_CHECKING:
    from optuna import Study

FACTS = "moist"
"""Optuna's user attribute that holds a study's StudySpec."""

NEW_NAME = "give the new search a name of its own: `--study NAME`"


class SearchSpec(Record):
    """What is searched: two studies of one name that differ in it must not mix.

    `machine` is what latencies are measured on, where one of the objectives is a latency.
    """

    parameters: tuple[dict[str, Any], ...]
    fixed: dict[str, Any]
    objectives: tuple[str, ...]
    seed: int
    machine: Machine | None = None


class Content(Record):
    """The content of files that a study is made from: compared by its digest, and described."""

    key: str
    text: str


NO_CONTENT = Content(key="", text="none given")


class StudySpec(Record):
    """What is searched, where its files are, and the command that continues it."""

    facts: SearchSpec
    where: dict[str, Any]
    method: str
    command: str
    created: str
    moist: str
    content: dict[str, Content] = Field(default_factory=dict)
    """The data and the weights that `where` pointed at; studies of earlier versions have none."""

    stages: dict[str, int] = Field(default_factory=dict)
    """The versions of the stages that its trials called; earlier studies have none."""
    installed: dict[str, int] = Field(default_factory=dict, exclude=True)
    """The versions of all stages in the moist that searches."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return parse_objectives(self.facts.objectives)


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Raise StoreError for a record in a study's database that this version can't read."""
    try:
        yield
    except ValidationError as error:
        raise StoreError(
            f"can't read {what}: {first_line(error)}",
            "it is damaged, or written by a later version of moist: use that version",
        ) from None


def spec_of(study: StoredStudy | Study) -> StudySpec:
    """Return the spec that is stored with a study. Raises StoreError if it can't be read."""
    with readable(f"the search of study `{study.study_name}`"):
        return StudySpec.model_validate(study.user_attrs[FACTS])


def study_spec(
    sweep: Sweep,
    objectives: Sequence[Objective],
    seed: int,
    command: str,
    machine: Machine | None = None,
) -> StudySpec:
    """Describe a new study of a search, and the `machine` that its latencies depend on."""
    return StudySpec(
        facts=search_spec(sweep, objectives, seed, machine),
        where={name: value for name, value in sweep.fixed.items() if is_location(name)},
        method=sweep.method,
        command=command,
        created=now(),
        moist=runs.version(),
    )


def search_spec(
    sweep: Sweep, objectives: Sequence[Objective], seed: int, machine: Machine | None = None
) -> SearchSpec:
    """Describe a search; where its data are is no part of it."""
    return SearchSpec(
        parameters=tuple(asdict(parameter) for parameter in sweep.parameters),
        fixed={name: value for name, value in sweep.fixed.items() if not is_location(name)},
        objectives=tuple(map(str, objectives)),
        seed=seed,
        machine=machine,
    )


def check_search(name: str, sweep: Sweep, needed: Iterable[str]) -> None:
    """Raise ConfigError, one line per mistake, for what a study of this name can't search.

    That is a name that can't be a file's, and values with which a trial is no model to select or
    lacks one of the `needed` quantities.
    """
    with raised_together() as mistakes:
        with noted(mistakes):
            check_name(name)
        for router in ends(sweep, "router"):
            with noted(mistakes):
                check_honest(router)
        with noted(mistakes):
            check_measured(needed, min(ends(sweep, "data.val_fraction")))
        if mistakes and not sweep.parameters:
            mistakes.append(f"a file that searches nothing is one run: `moist run @{sweep.path}`")


def sweep_of(spec: StudySpec, name: str) -> Sweep:
    """Rebuild the search that a study was made for, without its file."""
    parameters = tuple(
        Parameter(
            **{
                **one,
                "choices": tuple(one["choices"]),
                "when": {key: tuple(values) for key, values in one["when"].items()},
            }
        )
        for one in spec.facts.parameters
    )
    fixed = {**spec.facts.fixed, **spec.where}
    return Sweep(
        name, Path(name), spec.method, spec.objectives, fixed=fixed, parameters=parameters
    )


def continued(ref: StudyRef, study: StoredStudy | Study, spec: StudySpec) -> StudySpec:
    """Return the spec to store once this search begins or continues a study.

    The command is the latest: it is the one to continue with. Raises ConfigError, naming what
    differs, when the study was made for another search, from other data or weights, or timed on
    another machine.
    """
    if FACTS not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise ConfigError(
                f"study `{ref.name}` was not made by moist", "choose another `--study`"
            )
        return spec
    old = spec_of(study)
    _check_search(ref, old, spec)
    _check_machine(ref, old.facts.machine, spec.facts.machine)
    check_content(ref, old, spec)
    _check_stages(ref, old, spec.installed)
    facts = old.facts
    if not facts.machine:
        facts = spec.facts.model_copy(update={"fixed": facts.fixed})
    kept = {"facts": facts, "created": old.created, "moist": old.moist, "stages": old.stages}
    return spec.model_copy(update=kept | {"content": spec.content or old.content})


def _check_search(ref: StudyRef, old: StudySpec, new: StudySpec) -> None:
    """Compare the searches of two specs; explain each parameter in which they differ."""
    if _comparable(old) == _comparable(new):
        return
    before, after = _described(old.facts), _described(new.facts)
    changes = [
        f"`{name}` was {before.get(name, 'not set')}; now it is {after.get(name, 'not set')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    changes = changes or ["its parameters were in another order"]
    raise ConfigError(
        "\n  ".join([f"study `{ref.name}` was made for another search:", *changes]),
        "continue it with the file and the overrides it was made with"
        f" (`{ref.locate(old.command)}`), or {NEW_NAME}",
    )


def _comparable(spec: StudySpec) -> dict[str, Any]:
    """Return what must not differ; a key fixed at its default is equal to one not fixed."""
    facts = spec.facts.model_dump(mode="json", exclude={"machine"})
    return facts | {"fixed": flat(Config()) | facts["fixed"]}


def _described(facts: SearchSpec) -> dict[str, str]:
    """Describe the values of each key, the objectives and the sampler's seed."""
    fixed = flat(Config()) | facts.fixed
    return {
        **{name: str(value) for name, value in fixed.items()},
        **{one["name"]: _domain(one) for one in facts.parameters},
        "--objective": ", ".join(facts.objectives),
        "--seed": str(facts.seed),
    }


def _domain(parameter: Mapping[str, Any]) -> str:
    """Describe the values of a searched parameter, and its condition."""
    if parameter["choices"]:
        found = f"one of {', '.join(map(str, parameter['choices']))}"
    else:
        found = f"{parameter['low']} to {parameter['high']}"
        found += f" in steps of {step}" if (step := parameter["step"]) else ""
        found += ", drawn by its logarithm" if parameter["log"] else ""
    when = [f"{key}={' or '.join(map(str, one))}" for key, one in parameter["when"].items()]
    return found + (f", when {' and '.join(when)}" if when else "")


def check_content(ref: StudyRef, old: StudySpec, new: StudySpec) -> None:
    """Compare the data and weights of two specs, unless one of them does not know its own."""
    if not (old.content and new.content):
        return
    for name in {**old.content, **new.content}:
        before, after = (one.content.get(name, NO_CONTENT) for one in (old, new))
        if before.key != after.key:
            raise ConfigError(
                f"study `{ref.name}` was made from other {name}: {before.text}; now {after.text}",
                f"restore what it was made from, or {NEW_NAME}",
            )


def _check_stages(ref: StudyRef, old: StudySpec, installed: Mapping[str, int]) -> None:
    """Compare stage versions, unless the caller trains nothing and so knows none."""
    if not installed:
        return
    changed = [
        f"`{name}` was version {version}, is {installed.get(name, 'gone')}"
        for name, version in old.stages.items()
        if installed.get(name) != version
    ]
    if changed:
        raise ConfigError(
            f"study `{ref.name}` was made with other stages: {'; '.join(changed)}: new trials"
            " can't be compared with its own",
            f"continue it with moist {old.moist} as it was then, or {NEW_NAME}",
        )


def _check_machine(ref: StudyRef, old: Machine | None, new: Machine | None) -> None:
    """Compare machines; studies that select by no time, and the earliest ones, store none."""
    if old and new and old != new:
        raise ConfigError(
            f"the latencies of study `{ref.name}` were measured on {old};"
            f" this command would measure them on {new}",
            f"measure them as before (`--threads {old.threads}`, `--devices`), or {NEW_NAME}",
        )
