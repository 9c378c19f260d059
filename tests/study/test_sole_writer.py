"""A driver's storage knows from memory what is in the database."""

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from moist.study.sole_writer import SoleWriter


def facts(trial: FrozenTrial) -> list[object]:
    names = ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs")
    times = trial.datetime_start, trial.datetime_complete
    return [*(getattr(trial, name) for name in names), trial.intermediate_values, *times]


def test_trials_in_memory_equal_those_in_the_database_and_are_not_read_again(
    tmp_path, monkeypatch
):
    url = f"sqlite:///{tmp_path}/studies.db"
    database = RDBStorage(url)
    before = optuna.create_study(storage=database, study_name="some")
    before.enqueue_trial({"width": 3, "kind": "a"})
    before.tell(before.ask(), 1.0)
    study = optuna.load_study(study_name="some", storage=SoleWriter(database))
    assert len(study.trials) == 1
    monkeypatch.setattr(database, "_get_trials", None)  # it would be called by each draw
    study.enqueue_trial({"width": 5, "kind": "b"}, user_attrs={"retry": (1, 2)})
    for number in range(1, 5):
        trial = study.ask()
        trial.suggest_int("width", 1, 9)
        trial.suggest_categorical("kind", ["a", "b"])
        study._storage.set_trial_system_attr(trial._trial_id, "constraints:size", -1.0)
        study._storage.set_trial_user_attr(trial._trial_id, "lost", [number])
        trial.report(0.5, 1)
        if number < 3:
            study.tell(trial, float(number))
    study.tell(3, state=TrialState.FAIL)
    fresh = optuna.load_study(study_name="some", storage=RDBStorage(url))
    assert [*map(facts, study.trials)] == [*map(facts, fresh.trials)]
    assert [one.state.name for one in study.trials] == [*["COMPLETE"] * 3, "FAIL", "RUNNING"]
    one = fresh.trials[1]
    assert facts(study._storage.get_trial(one._trial_id)) == facts(one)
    database.engine.dispose()
