"""Results as pandas data frames, and as the CSV of every `--csv`.

Columns that are keys of the config have their dotted names; units are those of the records.
pandas takes a second to import, so that it is imported only here and only when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moist.results.aggregate import Averaged
from moist.results.objectives import TEST
from moist.results.report import OperatingPoint
from moist.results.trials import Trial

if TYPE_CHECKING:
    import pandas as pd


def trial_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return one row per trial of a study.

    Columns: `trial` (its number); the quantities (`accuracy` on validation images, `mflops`, ...);
    accuracies on the test split as `test_NAME`; the parameters; `key` of the run; `state`;
    `seconds` computed and `saved` by reuse; `reason` of a pruned, failed or reused trial; the
    `command` that repeats its run. A trial that is not complete has no quantities.
    """
    return frame(
        {
            "trial": trial.number,
            **trial.quantities,
            **{f"test_{name}": value for name, value in trial.reported.items()},
            **trial.params,
            "key": trial.key,
            "state": trial.state,
            "seconds": trial.seconds,
            "saved": trial.saved,
            "reason": trial.reason,
            "command": trial.command,
        }
        for trial in trials
    )


def setting_frame(rows: Iterable[Averaged]) -> pd.DataFrame:
    """Return one row per setting of `averaged`.

    Columns: the parameters in which settings differ, then mean, standard deviation and number of
    runs of each measure, as `accuracy_mean`, `accuracy_sd` and `accuracy_n`. Accuracies on the
    test split are called `test_NAME`.
    """
    return frame(
        row.params
        | {
            f"{name.replace(TEST, 'test_')}_{part}": value
            for name, spread in row.values.items()
            for part, value in spread.model_dump().items()
        }
        for row in rows
    )


def curve_frame(points: Sequence[OperatingPoint]) -> pd.DataFrame:
    """Return one row per threshold, by rising deferral; columns are `OperatingPoint`'s fields."""
    return frame(point.model_dump() for point in points)


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a data frame, its columns in the order in which they first appear.

    A column of whole numbers or of booleans stays one where some rows have no value; a column
    of different types, as `k` with a value `auto`, is of Python objects.
    """
    import pandas as pd

    listed = list(rows)
    names = dict.fromkeys(name for row in listed for name in row)
    columns = {name: [row.get(name) for row in listed] for name in names}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=_dtype(values)) for name, values in columns.items()}
    )


def _dtype(values: Sequence[Any]) -> str:
    """Return pandas' name for the type of a column."""
    kinds = {type(value) for value in values if value is not None}
    missing = None in values
    if kinds == {int}:
        return "Int64" if missing else "int64"
    if kinds == {bool}:
        return "boolean" if missing else "bool"
    if kinds and kinds <= {int, float}:
        return "float64"
    return "str" if kinds == {str} else "object"
