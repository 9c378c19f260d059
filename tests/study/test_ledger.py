"""What Optuna's own tools read and draw of a study."""

import inspect
import itertools

import optuna
import pytest
import toy
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from moist.results.objectives import parse_objectives
from moist.study.ledger import in_memory
from moist.study.samplers import suggest
from moist.study.spec import study_spec
from moist.study.storage import trials_of
from moist.sweepfile import read_sweep

PLOTS = [name for name in optuna.visualization.__all__ if name.startswith("plot_")]
SLOW = {"plot_param_importances", "plot_terminator_improvement"}  # they import SciPy and torch
OF_ONE = {"plot_terminator_improvement"}
OF_SEVERAL = {"plot_hypervolume_history", "plot_pareto_front"}
COUNT = 22
"""Trials: enough for each plot, importances and the terminator's among them."""


@pytest.fixture(scope="module", params=["accuracy", "accuracy mflops"], ids=["one", "two"])
def study(request, tmp_path_factory):
    """Make a study of drawn trials, as a driver does: complete, pruned and failed ones."""
    path = tmp_path_factory.mktemp("home") / "some.yaml"
    path.write_text(toy.SWEEP)
    sweep, objectives = read_sweep(path), parse_objectives(request.param.split())
    ledger = in_memory(study_spec(sweep, objectives, 0, "moist"))
    for index in range(COUNT):
        number, params = ledger.ask(
            RandomSampler(index), lambda trial: suggest(sweep, trial), {"index": index}
        )
        how = {"seconds": 1.5, "saved": 0.5, "command": f"moist run {'k=2 ' * index}"}
        if index == 3:
            ledger.prune(number, "not worth it", **how)
        elif index == 4:
            ledger.fail(number, "StageError: it broke\n" + 200 * "x")
        else:
            found = {"accuracy": 1 / (1 + params["temperature"]), "latency_ms": 0.5}
            found["mflops"] = float(params["hidden_width"])
            for epoch in (1, 2, 3):
                ledger.report(number, epoch, found["accuracy"] * epoch / 3)
            ledger.complete(number, found, key=f"{index:032}", reported={"accuracy": 0.25}, **how)
    return ledger.study, trials_of(ledger.study, objectives)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore:PedAnova")  # it explains the worst, if no target is given
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PLOTS],
)
def test_every_plot_of_optuna_draws_a_study(study, name):
    found, _ = study
    draw, several = getattr(optuna.visualization, name), len(found.directions) > 1
    takes = inspect.signature(draw).parameters
    given = {}
    if several and "target" in takes:
        given = {"target": lambda trial: trial.values[0], "target_name": "accuracy"}
    if "reference_point" in takes:
        given = {"reference_point": [0.0, 1000.0]}
    if name in (OF_ONE if several else OF_SEVERAL):
        with pytest.raises(ValueError, match="objective"):
            draw(found, **given)
        return
    drawn = draw(found, **given)
    assert drawn.data and any(len(trace.to_plotly_json()) > 1 for trace in drawn.data)


def test_values_attributes_and_epochs_have_names_and_numbers(study):
    found, trials = study
    names = found.metric_names
    assert names == [*trials[0].values] and len(names) == len(found.directions)
    table = found.trials_dataframe()
    first = table.iloc[0]
    quantities = trials[0].quantities
    assert {"accuracy", "mflops", "latency_ms"} == quantities.keys()
    for name, value in quantities.items():
        value_of = f"{'value' if len(names) == 1 else 'values'}_{name}"
        assert first[value_of if name in names else f"user_attrs_{name}"] == value
    assert first["user_attrs_test_accuracy"] == 0.25 and first["user_attrs_latency_ms"] == 0.5
    assert first["user_attrs_key"] == f"{0:032}" and first["user_attrs_seconds"] == 1.5
    assert table["user_attrs_reason"][3] == "not worth it"
    done = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    assert all(list(trial.intermediate_values) == [1, 2, 3] for trial in done)
    # optuna-dashboard breaks no line of an attribute
    attributes = itertools.chain(*(trial.user_attrs.items() for trial in found.trials))
    assert all(len(f"{name} {value}") < 110 for name, value in attributes)


def test_a_trial_is_read_back_whole(study):
    _, trials = study
    assert [trial.state for trial in trials].count("complete") == COUNT - 2
    assert trials[4].reason == "StageError: it broke\n" + 200 * "x"
    assert trials[-1].command == f"moist run {'k=2 ' * (COUNT - 1)}"
    assert trials[0].reported == {"accuracy": 0.25} and trials[0].key == f"{0:032}"
