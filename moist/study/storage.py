"""A study's database: opened, its tables created once, its trials read by anybody.

An Optuna study in any storage that Optuna takes. Only its driver writes (`ledger.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.errors import ConfigError, did_you_mean
from moist.results.objectives import Objective, parse_objectives
from moist.results.report import Machine, Record
from moist.results.trials import State, Trial
from moist.study.leases import turn
from moist.study.ref import StudyRef

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

FACTS, ASKED, RUN, ATTEMPTS = "moist", "asked", "run", "attempts"
"""Attributes: of a study; of a trial once asked, when told, and whenever a worker is lost."""

STATES: dict[str, State] = {
    "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running",
    "WAITING": "waiting",
}  # fmt: skip


class NoStudy(ConfigError):
    """There is no study of that name."""


class Facts(Record):
    """What is searched: two studies of one name that differ in it must not mix.

    `machine` is what latencies are taken on, where one of the objectives is a latency.
    """

    parameters: tuple[dict[str, Any], ...]
    fixed: dict[str, Any]
    objectives: tuple[str, ...]
    seed: int
    machine: Machine | None = None


class Described(Record):
    """A study's facts, where its files are, and the command that continues it."""

    facts: Facts
    where: dict[str, Any]
    method: str
    command: str
    created: str
    moist: str

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return parse_objectives(self.facts.objectives)


def open_storage(ref: StudyRef, keep: bool = False) -> RDBStorage:
    """Optuna's storage, its tables created once. SQLite writes ahead and waits for its turn.

    Who wants to `keep` connections open disposes of the engine. Raises StoreError when the
    database can't be reached or written.
    """
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy import NullPool, event

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # it logs the traceback of a Ctrl-C that finds it at work, and raises it all the same
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if ref.is_file else {}
    options |= {} if keep else {"poolclass": NullPool}
    with ref.translated_errors(ImportError, RuntimeError), turn(ref):
        storage = RDBStorage(ref.url.render_as_string(hide_password=False), options)
        if ref.is_file:
            event.listen(storage.engine, "connect", _write_ahead)
            storage.engine.dispose()
            storage.engine.connect().close()  # who switches to it must be alone
    return storage


def _write_ahead(connection: Any, _record: Any) -> None:
    """Readers and the writer don't block each other; a power failure may cost the last trial."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def load(ref: StudyRef) -> tuple[Described, list[Trial]]:
    """A study and its trials, in order. Raises ConfigError, listing what there is."""
    study = find(ref)
    described = Described.model_validate(study.user_attrs[FACTS])
    return described, trials_of(study, described.objectives)


def find(ref: StudyRef) -> Study:
    """Optuna's study, to read. Raises ConfigError unless moist made one of that name here."""
    study = existing(ref)
    if FACTS not in study.user_attrs:
        raise ConfigError(f"study `{ref.name}` was not made by moist", "choose another `--study`")
    return study


def existing(ref: StudyRef) -> Study:
    """Optuna's study, whoever made it. Raises NoStudy, listing what there is."""
    import optuna

    name, url = ref.name, ref.url
    start = f"start one: `{ref.locate('moist sweep optuna sweeps/quickstart.yaml')}`"
    if ref.is_file and not Path(url.database or "").exists():
        raise NoStudy(f"no study `{name}`: there is no database `{url.database}`", start)
    storage = open_storage(ref)
    names = optuna.get_all_study_names(storage)
    if name not in names:
        hint = did_you_mean(name, sorted(names)) if names else start
        raise NoStudy(f"no study `{name}` in `{url.render_as_string()}`", hint)
    return optuna.load_study(study_name=name, storage=storage)


def trials_of(study: Study, objectives: Sequence[Objective]) -> list[Trial]:
    """Its trials, in order."""
    return [trial_of(one, objectives) for one in study.get_trials(deepcopy=False)]


def trial_of(frozen: FrozenTrial, objectives: Sequence[Objective]) -> Trial:
    """Optuna's trial as a record."""
    state = STATES[frozen.state.name]
    values = frozen.values if state == "complete" else []
    return Trial(
        number=frozen.number,
        state=state,
        params=frozen.params or frozen.system_attrs.get("fixed_params", {}),
        values=dict(zip((o.name for o in objectives), values, strict=False)),
        constraints=frozen.constraints,
        attempts=tuple(frozen.user_attrs.get(ATTEMPTS, ())),
        asked=ASKED in frozen.user_attrs,
        retry_of=frozen.user_attrs.get("retry_of"),
        **frozen.user_attrs.get(RUN, {}),
    )
