"""Runs are selected by conditions on any column, sorted, and compared."""

import pytest
from test_runs import report

from moist.config import Config
from moist.errors import ConfigError
from moist.store.comparison import difference, differing, selected, value
from moist.store.runs import Run, RunRecords


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    """Three runs, newest first: c without validation images, b, a."""
    records = RunRecords(tmp_path)
    made = {
        "a": (Config(k=2, teacher={"lr": 0.1}), {"val_accuracy": 0.8, "mflops": 3.0}),
        "b": (Config(k=3, router="linear"), {"val_accuracy": 0.9, "mflops": 10.0}),
        "c": (Config(k="auto"), {"val_accuracy": None, "mflops": 2.0}),
    }
    for key, (config, found) in made.items():
        records.save(
            command="moist run",
            config=config,
            report=report(key).model_copy(update=found),
            artifacts={"prepare": ("p",), "train_teacher": (f"t{key}",)},
        )
    return records.all()


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        (["val_accuracy>0.8"], "b"),
        (["val_accuracy >= 0.8"], "ba"),
        (["mflops<10", "val_accuracy!=none"], "a"),
        (["mflops<=10", "mflops>2.5"], "ba"),
        (["val_accuracy=none"], "c"),
        (["k=auto"], "c"),
        (["k!=auto"], "ba"),
        (["k>1"], "ba"),  # `auto` is no number
        (["router==linear"], "b"),
        (["teacher.lr=1e-1"], "a"),
        (["latency_ms.batch_1=0.1"], "cba"),
        (["created>2000", "key<b"], "a"),
        (["baselines.first.accuracy!=1"], None),
        (["accuracy"], None),
        (["accuracy>high"], None),
        (["k=0"], None),
    ],
)
def test_conditions_select_runs_by_values_of_the_column_s_type(runs, where, keys):
    if keys is None:
        with pytest.raises(ConfigError):
            selected(runs, where)
    else:
        assert "".join(run.key for run in selected(runs, where)) == keys


@pytest.mark.parametrize(
    ("sort", "keys"),
    [
        ("", "cba"),
        ("created", "cba"),
        ("created:min", "abc"),
        ("val_accuracy", "bac"),
        ("val_accuracy:min", "abc"),
        ("mflops", "cab"),
        ("mflops:max", "bac"),
        ("k", "abc"),
        ("mflops:up", None),
        ("flops", None),
    ],
)
def test_runs_are_sorted_by_a_column_and_those_without_a_value_come_last(runs, sort, keys):
    if keys is None:
        with pytest.raises(ConfigError):
            selected(runs, (), sort)
    else:
        assert "".join(run.key for run in selected(runs, (), sort)) == keys


def test_an_unknown_key_is_answered_with_the_nearest_column(runs):
    for words in ((["val_acuracy>1"], ""), ((), "val_acuracy")):
        with pytest.raises(ConfigError, match="did you mean `val_accuracy`"):
            selected(runs, *words)


def test_a_difference_has_what_differs_and_the_stages_that_are_shared(runs):
    _, b, a = runs
    found = difference(a, b)
    assert found.parameters == {
        "k": (2, 3),
        "router": (a.config["router"], "linear"),
        "teacher.lr": (0.1, b.config["teacher.lr"]),
    }
    assert found.figures == {"val_accuracy": (0.8, 0.9), "mflops": (3.0, 10.0)}
    assert found.shared == ("prepare",) and found.stages == {"train_teacher": (("ta",), ("tb",))}
    same = difference(a, a)
    assert not (same.parameters or same.figures or same.stages) and len(same.shared) == 2


def test_a_run_older_than_a_key_had_its_default(runs):
    old = runs[1].model_copy(update={"config": {"k": 3}})
    assert value(old, "hidden_width") == Config().hidden_width
    assert differing([runs[1], old]) == ["router"]
    assert differing([runs[2]]) == ["k", "teacher.lr"]
