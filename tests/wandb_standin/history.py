"""What a run has logged, as the API hands it out: whole, thinned, or only its end."""

from __future__ import annotations

import json
from typing import Any

from wandb_standin.records import EVENTS, HISTORY, OUTPUT, Run


def sampled(run: Run, info: Any, specs: list[str]) -> list[Any]:
    """Per spec, the rows that have all of its keys, evenly thinned to `samples`."""
    return [_sampled(run, json.loads(spec)) for spec in specs]


def _sampled(run: Run, spec: dict[str, Any]) -> list[dict[str, Any]]:
    keys = spec.get("keys") or []
    rows = [row for row in run.history if all(key in row for key in keys)]
    rows = [row for row in rows if spec.get("minStep", 0) <= row["_step"]]
    rows = thinned(rows, spec.get("samples") or 500)
    return [{key: row[key] for key in keys} for row in rows] if keys else rows


def thinned(rows: list[Any], samples: int) -> list[Any]:
    """At most `samples` of the rows, evenly spread, the last among them."""
    if len(rows) <= samples:
        return rows
    return [rows[(at + 1) * len(rows) // samples - 1] for at in range(samples)]


def history(run: Run, info: Any, samples: int | None = None, min_step: int = 0,
            max_step: int | None = None) -> list[str]:  # fmt: skip
    lines = [
        line
        for line, row in zip(run.stream(HISTORY), run.history, strict=True)
        if min_step <= row["_step"] and (max_step is None or row["_step"] < max_step)
    ]
    return thinned(lines, samples or 500)


def keys(run: Run, info: Any) -> Any:
    rows = run.history
    found = {key: {"typeCounts": [{"type": "any", "count": 1}]} for row in rows for key in row}
    return {"lastStep": rows[-1]["_step"] if rows else -1, "keys": found, "sets": []}


def _tail(run: Run, file: str) -> str:
    return json.dumps(run.stream(file)[-1:])


RESOLVERS: dict[str, dict[str, Any]] = {
    "Run": {
        "historyKeys": keys,
        "historyLineCount": lambda run, info: len(run.lines[HISTORY]),
        "logLineCount": lambda run, info: len(run.lines[OUTPUT]),
        "eventsLineCount": lambda run, info: len(run.lines[EVENTS]),
        "historyTail": lambda run, info: _tail(run, HISTORY),
        "eventsTail": lambda run, info: _tail(run, EVENTS),
        "history": history,
        "sampledHistory": sampled,
        "parquetHistory": lambda run, info, live_keys: {"parquet_urls": [], "live_data": []},
    },
}
