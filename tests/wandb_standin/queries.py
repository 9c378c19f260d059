"""Filters in Mongo's language, orders and pages, as `wandb.Api` asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from wandb_standin.records import Run

COLUMNS: dict[str, Callable[[Run], Any]] = {
    "name": lambda run: run.name,
    "display_name": lambda run: run.display_name,
    "displayName": lambda run: run.display_name,
    "state": lambda run: run.state,
    "sweep": lambda run: run.sweep,
    "group": lambda run: run.group,
    "job_type": lambda run: run.job_type,
    "jobType": lambda run: run.job_type,
    "tags": lambda run: run.tags,
    "created_at": lambda run: run.created_at,
    "createdAt": lambda run: run.created_at,
    "heartbeat_at": lambda run: run.heartbeat_at,
    "heartbeatAt": lambda run: run.heartbeat_at,
}

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda found, value: value == found or value in each(found),
    "$ne": lambda found, value: value != found and value not in each(found),
    "$in": lambda found, values: any(one in values for one in each(found)),
    "$nin": lambda found, values: all(one not in values for one in each(found)),
    "$gt": lambda found, value: alike(found, value) and found > value,
    "$gte": lambda found, value: alike(found, value) and found >= value,
    "$lt": lambda found, value: alike(found, value) and found < value,
    "$lte": lambda found, value: alike(found, value) and found <= value,
    "$regex": lambda found, value: any(re.search(value, str(one)) for one in each(found)),
    "$exists": lambda found, value: (found is not None) == value,
}


def each(found: Any) -> list[Any]:
    """What a test may hold for: a list's members, or the one thing."""
    return found if isinstance(found, list) else [found]


def alike(found: Any, value: Any) -> bool:
    """Whether the two have an order, as Mongo sees it."""
    numbers = [isinstance(one, int | float) for one in (found, value)]
    texts = [isinstance(one, str) for one in (found, value)]
    return all(numbers) or all(texts)


def matches(run: Run, query: dict[str, Any]) -> bool:
    """Whether a run is what the query asks for; KeyError for a column or operator unknown here."""
    return all(_holds(run, key, wanted) for key, wanted in query.items())


def _holds(run: Run, key: str, wanted: Any) -> bool:
    if key == "$and":
        return all(matches(run, part) for part in wanted)
    if key == "$or":
        return any(matches(run, part) for part in wanted)
    found = column(run, key)
    tests = wanted if isinstance(wanted, dict) else {"$eq": wanted}
    return all(OPERATORS[name](found, value) for name, value in tests.items())


def column(run: Run, key: str) -> Any:
    """What a run has under a key of a filter or an order; None where it has nothing."""
    if key.startswith("summary_metrics."):
        return dig(run.summary, key.removeprefix("summary_metrics."))
    if key.startswith("config."):
        path = key.removeprefix("config.")
        found = dig(run.wrapped, path)
        return dig(run.config, path) if found is None or isinstance(found, dict) else found
    return COLUMNS[key](run)


def dig(tree: Any, path: str) -> Any:
    """The value at a dotted path, where a key may have dots of its own; None if none is there."""
    if not isinstance(tree, dict):
        return None
    if path in tree:
        return tree[path]
    parts = path.split(".")
    heads = [".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1)]
    head = next((head for head in heads if head in tree), None)
    return None if head is None else dig(tree[head], path[len(head) + 1 :])


def ordered(runs: list[Run], order: str | None) -> list[Run]:
    """By `+key` or `-key`, several apart by commas; what has no such key is last."""
    for part in reversed((order or "+created_at").split(",")):
        key = part.lstrip("+-")
        have = [run for run in runs if column(run, key) is not None]
        missing = [run for run in runs if column(run, key) is None]
        have.sort(key=lambda run: _rank(column(run, key)), reverse=part.startswith("-"))
        runs = have + missing
    return runs


def _rank(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value if isinstance(value, int | float) else str(value)


def page(items: Sequence[Any], first: int | None = None, after: str | None = None) -> Any:
    """A connection: `first` of the items, from where the cursor `after` says."""
    start = int(after or 0)
    end = len(items) if first is None else min(start + first, len(items))
    edges = [{"node": items[at], "cursor": str(at + 1)} for at in range(start, end)]
    info = {"end_cursor": str(end), "has_next_page": end < len(items)}
    return {"edges": edges, "page_info": info, "total_count": len(items)}
