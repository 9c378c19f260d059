"""Results as data frames: a row each, documented columns, and types that fit."""

import pandas as pd

from moist.results.aggregate import Averaged, Spread
from moist.results.frames import curve_frame, frame, setting_frame, trial_frame
from moist.results.report import OperatingPoint
from moist.results.trials import Trial

COMPLETE = Trial(
    number=0,
    state="complete",
    params={"k": 3, "router": "cnn", "augment.flip": True},
    values={"accuracy": 0.1 + 0.2},
    quantities={"accuracy": 0.1 + 0.2, "mflops": 13.0},
    reported={"accuracy": 0.5, "teacher": 0.75},
    key="ab",
    command="moist run k=3",
    seconds=2.5,
)
PRUNED = Trial(number=1, state="pruned", params={"k": 4}, reason="over `mflops <= 10`", saved=1.0)


def test_a_study_has_one_row_a_trial():
    table = trial_frame([COMPLETE, PRUNED])
    assert list(table) == [
        "trial", "accuracy", "mflops", "test_accuracy", "test_teacher", "k", "router",
        "augment.flip", "key", "state", "seconds", "saved", "reason", "command",
    ]  # fmt: skip
    assert list(table["trial"]) == [0, 1] and list(table["k"]) == [3, 4]
    assert table["accuracy"][0] == 0.1 + 0.2 and pd.isna(table["accuracy"][1])
    assert list(table["state"]) == ["complete", "pruned"] and table["reason"][1] == PRUNED.reason
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        "trial": "int64", "accuracy": "float64", "mflops": "float64", "test_accuracy": "float64",
        "test_teacher": "float64", "k": "int64", "router": "str", "augment.flip": "boolean",
        "key": "str", "state": "str", "seconds": "float64", "saved": "float64", "reason": "str",
        "command": "str",
    }  # fmt: skip


def test_csv_is_unrounded_and_has_empty_cells_for_missing_values():
    first, second = trial_frame([COMPLETE, PRUNED]).to_csv(index=False).splitlines()[1:]
    assert first.startswith("0,0.30000000000000004,13.0,0.5,0.75,3,cnn,True,ab,complete,2.5,0.0")
    assert second == "1,,,,,4,,,,pruned,0.0,1.0,over `mflops <= 10`,"


def test_a_whole_number_that_some_rows_lack_stays_whole():
    table = frame([{"k": 3, "n": 1}, {"n": 2}, {"k": "auto", "n": 3, "w": 8}])
    assert list(table) == ["k", "n", "w"]
    assert str(table["w"].dtype) == "Int64" and table["w"][2] == 8
    assert str(table["k"].dtype) == "object" and table["k"][0] == 3
    assert frame([]).empty


def test_a_table_of_averages_has_one_row_a_setting():
    values = {
        "mflops": Spread(mean=2.0, sd=0.5, n=3),
        "test/student": Spread(mean=0.7, sd=0.1, n=2),
    }
    table = setting_frame(
        [Averaged(params={"k": 2}, values=values), Averaged(params={"k": 3}, values={})]
    )
    assert table.iloc[0].to_dict() == {
        "k": 2, "mflops_mean": 2.0, "mflops_sd": 0.5, "mflops_n": 3,
        "test_student_mean": 0.7, "test_student_sd": 0.1, "test_student_n": 2,
    }  # fmt: skip
    assert str(table["mflops_n"].dtype) == "Int64" and pd.isna(table["mflops_n"][1])


def test_a_deferral_curve_has_one_row_a_threshold():
    points = [
        OperatingPoint(**dict.fromkeys(OperatingPoint.model_fields, value))
        for value in (0.25, 0.5)
    ]
    table = curve_frame(points)
    assert list(table) == list(OperatingPoint.model_fields)
    assert table.iloc[1].to_dict() == points[1].model_dump()
