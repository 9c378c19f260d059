"""Read studies from Optuna's tables, for commands that only read.

They import neither Optuna nor, for an SQLite file, SQLAlchemy: that takes longer than all else
that such a command does. Whoever writes, or computes with a study, uses Optuna's own storage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from math import inf
from typing import Any

from moist.errors import ConfigError, StoreError
from moist.study.ref import NEWER, StudyRef
from moist.study.server import connections, timeout
from moist.study.sqlite import connect

SCHEMA = "v3.2.0.a"
"""The version of Optuna's tables that is read here; those of another one are refused."""
CONSTRAINTS = "constraints"
"""Optuna's system attribute of all constraints; since Optuna 5 each has one of its own, too."""

Select = Callable[[str], Any]
"""Returns the rows of a query."""
TrialState = Enum("TrialState", ["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"])


class NoStudy(ConfigError):
    """No study has the given name."""


@dataclass
class StoredTrial:
    """A trial as it is stored, by the names of Optuna's `FrozenTrial`; times are in UTC."""

    number: int
    state: TrialState
    datetime_start: datetime | None
    datetime_complete: datetime | None
    params: dict[str, Any] = field(default_factory=dict)
    values: list[float] | None = None
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def constraints(self) -> dict[str, float]:
        """Return by how much the trial exceeds each limit, zero or less if it does not."""
        old = {str(i): value for i, value in enumerate(self.system_attrs.get(CONSTRAINTS) or ())}
        own, prefix = self.system_attrs, f"{CONSTRAINTS}:"
        return old | {k.removeprefix(prefix): own[k] for k in own if k.startswith(prefix)}


@dataclass(frozen=True)
class StoredStudy:
    """A study as it is stored, by the names of Optuna's `Study`."""

    ref: StudyRef
    study_id: int
    user_attrs: dict[str, Any]

    @property
    def study_name(self) -> str:
        return self.ref.name

    def get_trials(self, deepcopy: bool = False) -> list[StoredTrial]:
        """Read all trials, in order; nothing is shared with another call, whatever `deepcopy`.

        Their own rows are read first: what a trial that is complete then has is already stored.
        """
        with tables(self.ref) as select:
            of_study = f" WHERE study_id = {self.study_id}"
            columns = "trial_id, number, state, datetime_start, datetime_complete"
            found = {
                row[0]: StoredTrial(row[1], TrialState[row[2]], _time(row[3]), _time(row[4]))
                for row in select(f"SELECT {columns} FROM trials{of_study} ORDER BY trial_id")
            }

            def rows(columns: str, table: str) -> Iterator[tuple[StoredTrial, Any]]:
                """Select columns of a table that has rows for each trial, in their order."""
                query = f"SELECT t.trial_id, {columns} FROM {table} a JOIN trials t"
                query += f" ON a.trial_id = t.trial_id{of_study} ORDER BY 2"
                for trial_id, _, *row in select(query):
                    if trial_id in found:
                        yield found[trial_id], row

            for trial, (value, kind) in rows("objective, value, value_type", "trial_values"):
                trial.values = [*(trial.values or ()), INFINITE.get(kind, value)]
            for trial, (name, value, text) in rows(
                "param_id, param_name, param_value, distribution_json", "trial_params"
            ):
                trial.params[name] = _parameter(value, text)
            for kind in ("user", "system"):
                table = f"trial_{kind}_attributes"
                columns = f"trial_{kind}_attribute_id, a.key, value_json"
                for trial, (name, text) in rows(columns, table):
                    getattr(trial, f"{kind}_attrs")[name] = json.loads(text)
        return [*found.values()]


INFINITE = {"INF_POS": inf, "INF_NEG": -inf}


def _time(stored: str | datetime | None) -> datetime | None:
    """Return a time that is stored in UTC, which SQLite stores as text."""
    time = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return time and time.replace(tzinfo=UTC)


def _parameter(stored: float, distribution: str) -> Any:
    """Return the value of a parameter, which is stored as a number whatever its kind."""
    one = json.loads(distribution)
    if one["name"] == "CategoricalDistribution":
        return one["attributes"]["choices"][int(stored)]
    return int(stored) if one["name"].startswith("Int") else stored


def study_names(ref: StudyRef) -> list[str]:
    """Return the names of all studies in a database, in the order in which they were made."""
    with tables(ref) as select:
        return [name for (name,) in select("SELECT study_name FROM studies ORDER BY study_id")]


def stored_study(ref: StudyRef) -> StoredStudy | None:
    """Read a study, without its trials; None if there is none of this name."""
    with tables(ref) as select:
        studies = {name: key for key, name in select("SELECT study_id, study_name FROM studies")}
        if (key := studies.get(ref.name)) is None:
            return None
        query = f"SELECT a.key, value_json FROM study_user_attributes a WHERE study_id = {key}"
        return StoredStudy(ref, key, {name: json.loads(text) for name, text in select(query)})


@contextmanager
def tables(ref: StudyRef) -> Iterator[Select]:
    """Open a database to read it, which needs no lock and creates nothing.

    Raises NoStudy when it has no tables of Optuna's, StoreError when it can't be reached or read,
    or has them in another version.
    """
    with ref.translated_errors(ImportError), ExitStack() as stack:
        if ref.file:
            select: Select = stack.enter_context(closing(connect(ref.file, write=False))).execute
            query = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
            begun = select(query).fetchone() is not None
        else:
            from sqlalchemy import NullPool, inspect

            options = {"poolclass": NullPool, "connect_args": timeout(ref)}
            engine = stack.enter_context(connections(ref, **options))
            select = stack.enter_context(engine.connect()).exec_driver_sql
            begun = inspect(engine).has_table("alembic_version")
        # a row in the last table that Optuna creates says that all are there
        version = select("SELECT version_num FROM alembic_version").fetchone() if begun else None
        if version is None:
            raise NoStudy(f"no study `{ref.name}`: `{ref.shown}` has no tables of Optuna's")
        if version[0] != SCHEMA:
            (by,) = select("SELECT library_version FROM version_info").fetchone()
            raise StoreError(
                f"the database `{ref.shown}` has tables of version {version[0]} (set up by optuna"
                f" {by}), and moist reads those of {SCHEMA}",
                ref.upgrade if _numbers(version[0]) < _numbers(SCHEMA) else NEWER,
            )
        yield select


def _numbers(version: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", version)]
