"""Runs: told by `upsertBucket` and the file stream, read through `Run`'s fields."""

from __future__ import annotations

import json
from typing import Any

from wandb_standin import projects
from wandb_standin.files import File
from wandb_standin.queries import page
from wandb_standin.records import SUMMARY, Key, Refused, Run, now
from wandb_standin.state import State

TOLD = {
    "display_name": "display_name",
    "group_name": "group",
    "job_type": "job_type",
    "tags": "tags",
    "notes": "notes",
    "description": "description",
    "commit": "commit",
}
"""What `upsertBucket` may say of a run, and what it is here."""


def upsert(_: Any, info: Any, input: dict[str, Any]) -> Any:
    """Make a run, or tell more of it: by its name it is the run itself that tells, so it lives."""
    state = info.context
    run, inserted = _run(state, input)
    for given, column in TOLD.items():
        if input.get(given) is not None:
            setattr(run, column, input[given])
    if input.get("config") is not None:
        run.wrapped = json.loads(input["config"])
    if input.get("summary_metrics") is not None:
        run.summary = json.loads(input["summary_metrics"])
    if input.get("sweep"):
        run.sweep = _sweep(state, input["sweep"])
    run.state = input.get("state") or ("running" if input.get("name") else run.state)
    run.display_name = run.display_name or run.name
    return {"bucket": run, "inserted": inserted}


def _run(state: State, input: dict[str, Any]) -> tuple[Run, bool]:
    if input.get("id"):
        return state.run_of(input["id"]), False
    entity, project = state.made(input.get("entity_name"), input.get("model_name"))
    key = (entity, project, input.get("name") or f"run{state.number():05}")
    run = state.runs.get(key)
    if run is None:
        run = state.runs[key] = Run(*key)
        return run, True
    return run, run.state == "pending"


def _sweep(state: State, name: str) -> str:
    name = name.split("/")[-1]
    if name not in state.sweeps:
        raise Refused(404, f"sweep {name} not found")
    return name


def stream(state: State, key: Key, told: dict[str, Any]) -> dict[str, Any]:
    """What the file stream is told, and what it answers: to stop, once somebody asked for that.

    A stopped run ends as `killed` whatever its exit code; whether the real one does is unknown.
    """
    run = state.runs.get(key)
    if run is None:
        raise Refused(404, f"run {'/'.join(key)} not found")
    run.heartbeat_at = now()
    for file, chunk in (told.get("files") or {}).items():
        run.lines[file].update(enumerate(chunk["content"], chunk.get("offset", 0)))
        if file == SUMMARY:
            run.summary = json.loads(chunk["content"][-1])
    if told.get("complete"):
        run.exit_code = told.get("exitcode", 0)
        run.state = "killed" if run.stop else "failed" if run.exit_code else "finished"
    elif run.state in {"pending", "crashed"}:
        run.state = "running"
    return {"limits": {}, **({"stopped": True} if run.stop else {})}


def create_files(_: Any, info: Any, input: dict[str, Any]) -> Any:
    key = (input.get("entity_name"), input.get("project_name"), input["run_name"])
    run = info.context.runs[key]
    files = [File(info.context, run.files, name) for name in input["files"]]
    return {"run_id": run.id, "upload_headers": [], "files": files}


def files(run: Run, info: Any, names: list[str] | None = None, after: str | None = None,
          first: int | None = None, pattern: str | None = None) -> Any:  # fmt: skip
    if pattern:
        raise NotImplementedError(f"files by pattern: {pattern}")
    there = [name for name in run.files if not names or name in names]
    return page([File(info.context, run.files, name) for name in there], first, after)


def stop(_: Any, info: Any, input: dict[str, Any]) -> Any:
    info.context.run_of(input["id"]).stop = True
    return {"success": True}


def _own(run: Run, keys: list[str]) -> dict[str, Any]:
    """The client's own part of a config: what shows that a run was begun."""
    own = run.wrapped.get("_wandb", {}).get("value", {})
    return {key: own[key] for key in keys if key in own}


RESOLVERS: dict[str, dict[str, Any]] = {
    "File": {"url": lambda file, info, upload=False: file.direct_url},
    "Mutation": {
        "upsertBucket": upsert,
        "stopRun": stop,
        "createRunFiles": create_files,
    },
    "Run": {
        "projectId": lambda run, info: projects.of(info.context, run).number,
        "project": lambda run, info: projects.of(info.context, run),
        "user": lambda run, info: projects.USER,
        "readOnly": lambda run, info: None,
        "config": lambda run, info: json.dumps(run.wrapped),
        "wandbConfig": lambda run, info, keys: json.dumps(_own(run, keys)),
        "summaryMetrics": lambda run, info: json.dumps(run.summary),
        "systemMetrics": lambda run, info: "{}",
        "sweepName": lambda run, info: run.sweep,
        "exitcode": lambda run, info: run.exit_code,
        "shouldStop": lambda run, info: run.stop,
        "stopped": lambda run, info: run.stop,
        "failed": lambda run, info: run.state == "failed",
        "running": lambda run, info: run.state == "running",
        "fileCount": lambda run, info: len(run.files),
        "files": files,
    },
}
