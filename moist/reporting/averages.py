"""Averages of a study's trials as tables. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moist.reporting.listing import HEADS, plus_minus, settings
from moist.reporting.terminal import print_table
from moist.results.aggregate import Averaged
from moist.results.objectives import TEST


def print_averages(study: str, rows: Sequence[Averaged], across: str | None = None) -> None:
    """One row a setting, mean ± sd; with `across` a parameter whose values lie side by side."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    places = list(dict.fromkeys(_place(row, across) for row in rows))
    lines: dict[str, dict[Any, Averaged]] = {}
    for row in rows:
        label = settings({name: value for name, value in row.params.items() if name != across})
        lines.setdefault(label or "all", {})[_place(row, across)] = row
    shown = [
        [label, _counts(line), *(_cell(line.get(at), name) for at in places for name in names)]
        for label, line in lines.items()
    ]
    before = ["" if at is None else f"{at}: " for at in places]
    heads = [f"{value}{head(name)}" for value in before for name in names]
    beside = "" if across is None else f", by {across}"
    print_table(f"{study}: mean ± sd of n runs{beside}", ["parameters", "n", *heads], shown)


def _place(row: Averaged, across: str | None) -> Any:
    """The value whose column a setting is in; without the parameter it is in one of its own."""
    return None if across is None else row.params.get(across, "-")


def _counts(line: dict[Any, Averaged]) -> str:
    """How many runs: `3`, or `2-3` where a cell has less."""
    found = {one.n for row in line.values() for one in row.values.values()} or {0}
    return "-".join(map(str, sorted({min(found), max(found)})))


def _cell(row: Averaged | None, name: str) -> str:
    if row is None or name not in row.values:
        return "-"
    return plus_minus("accuracy" if name.startswith(TEST) else name, row.values[name])


def head(name: str) -> str:
    """A number's column: `test %` of the model, `test %, student` of what stands beside it."""
    if not name.startswith(TEST):
        return HEADS[name]
    of = name.removeprefix(TEST)
    return "test %" if of == "accuracy" else f"test %, {of}"
