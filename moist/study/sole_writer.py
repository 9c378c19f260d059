"""Optuna's storage, for the one process that writes a study."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState


class SoleWriter(_CachedStorage):
    """A storage that reads a trial from the database once, and again when its state changes.

    Optuna's own reads every running and queued trial anew before each draw, as other processes
    may have changed it: half a second for 64 workers. What is written here is repeated in memory.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._complete = set[int]()
        """Studies all of whose trials have been read."""

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id not in self._complete:
            super()._read_trials_from_remote_storage(study_id)
            self._complete.add(study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._known(trial_id) or super().get_trial(trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Write a parameter, and repeat it in memory."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        value = distribution.to_external_repr(param_value_internal)
        self._repeat(trial_id, "params", param_name, value)
        self._repeat(trial_id, "distributions", param_name, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write a state, and read the trial again: the database adds the time."""
        done = super().set_trial_state_values(trial_id, state, values)
        if self._known(trial_id):
            study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
            self._add_trials_to_cache(study_id, [self._backend.get_trial(trial_id)])
        return done

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._repeat(trial_id, "intermediate_values", step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._repeat(trial_id, "user_attrs", key, json.loads(json.dumps(value)))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        self._repeat(trial_id, "system_attrs", key, json.loads(json.dumps(value)))

    def _known(self, trial_id: int) -> FrozenTrial | None:
        if trial_id not in self._trial_id_to_study_id_and_number:
            return None
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        return self._studies[study_id].trials[number]

    def _repeat(self, trial_id: int, name: str, key: str | int, value: Any) -> None:
        """Replace a trial in memory by one with another entry: a caller may hold the old one."""
        if (known := self._known(trial_id)) is None:
            return
        changed = copy.copy(known)
        setattr(changed, name, {**getattr(known, name), key: value})
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        self._studies[study_id].trials[number] = changed
