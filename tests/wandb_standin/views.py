"""Saved views: workspaces and reports, whose specs are the front end's business."""

from __future__ import annotations

import json
from typing import Any

from wandb_standin import projects
from wandb_standin.records import Refused, View, identity
from wandb_standin.state import State


def upsert(_: Any, info: Any, input: dict[str, Any]) -> Any:
    state = info.context
    view = _view(state, input["id"]) if input.get("id") else _made(state, input)
    for column in ("name", "display_name", "type", "description"):
        if input.get(column) is not None:
            setattr(view, column, input[column])
    if input.get("spec"):
        view.spec = json.loads(input["spec"])
    return {"view": view, "inserted": not input.get("id")}


def _made(state: State, input: dict[str, Any]) -> View:
    where = state.made(input.get("entity_name"), input.get("project_name"))
    view = View(identity("View", str(state.number())), *where)
    state.views.append(view)
    return view


def _view(state: State, id: str) -> View:
    found = [view for view in state.views if view.id == id]
    if not found:
        raise Refused(404, f"view {id} not found")
    return found[0]


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {"view": lambda _, info, id: _view(info.context, id)},
    "Mutation": {"upsertView": upsert},
    "View": {
        "project": lambda view, info: projects.of(info.context, view),
        "updatedAt": lambda view, info: view.created_at,
        "spec": lambda view, info: json.dumps(view.spec),
    },
}
