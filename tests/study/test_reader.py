"""What is read from Optuna's tables here is what Optuna reads."""

import itertools
from datetime import UTC

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from toy import ref

from moist.study.reader import stored_study, study_names
from moist.study.storage import open_storage

NUMBERS = itertools.count()
DISTRIBUTIONS = {
    "k": IntDistribution(2, 9),
    "width": IntDistribution(4, 512, log=True),
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "dropout": FloatDistribution(0.0, 0.5, step=0.1),
    "router": CategoricalDistribution(["linear", "größer 'x'", None, True, 3, 0.5]),
}
VALUES = {
    "k": st.integers(2, 9),
    "width": st.integers(4, 512),
    "lr": st.floats(1e-4, 1.0),
    "dropout": st.sampled_from([0.0, 0.1, 0.5]),
    "router": st.sampled_from(DISTRIBUTIONS["router"].choices),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ATTRIBUTES = st.dictionaries(st.text(min_size=1, max_size=9), JSON, max_size=3)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def frozen(draw, objectives):
    """Draw a trial as Optuna makes one, constraints in either of its forms."""
    names = draw(st.permutations(sorted(DISTRIBUTIONS)))[: draw(st.integers(0, 5))]
    state = draw(st.sampled_from(TrialState))
    old = {"constraints": draw(st.lists(FINITE, max_size=2))} if draw(st.booleans()) else {}
    return create_trial(
        state=state,
        values=[draw(st.floats(allow_nan=False)) for _ in range(objectives)]
        if state == TrialState.COMPLETE
        else None,
        params={name: draw(VALUES[name]) for name in names},
        distributions={name: DISTRIBUTIONS[name] for name in names},
        user_attrs=draw(ATTRIBUTES),
        system_attrs=draw(ATTRIBUTES) | old,
        constraints=draw(st.dictionaries(st.sampled_from(["mflops <= 2", "a:b"]), FINITE)),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def facts(trial):
    """Return what is read of a trial, such that NaN equals NaN and 1 differs from True and 1.0."""
    times = trial.datetime_start, trial.datetime_complete
    return (
        trial.number, trial.state.name, repr(trial.params), repr(trial.values),
        *(repr(sorted(one.items())) for one in (trial.user_attrs, trial.system_attrs)),
        trial.constraints, [time and time.astimezone(UTC) for time in times],
    )  # fmt: skip


@settings(max_examples=15)
@given(st.data())
def test_a_study_is_read_as_optuna_reads_it(home, data):
    objectives, name = data.draw(st.integers(1, 3)), f"study {next(NUMBERS)}"
    drawn = data.draw(st.lists(frozen(objectives), max_size=3))
    attributes = data.draw(ATTRIBUTES)
    storage = open_storage(ref(home), write=True)
    study = optuna.create_study(
        study_name=name, storage=storage, directions=["maximize"] * objectives
    )
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    study.add_trials(drawn)
    expected = study.get_trials()
    found = stored_study(ref(home, name))
    assert found.study_name in study_names(ref(home))
    assert repr(sorted(found.user_attrs.items())) == repr(sorted(study.user_attrs.items()))
    assert [facts(one) for one in found.get_trials()] == [facts(one) for one in expected]
    storage.engine.dispose()
