"""Tables on a terminal of any width: no value is cut or changed."""

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moist.reporting.terminal import print_table

WORD = st.text("ab=._/-:[]1é漢", min_size=1, max_size=12)
CELL = st.lists(WORD, min_size=1, max_size=4).map(" ".join)
ESCAPE = re.compile(r"\x1b\[[\d;]*m")


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    lines = st.lists(CELL, min_size=(n := draw(st.integers(1, 6))), max_size=n)
    return draw(lines), draw(st.lists(lines, max_size=4))


def printed(columns: int, heads, rows, title: str = "") -> str:
    """Return what a terminal of that many columns gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", str(columns))
        with redirect_stdout(out := StringIO()):
            print_table(title, heads, rows)
    return ESCAPE.sub("", out.getvalue())


@given(table=tables(), columns=st.integers(8, 120))
def test_every_word_of_a_table_is_printed_whole_and_as_it_is(table, columns):
    heads, rows = table
    lines = printed(columns, heads, rows).splitlines()
    words = [word for line in lines for word in line.split()]
    for row in rows:
        for head, cell in zip(heads, row, strict=True):
            assert all(word in words for word in cell.split()) or f"{head}: {cell}" in lines


@pytest.mark.parametrize("columns", [40, 80])
def test_a_title_and_a_value_longer_than_the_line_are_printed_whole(columns):
    title, path = "study-" * 20, "/data/" + "x" * 200
    lines = printed(columns, ["run", "root"], [["1", path]], title).splitlines()
    assert title in lines and f"root: {path}" in lines


def test_two_members_differ_on_a_terminal_of_80_columns():
    heads = ["trial", "val %", "MFLOPs", "ms, batch 1", "test %", "parameters", "run"]
    rows = [
        [
            "7",
            "70.42",
            "0.03998",
            "0.635",
            "70.56",
            f"k=4 routing.hidden_width={width}",
            "002b045e",
        ]
        for width in (16, 128)
    ]
    text = printed(80, heads, rows)
    assert "routing.hidden_width=16 " in text and "routing.hidden_width=128 " in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "hidden_width=128\nrun: 002b045e" in printed(40, heads, rows)
