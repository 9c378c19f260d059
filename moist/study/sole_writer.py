"""Optuna's storage, for the one process that writes a study."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
)
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from sqlalchemy import Table


class Change(NamedTuple):
    """A row to insert, or one to update: that in which the columns `where` are as given."""

    table: Table
    row: dict[str, Any]
    where: tuple[str, ...] = ()


class SoleWriter(_CachedStorage):
    """A storage that reads each trial from the database once, and writes in few transactions.

    Optuna's own reads every running and queued trial anew before each draw, as other processes
    may have changed it, and writes each attribute in a transaction of its own. Here what is
    written is repeated in memory, which knows what the database has; and what is written in a
    block of `together` is one transaction, which ends with the block.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._complete = set[int]()
        """Studies all of whose trials have been read."""
        self._study_attrs = dict[int, dict[str, Any]]()
        self._changes: list[Change] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all that the block writes in one transaction, or nothing if it fails.

        Memory then knows more than the database: the study has to be opened again.
        """
        if self._changes is not None:
            yield
            return
        changes: list[Change] = []
        self._changes = changes
        try:
            yield
        finally:
            self._changes = None
        self._execute(changes)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Start a trial, or store one like the template."""
        if template_trial is not None:
            trial_id = super().create_new_trial(study_id, template_trial)
            self._add_trials_to_cache(study_id, [self._backend.get_trial(trial_id)])
            return trial_id
        self._read_trials_from_remote_storage(study_id)
        number, now = len(self._studies[study_id].trials), datetime.now()
        new = models.TrialModel(
            study_id=study_id, number=number, state=TrialState.RUNNING, datetime_start=now
        )
        with self._backend.engine.begin() as connection:
            done = connection.execute(_table(models.TrialModel).insert(), _columns(new))
        trial_id = int(done.inserted_primary_key[0])  # type: ignore[index]
        trial = FrozenTrial(
            number, TrialState.RUNNING, None, now, None, {}, {}, {}, {}, {}, trial_id
        )
        self._add_trials_to_cache(study_id, [trial])
        return trial_id

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        known = self._attrs(study_id)
        stored = json.dumps(value)
        row = {"study_id": study_id, "key": key, "value_json": stored}
        self._put(models.StudySystemAttributeModel, row, ("study_id", "key"), key in known)
        known[key] = json.loads(stored)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._attrs(study_id))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._known(trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Write a parameter. Raises ValueError if trials have it with another distribution."""
        self._updatable(trial_id)
        study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
        known = self._studies[study_id].param_distribution
        if param_name not in known:
            for trial in self._studies[study_id].trials.values():
                known.update(trial.distributions)
        check_distribution_compatibility(known.setdefault(param_name, distribution), distribution)
        row = {"param_name": param_name, "param_value": param_value_internal}
        row["distribution_json"] = distribution_to_json(distribution)
        self._put(models.TrialParamModel, {"trial_id": trial_id, **row})
        value = distribution.to_external_repr(param_value_internal)
        self._repeat(trial_id, "params", param_name, value)
        self._repeat(trial_id, "distributions", param_name, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write a state and what a trial found; return False for one that runs already."""
        trial = copy.copy(self._updatable(trial_id))
        if state == TrialState.RUNNING and trial.state != TrialState.WAITING:
            return False
        for objective, value in enumerate(values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            row = {"trial_id": trial_id, "objective": objective, "value": stored}
            self._put(models.TrialValueModel, {**row, "value_type": kind})
        trial.state, trial.values = state, values and [*map(float, values)]
        changed = models.TrialModel(trial_id=trial_id, state=state)
        if state == TrialState.RUNNING:
            changed.datetime_start = trial.datetime_start = datetime.now()
        if state.is_finished():
            changed.datetime_complete = trial.datetime_complete = datetime.now()
        self._put(models.TrialModel, _columns(changed), ("trial_id",), known=True)
        self._replace(trial)
        return True

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Write an intermediate value; it may be NaN."""
        known = step in self._updatable(trial_id).intermediate_values
        model = models.TrialIntermediateValueModel
        stored, kind = model.intermediate_value_to_stored_repr(intermediate_value)
        row = {"intermediate_value": stored, "intermediate_value_type": kind}
        self._put(model, {"trial_id": trial_id, "step": step, **row}, ("trial_id", "step"), known)
        self._repeat(trial_id, "intermediate_values", step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._put_attr(models.TrialUserAttributeModel, "user_attrs", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._put_attr(models.TrialSystemAttributeModel, "system_attrs", trial_id, key, value)

    def _put_attr(self, model: Any, name: str, trial_id: int, key: str, value: Any) -> None:
        known = key in getattr(self._updatable(trial_id), name)
        stored = json.dumps(value)
        row = {"trial_id": trial_id, "key": key, "value_json": stored}
        self._put(model, row, ("trial_id", "key"), known)
        self._repeat(trial_id, name, key, json.loads(stored))

    # the database

    def _put(
        self, model: Any, row: dict[str, Any], where: tuple[str, ...] = (), known: bool = False
    ) -> None:
        """Insert a row, or update the `known` one that has these columns."""
        with self.together():
            assert self._changes is not None
            self._changes.append(Change(_table(model), row, where if known else ()))

    def _execute(self, changes: Sequence[Change]) -> None:
        """Make changes, in their order, in one transaction."""
        from sqlalchemy import bindparam

        if not changes:
            return
        with self._backend.engine.begin() as connection:
            for table, row, where in changes:
                if not where:
                    connection.execute(table.insert(), row)
                    continue
                # a bound name may not be a column's that is set
                those = [table.c[name] == bindparam(f"its_{name}") for name in where]
                given = {f"its_{name}": row[name] for name in where}
                rest = {name: value for name, value in row.items() if name not in where}
                connection.execute(table.update().where(*those), given | rest)

    # the memory

    def _attrs(self, study_id: int) -> dict[str, Any]:
        if study_id not in self._study_attrs:
            self._study_attrs[study_id] = self._backend.get_study_system_attrs(study_id)
        return self._study_attrs[study_id]

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id not in self._complete:
            super()._read_trials_from_remote_storage(study_id)
            self._complete.add(study_id)

    def _known(self, trial_id: int) -> FrozenTrial:
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        return self._studies[study_id].trials[number]

    def _updatable(self, trial_id: int) -> FrozenTrial:
        """Return a trial. Raises UpdateFinishedTrialError if it has ended."""
        trial = self._known(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial

    def _repeat(self, trial_id: int, name: str, key: str | int, value: Any) -> None:
        """Repeat an entry in memory."""
        trial = copy.copy(self._known(trial_id))
        setattr(trial, name, {**getattr(trial, name), key: value})
        self._replace(trial)

    def _replace(self, trial: FrozenTrial) -> None:
        """Replace a trial in memory by its changed copy: a caller may hold the old one."""
        study_id, number = self._trial_id_to_study_id_and_number[trial._trial_id]
        self._studies[study_id].trials[number] = trial


def _table(model: Any) -> Table:
    table: Table = model.__table__
    return table


def _columns(model: Any) -> dict[str, Any]:
    """Return the columns of a row that are set, as Optuna's model converts them."""
    names = {
        "_datetime_start_utc": "datetime_start",
        "_datetime_complete_utc": "datetime_complete",
    }
    found = {names.get(name, name): value for name, value in vars(model).items()}
    return {name: value for name, value in found.items() if name in _table(model).c}
