"""Who is asking, and the projects: where everything else is found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from wandb_standin.queries import matches, ordered, page
from wandb_standin.records import ENTITY, View, now
from wandb_standin.state import State

USER = {
    "id": "VXNlcjox",
    "name": ENTITY,
    "username": ENTITY,
    "email": f"{ENTITY}@localhost",
    "admin": False,
    "flags": "{}",
    "entity": ENTITY,
    "deleted_at": None,
    "api_keys": {"edges": []},
    "teams": {"edges": []},
}


@dataclass(frozen=True)
class Project:
    """A project, as the API sees it."""

    entity_name: str
    name: str
    number: int
    description: str = ""
    access: str = "PRIVATE"
    views: str = "{}"
    is_benchmark: bool = False
    read_only: bool = False
    created_at: str = now()

    @property
    def id(self) -> str:
        return f"Project:{self.number}"

    @property
    def internal_id(self) -> int:
        return self.number

    @property
    def key(self) -> tuple[str, str]:
        return self.entity_name, self.name


def of(state: State, thing: Any) -> Project:
    """The project that a run, a sweep, an artifact or a view is in."""
    return Project(thing.entity, thing.project, state.projects[thing.entity, thing.project])


def find(_: Any, info: Any, name: str | None = None, entity_name: str | None = None) -> Any:
    """A project; None, as the real server says, where there is none."""
    key = (entity_name or ENTITY, name or "uncategorized")
    number = info.context.projects.get(key)
    return None if number is None else Project(*key, number)


def every(_: Any, info: Any, entity_name: str | None = None, **paging: Any) -> Any:
    """All projects of an entity."""
    all = [Project(*key, number) for key, number in info.context.projects.items()]
    return page([one for one in all if one.entity_name == (entity_name or ENTITY)], **paging)


def run(project: Project, info: Any, name: str, missing_ok: bool = False) -> Any:
    """A run; one that is only in line or handed out is there too, as `pending`."""
    return info.context.runs.get((*project.key, name))


def bucket(project: Project, info: Any, name: str, missing_ok: bool = False) -> Any:
    """What there is to resume: a run that has begun."""
    found = info.context.runs.get((*project.key, name))
    return None if found is None or found.state == "pending" else found


def chosen(project: Project, info: Any, filters: str | None = None) -> list[Any]:
    query = json.loads(filters or "{}")
    there = [run for run in info.context.runs.values() if run.key[:2] == project.key]
    return [run for run in there if matches(run, query)]


def runs(
    project: Project, info: Any, filters: str | None = None, after: str | None = None,
    first: int | None = None, order: str | None = None,
) -> Any:  # fmt: skip
    return page(ordered(chosen(project, info, filters), order), first, after)


def sweep(project: Project, info: Any, sweep_name: str) -> Any:
    found = info.context.sweeps.get(sweep_name)
    return found if found and (found.entity, found.project) == project.key else None


def views(project: Project, info: Any, **names: str | None) -> Any:
    def wanted(view: View) -> bool:
        kind, name = names.get("view_type") or "runs", names.get("view_name")
        return (view.entity, view.project) == project.key and view.type == kind and (
            name in {None, view.name}
        )  # fmt: skip

    return {"edges": [{"node": view} for view in info.context.views if wanted(view)]}


def _entity(_: Any, info: Any, name: str | None = None) -> Any:
    name = name or ENTITY
    return {"id": name, "name": name, "organization": None, "xxhash_digests_enabled": False}


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {
        "viewer": lambda _, info: USER,
        "serverInfo": lambda _, info: {
            "features": [
                {"name": name, "is_enabled": on} for name, on in info.context.features.items()
            ]
        },
        "entity": _entity,
        "project": find,
        "model": find,
        "models": every,
    },
    "Project": {
        "entity": lambda project, info: _entity(project, info, project.entity_name),
        "user": lambda project, info: USER,
        "run": run,
        "bucket": bucket,
        "runs": runs,
        "runCount": lambda project, info, filters=None: len(chosen(project, info, filters)),
        "sweep": sweep,
        "allViews": views,
    },
}
