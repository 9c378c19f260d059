"""A driver's storage knows from memory what is in the database."""

from collections.abc import Iterator

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from moist.study.sole_writer import SoleWriter

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.floats(allow_nan=False)
SPACE = {
    "width": IntDistribution(1, 9),
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "kind": CategoricalDistribution(["a", None, 2]),
}
ATTRS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | FINITE | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=3,
)
NAMES = st.sampled_from(["a", "b", "constraints:x"])
EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.none()),
    st.tuples(st.just("enqueue"), ATTRS),
    st.tuples(st.just("param"), st.sampled_from(sorted(SPACE))),
    st.tuples(st.just("user"), st.tuples(NAMES, ATTRS)),
    st.tuples(st.just("system"), st.tuples(NAMES, ATTRS)),
    st.tuples(st.just("study"), st.tuples(NAMES, ATTRS)),
    st.tuples(st.just("report"), st.tuples(st.integers(0, 2), st.floats())),
    st.tuples(st.just("complete"), VALUES),
    st.tuples(st.just("fail"), st.none()),
)


def facts(trial: FrozenTrial) -> list[object]:
    names = ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs")
    times = trial.datetime_start, trial.datetime_complete
    steps = {step: repr(value) for step, value in trial.intermediate_values.items()}
    return [*(getattr(trial, name) for name in names), steps, *times]


def same(study: optuna.Study, reader: RDBStorage) -> None:
    """Check that what the storage knows is what another process reads."""
    fresh = reader.get_all_trials(study._study_id)
    assert [*map(facts, study.trials)] == [*map(facts, fresh)]
    stored = reader.get_study_system_attrs(study._study_id)
    assert study._storage.get_study_system_attrs(study._study_id) == stored
    for one in fresh:
        assert facts(study._storage.get_trial(one._trial_id)) == facts(one)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return f"sqlite:///{tmp_path_factory.mktemp('study')}/studies.db"


@pytest.fixture(scope="module")
def reader(url: str) -> Iterator[RDBStorage]:
    """Optuna's own storage of the same database, which reads everything anew."""
    database = RDBStorage(url)
    yield database
    database.engine.dispose()


@pytest.fixture
def storage(url: str) -> Iterator[SoleWriter]:
    database = RDBStorage(url)
    yield SoleWriter(database)
    database.engine.dispose()


def follow(study: optuna.Study, running: list[int], what: str, about: object) -> None:
    """Do one thing to a study, to the last of the `running` trials."""
    storage = study._storage
    if what == "ask":
        running.append(study.ask()._trial_id)
    elif what == "enqueue":
        study.enqueue_trial({"width": 3}, user_attrs={"why": about})
    elif what == "study":
        storage.set_study_system_attr(study._study_id, *about)
    elif running:
        last = running[-1]
        if what == "param" and about not in storage.get_trial(last).params:
            value = SPACE[about].to_internal_repr({"width": 5, "lr": 0.1, "kind": 2}[about])
            storage.set_trial_param(last, about, value, SPACE[about])
        elif what == "user":
            storage.set_trial_user_attr(last, *about)
        elif what == "system":
            storage.set_trial_system_attr(last, *about)
        elif what == "report":
            storage.set_trial_intermediate_value(last, *about)
        elif what == "complete":
            storage.set_trial_state_values(running.pop(), TrialState.COMPLETE, [about])
        elif what == "fail":
            storage.set_trial_state_values(running.pop(), TrialState.FAIL)


@settings(max_examples=40)
@given(blocks=st.lists(st.lists(EVENTS, max_size=6), max_size=4))
def test_memory_equals_the_database_after_every_transaction(url, reader, blocks):
    database = RDBStorage(url, skip_table_creation=True)
    storage = SoleWriter(database)
    study = optuna.create_study(storage=storage)
    running: list[int] = []
    for block in blocks:
        with storage.together():
            for what, about in block:
                follow(study, running, what, about)
        same(study, reader)
    for what, about in [("ask", None), ("param", "lr"), ("system", ("a", 1)), ("complete", 0.5)]:
        follow(study, running, what, about)
        same(study, reader)
    database.engine.dispose()


def test_trials_of_another_driver_are_read_once(storage, reader, monkeypatch):
    before = optuna.create_study(storage=reader, study_name="some")
    before.enqueue_trial({"width": 3})
    before.tell(before.ask(), 1.0)
    study = optuna.load_study(study_name="some", storage=storage)
    assert len(study.trials) == 1
    monkeypatch.setattr(storage._backend, "_get_trials", None)  # it would be called by each draw
    study.enqueue_trial({"width": 5}, user_attrs={"retry": (1, 2)})
    for number in range(1, 4):
        trial = study.ask()
        trial.suggest_int("width", 1, 9)
        if number < 3:
            study.tell(trial, float(number))
    same(study, reader)
    assert [one.state.name for one in study.trials] == [*["COMPLETE"] * 3, "RUNNING"]


def test_others_see_all_of_a_block_or_nothing(storage, reader):
    study = optuna.create_study(storage=storage, study_name="blocks")
    trial = study.ask()
    seen = []
    with pytest.raises(ZeroDivisionError), storage.together():
        trial.set_user_attr("lost", 1)
        raise ZeroDivisionError
    with storage.together():
        trial.set_user_attr("kept", 1)
        study.tell(trial, 1.0)
        seen.append(other(reader).trials[0])
    seen.append(other(reader).trials[0])
    assert [(one.state.name, one.user_attrs) for one in seen] == [
        ("RUNNING", {}), ("COMPLETE", {"kept": 1})
    ]  # fmt: skip


def other(reader: RDBStorage) -> optuna.Study:
    return optuna.load_study(study_name="blocks", storage=reader)


def test_what_optuna_refuses_is_refused(storage):
    study = optuna.create_study(storage=storage)
    study.add_trial(
        create_trial(value=1.0, params={"width": 3}, distributions={"width": SPACE["width"]})
    )
    trial = study.ask()
    with pytest.raises(ValueError, match="kind"):
        trial.suggest_categorical("width", ["a"])
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        trial.set_user_attr("late", 1)
