"""A study's database: read studies and their trials, or open it as Optuna does.

Any storage that Optuna takes. Only the study's driver writes to it (`ledger.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any

from moist.disk import warn
from moist.errors import ConfigError, MoistError, did_you_mean
from moist.results.objectives import Objective
from moist.results.queries import ranked
from moist.results.report import Record
from moist.results.trials import State, Trial
from moist.study.leases import driver_of, turn
from moist.study.reader import NoStudy, StoredStudy, StoredTrial, stored_study, study_names
from moist.study.ref import StudyRef
from moist.study.server import timeout
from moist.study.spec import FACTS, StudySpec, readable, spec_of
from moist.study.sqlite import connect

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

ASKED, ATTEMPTS, RETRY_OF = "asked", "attempts", "retry_of"
"""Optuna's user attributes of a trial: set when its parameters are drawn, whenever a worker is
lost, and when it repeats a failed trial."""
RUN, EARLIER_RUN = "moist:run", "run"
"""Optuna's system attribute of a trial that has ended, with all but its values; earlier versions
have it as a user attribute, which optuna-dashboard prints on one line of thousands of pixels."""

STATES: dict[str, State] = {
    "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running",
    "WAITING": "waiting",
}  # fmt: skip


class Overview(Record):
    """A study in short: its trials counted by state, the best by its first objective, the process
    that drives it now. `changed` is when a trial last began or ended, in UTC."""

    name: str
    objectives: tuple[str, ...]
    trials: dict[State, int]
    best: Trial | None
    changed: str
    driver: str | None


def open_storage(ref: StudyRef, write: bool = False) -> RDBStorage:
    """Open Optuna's storage to read it; or to `write`, which creates its tables once.

    Who writes keeps connections open, and must dispose of the engine. Raises StoreError when the
    database can't be reached, read or written.
    """
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy import NullPool, QueuePool

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # it logs the traceback of a Ctrl-C during its work, although it raises it, too
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"poolclass": QueuePool if write else NullPool}
    if ref.file:
        url = "sqlite://"
        options["creator"] = partial(connect, ref.file, write)
    else:
        url = ref.url.render_as_string(hide_password=False)
    with ref.translated_errors(ImportError, RuntimeError):
        if not ref.file:
            options["connect_args"] = timeout(ref)
        if not write:
            return RDBStorage(url, options, skip_table_creation=True)
        with turn(ref):
            storage = RDBStorage(url, options)
            if ref.file:
                storage.engine.dispose()
            return storage


def load(ref: StudyRef) -> tuple[StudySpec, list[Trial]]:
    """Read a study and its trials, in order. Raises ConfigError, listing similar names."""
    study = find(ref)
    spec = spec_of(study)
    return spec, trials_of(study, spec.objectives)


def overviews(ref: StudyRef) -> list[Overview]:
    """Summarize all studies of a database, the last changed first; the name in `ref` is not read.

    Warns of a study that can't be read. Optuna's studies that moist did not make are left out.
    """
    found = []
    for name in names(ref):
        one = replace(ref, name=name)
        try:
            if FACTS in (study := existing(one)).user_attrs:
                found.append(_overview(one, study))
        except MoistError as error:
            warn(f"study `{name}` is not listed: {error.args[0]}")
    return sorted(found, key=lambda one: one.changed, reverse=True)


def _overview(ref: StudyRef, study: StoredStudy) -> Overview:
    spec, frozen = spec_of(study), study.get_trials()
    trials = [trial_of(one, spec.objectives) for one in frozen]
    times = [time for one in frozen for time in (one.datetime_start, one.datetime_complete)]
    changes = [time.astimezone(UTC).isoformat(timespec="microseconds") for time in times if time]
    best = ranked((trial for trial in trials if trial.feasible), spec.objectives[0])
    return Overview(
        name=ref.name,
        objectives=spec.facts.objectives,
        trials=Counter(trial.state for trial in trials),
        best=best[0] if best else None,
        changed=max([spec.created, *changes]),
        driver=driver_of(ref),
    )


def names(ref: StudyRef) -> list[str]:
    """Return the names of all studies in a database; none if there is no database."""
    if ref.file and not ref.file.exists():
        return []
    try:
        return study_names(ref)
    except NoStudy:
        return []


def of_optuna(ref: StudyRef) -> Study:
    """Open a study as Optuna's own, to compute with it. Raises ConfigError as `find` does."""
    import optuna

    find(ref)
    return optuna.load_study(study_name=ref.name, storage=open_storage(ref))


def find(ref: StudyRef) -> StoredStudy:
    """Find a study to read it. Raises ConfigError unless moist made it."""
    study = existing(ref)
    if FACTS not in study.user_attrs:
        raise ConfigError(f"study `{ref.name}` was not made by moist", "choose another `--study`")
    return study


def existing(ref: StudyRef) -> StoredStudy:
    """Find a study, whether or not moist made it. Raises NoStudy, listing similar names."""
    start = f"start one: `{ref.locate('moist sweep optuna sweeps/quickstart.yaml')}`"
    if ref.file and not ref.file.exists():
        raise NoStudy(f"no study `{ref.name}`: there is no database `{ref.file}`", start)
    if (study := stored_study(ref)) is None:
        names = study_names(ref)
        hint = did_you_mean(ref.name, sorted(names)) if names else start
        raise NoStudy(f"no study `{ref.name}` in `{ref.shown}`", hint)
    return study


def trials_of(study: StoredStudy | Study, objectives: Sequence[Objective]) -> list[Trial]:
    """Read the trials of a study, in order."""
    return [trial_of(one, objectives) for one in study.get_trials(deepcopy=False)]


def trial_of(frozen: StoredTrial | FrozenTrial, objectives: Sequence[Objective]) -> Trial:
    """Convert Optuna's trial to a record. Raises StoreError if it can't be read."""
    state = STATES[frozen.state.name]
    values = (frozen.values or ()) if state == "complete" else ()
    with readable(f"trial {frozen.number}"):
        return Trial(
            number=frozen.number,
            state=state,
            params=frozen.params or frozen.system_attrs.get("fixed_params", {}),
            values=dict(zip((o.name for o in objectives), values, strict=False)),
            constraints=frozen.constraints,
            attempts=tuple(frozen.user_attrs.get(ATTEMPTS, ())),
            drawn=ASKED in frozen.user_attrs,
            retry_of=frozen.user_attrs.get(RETRY_OF),
            **(frozen.system_attrs.get(RUN) or frozen.user_attrs.get(EARLIER_RUN, {})),
        )
