"""The points of a search space: which parameters apply, how many points there are."""

from itertools import product
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_texts import HEAD, WIDTHS

from moist.config import Config, flat
from moist.errors import ConfigError
from moist.sweepfile import (
    Sweep,
    active,
    config_of,
    grid,
    problems,
    read_sweep,
    size,
)


def test_a_parameter_applies_only_where_its_condition_holds(read):
    found = read(WIDTHS)
    widths = found.parameters[1]
    assert widths.when == {"router": ("linear",)}
    assert active(found, {"router": "linear"}, widths)
    assert not active(found, {"router": "cnn"}, widths)
    assert not active(found, {}, widths)
    assert list(grid(found)) == [
        {"router": "cnn"},
        {"router": "linear", "routing.widths": "64"},
        {"router": "linear", "routing.widths": "32"},
    ]
    assert config_of(found, {"router": "cnn"}).routing.widths == Config().routing.widths


def test_a_constant_may_be_conditional_too(read):
    found = read(
        "joint.objective: {values: [hierarchical, students_only]}\n"
        "joint.mask_students: {value: false, when: {joint.objective: [students_only]}}"
    )
    assert found.fixed == {}
    configs = [config_of(found, point).joint for point in grid(found)]
    assert [(one.objective, one.mask_students) for one in configs] == [
        ("hierarchical", True),
        ("students_only", False),
    ]


def test_a_parameter_comes_after_what_it_depends_on_and_the_rest_as_in_the_file(read):
    found = read(
        "seed: {min: 0, max: 3}\nrouting.epochs: {min: 1, max: 2, when: {k: 2, router: linear}}\n"
        "router: {values: [cnn, linear], when: {k: [1, 2]}}\nhidden_width: {min: 1, max: 2}\n"
        "k: {min: 1, max: 3}"
    )
    names = [one.name for one in found.parameters]
    assert names == ["seed", "k", "router", "routing.epochs", "hidden_width"]


KEYS = ["k", "hidden_width", "seed", "teacher.epochs", "joint.epochs", "latency.repeats"]
Entries = dict[str, dict[str, Any]]


@st.composite
def spaces(draw: st.DrawFn) -> Entries:
    """Draw entries of whole numbers, some conditional on others, in any order."""
    entries: Entries = {}
    for name in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=5, unique=True)):
        some = draw(st.lists(st.integers(10, 13), min_size=1, max_size=3, unique=True))
        low, high = min(some), max(some)
        entry: dict[str, Any] = {"values": some}
        if low < high and draw(st.booleans()):
            entry = {"min": low, "max": high}
        elif len(some) == 1:
            entry = {"value": low}
        deciders = draw(st.lists(st.sampled_from([*entries] or [""]), max_size=2, unique=True))
        when = {
            key: draw(st.lists(st.sampled_from(domain(entries[key])), min_size=1, unique=True))
            for key in deciders
            if key
        }
        entries[name] = {**entry, "when": when} if when else entry
    return {name: entries[name] for name in draw(st.permutations([*entries]))}


def domain(entry: dict[str, Any]) -> list[int]:
    if "value" in entry:
        return [entry["value"]]
    return entry.get("values") or [*range(entry["min"], entry["max"] + 1)]


def points(entries: Entries) -> list[dict[str, int]]:
    """Return every point of a space: all combinations, without the keys that do not apply."""
    found = []
    for values in product(*map(domain, entries.values())):
        point = dict(zip(entries, values, strict=True))
        for _ in entries:
            point = {
                name: value
                for name, value in point.items()
                if all(point.get(key) in ok for key, ok in entries[name].get("when", {}).items())
            }
        if point not in found:
            found.append(point)
    return found


def constants(entries: Entries) -> set[str]:
    return {name for name, entry in entries.items() if "value" in entry and "when" not in entry}


def check_points(found: Sweep, entries: Entries) -> None:
    """Check that the grid has each of `points` once, and that each builds with its values."""
    expected = points(entries)
    searched = [
        {name: value for name, value in point.items() if name not in constants(entries)}
        for point in expected
    ]
    listed = list(grid(found))
    assert sorted(map(repr, map(sorted, map(dict.items, listed)))) == sorted(
        map(repr, map(sorted, map(dict.items, searched)))
    )
    assert size(found) == len(listed)
    assert {one.name for one in found.parameters} == {name for point in searched for name in point}
    whole = {repr(sorted(point.items())) for point in expected}
    for point in listed:
        config = flat(config_of(found, point))
        changed = {**found.fixed, **point}
        assert config == {**flat(Config()), **changed}
        assert repr(sorted(changed.items())) in whole


@settings(deadline=None)
@given(spaces())
def test_a_grid_has_every_combination_that_applies_once(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("space") / "some.yaml"
    path.write_text(HEAD + yaml.safe_dump({"parameters": entries}, sort_keys=False))
    never = {name for name in entries if not any(name in point for point in points(entries))}
    lines = problems(path)
    assert {line.split("`")[1] for line in lines} == never
    assert all("can never hold" in line for line in lines)
    if not never:
        check_points(read_sweep(path), entries)


@settings(deadline=None)
@given(spaces(), st.data())
def test_fixing_a_parameter_leaves_the_points_of_the_space_without_it(
    tmp_path_factory, entries, data
):
    path = tmp_path_factory.mktemp("space") / "some.yaml"
    path.write_text(HEAD + yaml.safe_dump({"parameters": entries}, sort_keys=False))
    name = data.draw(st.sampled_from([*entries]))
    value = data.draw(st.sampled_from(domain(entries[name])))
    if not problems(path):
        found = read_sweep(path, [f"{name}={value}"])
        assert found.fixed[name] == value
        check_points(found, {**entries, name: {"value": value}})


@given(spaces())
def test_each_parameter_comes_after_those_it_depends_on(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("space") / "some.yaml"
    path.write_text(HEAD + yaml.safe_dump({"parameters": entries}, sort_keys=False))
    if not problems(path):
        found = read_sweep(path)
        before = set(found.fixed)
        for one in found.parameters:
            assert one.when.keys() <= before
            before.add(one.name)
        if not any("when" in entry for entry in entries.values()):
            assert [one.name for one in found.parameters] == [
                name for name in entries if name not in constants(entries)
            ]


def test_a_range_of_reals_has_no_size_and_no_grid(read):
    found = read("k: {min: 1, max: 3}\ntemperature: {min: 1.0, max: 2.0}")
    assert size(found) is None
    with pytest.raises(ConfigError, match="`temperature` is a range of reals"):
        grid(found)


def test_the_size_of_a_large_space_is_computed_without_enumerating_it(read):
    keys = ("teacher", "distill", "routing", "joint")
    entries = "\n".join(f"{key}.epochs: {{min: 1, max: 10000}}" for key in keys)
    assert size(read(entries)) == 10_000**4
