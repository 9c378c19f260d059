"""Artifacts: versions in a sequence, uploaded through a manifest, and read back."""

from __future__ import annotations

from typing import Any

from wandb_standin import projects
from wandb_standin.files import File
from wandb_standin.queries import page
from wandb_standin.records import Artifact, Refused, Run
from wandb_standin.state import State

MANIFEST = "wandb_manifest.json"


def artifact(state: State, id: str) -> Artifact:
    """The version of an id."""
    found = [one for one in state.artifacts if one.id == id]
    if not found:
        raise Refused(404, f"artifact {id} not found")
    return found[0]


def create(_: Any, info: Any, input: dict[str, Any]) -> Any:
    """A new version, or the last one when it holds the same."""
    state = info.context
    where = state.made(input.get("entity_name"), input.get("project_name"))
    names = input.get("artifact_collection_names") or [input["artifact_collection_name"]]
    before = sequence(state, *where, names[0])
    made = next((one for one in before if one.digest == input["digest"]), None)
    if made is None:
        id = f"Artifact{state.number():03}"
        made = Artifact(
            *where, names[0], input["artifact_type_name"], len(before), input["digest"], id
        )
        state.artifacts.append(made)
    made.run, made.algorithm = input.get("run_name"), input.get("digest_algorithm")
    made.metadata, made.description = input.get("metadata"), input.get("description")
    given = [alias["alias"] for alias in input.get("aliases") or []]
    _name(before, made, [*given, f"v{made.version}", "latest"])
    return {"artifact": made}


def _name(before: list[Artifact], made: Artifact, aliases: list[str]) -> None:
    """An alias is the newest's that was given it."""
    for one in before:
        one.aliases = [alias for alias in one.aliases if alias not in aliases]
    made.aliases = sorted({*made.aliases, *aliases})


def sequence(state: State, entity: str, project: str, name: str) -> list[Artifact]:
    """The versions of one name, oldest first."""
    key = (entity, project, name)
    return [one for one in state.artifacts if (one.entity, one.project, one.name) == key]


def manifest(_: Any, info: Any, input: dict[str, Any]) -> Any:
    made = artifact(info.context, input["artifact_id"])
    return {"artifact_manifest": _manifest(made, info)}


def _manifest(made: Artifact, info: Any) -> Any:
    return {"id": made.id, "file": File(info.context, made.manifest, MANIFEST, made)}


def create_files(_: Any, info: Any, input: dict[str, Any]) -> Any:
    files = []
    for asked in input["artifact_files"]:
        made = artifact(info.context, asked["artifact_id"])
        files.append(File(info.context, made.files, asked["name"], made))
    return {"files": page(files)}


def commit(_: Any, info: Any, input: dict[str, Any]) -> Any:
    made = artifact(info.context, input["artifact_id"])
    made.state = "COMMITTED"
    return {"artifact": made}


def use(_: Any, info: Any, input: dict[str, Any]) -> Any:
    made = artifact(info.context, input["artifact_id"])
    made.used_by.append(input["run_name"])
    return {"artifact": made}


def named(project: Any, info: Any, name: str) -> Artifact | None:
    """A version by `name`, `name:alias` or `name:v0`; only what is committed can be had."""
    name, _, alias = name.partition(":")
    versions = sequence(info.context, *project.key, name)
    return next((one for one in versions if (alias or "latest") in one.aliases), None)


def _collection(made: Artifact, info: Any) -> Any:
    versions = sequence(info.context, made.entity, made.project, made.name)
    done = [one for one in versions if one.state == "COMMITTED"]
    return {
        "__typename": "ArtifactSequence",
        "id": f"Sequence:{made.name}",
        "name": made.name,
        "project": projects.of(info.context, made),
        "latest_artifact": done[-1] if done else None,
        "digest_algorithm": made.algorithm,
        "versions": versions,
    }


def _aliases(made: Artifact, info: Any) -> list[Any]:
    at = _collection(made, info)
    return [
        {"id": f"{made.id}:{alias}", "alias": alias, "artifact_collection": at}
        for alias in made.aliases
    ]


def _membership(made: Artifact | None, info: Any) -> Any:
    if made is None:
        return None
    return {
        "id": f"Membership:{made.id}",
        "version_index": made.version,
        "created_at": made.created_at,
        "aliases": _aliases(made, info),
        "artifact_collection": _collection(made, info),
        "artifact": made,
    }


def _by_alias(at: Any, info: Any, alias_name: str) -> Any:
    found = [one for one in at["versions"] if alias_name in one.aliases]
    return _membership(found[0] if found else None, info)


def _files(member: Any, info: Any, names: list[str] | None = None, **paging: Any) -> Any:
    made = member["artifact"]
    there = [name for name in made.files if not names or name in names]
    return page([File(info.context, made.files, name, made) for name in there], **paging)


def _of_run(run: Run, info: Any, role: str, **paging: Any) -> Any:
    made = info.context.artifacts
    mine = [one for one in made if run.name in (one.used_by if role == "in" else [one.run])]
    return page(mine, **paging)


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {
        "artifact": lambda _, info, id: artifact(info.context, id),
    },
    "Mutation": {
        "createArtifact": create,
        "createArtifactManifest": manifest,
        "createArtifactFiles": create_files,
        "commitArtifact": commit,
        "useArtifact": use,
    },
    "Project": {
        "artifact": named,
        "artifactCollection": lambda project, info, name: (
            (made := named(project, info, name)) and _collection(made, info)
        ),
        "artifactCollectionMembership": lambda project, info, name: _membership(
            named(project, info, name), info
        ),
    },
    "Run": {
        "outputArtifacts": lambda run, info, **paging: _of_run(run, info, "out", **paging),
        "inputArtifacts": lambda run, info, **paging: _of_run(run, info, "in", **paging),
    },
    "ArtifactSequence": {"artifactMembership": _by_alias},
    "ArtifactCollectionMembership": {"files": _files},
    "Artifact": {
        "artifactSequence": _collection,
        "artifactType": lambda made, info: {"name": made.type},
        "versionIndex": lambda made, info: made.version,
        "ttlDurationSeconds": lambda made, info: -2,
        "ttlIsInherited": lambda made, info: True,
        "tags": lambda made, info: [],
        "historyStep": lambda made, info: None,
        "size": lambda made, info: sum(map(len, made.files.values())),
        "fileCount": lambda made, info: len(made.files),
        "digestAlgorithm": lambda made, info: made.algorithm,
        "commitHash": lambda made, info: made.id,
        "updatedAt": lambda made, info: made.created_at,
        "aliases": _aliases,
        "currentManifest": _manifest,
    },
}
