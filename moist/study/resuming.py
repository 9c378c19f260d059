"""Whether a study may be continued: by the same search, and where times count, on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moist.config import Config, flat
from moist.errors import ConfigError
from moist.results.report import Machine
from moist.results.trials import Trial
from moist.study.ref import StudyRef
from moist.study.storage import FACTS, Described, NoStudy, existing, trials_of

if TYPE_CHECKING:
    from optuna import Study

ANOTHER = "give the new search a name of its own: `--study NAME`"


def resumed(ref: StudyRef, study: Study, asked: Described) -> Described:
    """What a study is remembered by once this search begins or continues it.

    The command is the latest: it is the one to continue with. Raises ConfigError, naming what
    differs, when the study was made for another search or timed on another machine.
    """
    known = study.user_attrs.get(FACTS)
    if known is None:
        if study.get_trials(deepcopy=False):
            raise ConfigError(
                f"study `{study.study_name}` was not made by moist", "choose another `--study`"
            )
        return asked
    old = Described.model_validate(known)
    _same_search(ref, old, asked)
    _same_machine(study.study_name, old.facts.machine, asked.facts.machine)
    facts = old.facts
    if not facts.machine:
        facts = asked.facts.model_copy(update={"fixed": facts.fixed})
    return asked.model_copy(
        update={"facts": facts, "created": old.created, "moist": old.moist},
    )


def earlier(ref: StudyRef, asked: Described) -> list[Trial]:
    """A study's trials, none if there is no such study; raises what `resumed` does."""
    try:
        study = existing(ref)
    except NoStudy:
        return []
    resumed(ref, study, asked)
    return trials_of(study, asked.objectives)


def _same_search(ref: StudyRef, old: Described, new: Described) -> None:
    before, after = _facts(old), _facts(new)
    for field in before:
        if before[field] != after[field]:
            raise ConfigError(
                f"study `{ref.name}` was made with other {field}:"
                f" {_difference(before[field], after[field])}",
                "continue it with the file and the overrides it was made with"
                f" (`{ref.locate(old.command)}`), or {ANOTHER}",
            )


def _facts(described: Described) -> dict[str, Any]:
    """Return what a search is known by. A key fixed at its default is as good as not fixed."""
    facts = described.facts.model_dump(mode="json", exclude={"machine"})
    return facts | {"fixed": flat(Config()) | facts["fixed"]}


def _same_machine(name: str, old: Machine | None, new: Machine | None) -> None:
    """Studies that don't select by a time, and those of old, know no machine."""
    if old and new and old != new:
        raise ConfigError(
            f"the latencies of study `{name}` were taken on {told(old)};"
            f" this start would take them on {told(new)}",
            f"take them as before (`--threads {old.threads}`, `--devices`), or {ANOTHER}",
        )


def told(machine: Machine) -> str:
    """What a time depends on, in a few words."""
    return (
        f"`{machine.device}` ({machine.threads} threads, torch {machine.torch}, {machine.system})"
    )


def _difference(before: Any, after: Any) -> str:
    """What two values of a fact don't share, in a few words."""
    if isinstance(before, Mapping):
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return "; ".join(f"`{k}` was {before.get(k)}, is {after.get(k)}" for k in keys[:3])
    if isinstance(before, list):
        before, after = (
            [one for one in some if one not in others]
            for some, others in ((before, after), (after, before))
        )
    return f"was {before}, is {after}"
