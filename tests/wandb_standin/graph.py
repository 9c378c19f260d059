"""GraphQL proper: `schema.graphql` executed by graphql-core, on what `State` holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphql import (
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from wandb_standin import artifacts, history, projects, runs, scheduler, sweeps, views
from wandb_standin.records import Refused

if TYPE_CHECKING:
    from wandb_standin.state import State


def snake(name: str) -> str:
    """`artifactID` as Python has it: `artifact_id`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _schema() -> GraphQLSchema:
    schema = build_schema(Path(__file__).with_name("schema.graphql").read_text())
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            for name, given in kind.fields.items():
                given.out_name = snake(name)
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for asked in kind.fields.values():
                for name, argument in asked.args.items():
                    argument.out_name = snake(name)
    for module in (projects, runs, history, sweeps, scheduler, artifacts, views):
        for kind_name, fields in module.RESOLVERS.items():
            for name, resolver in fields.items():
                schema.type_map[kind_name].fields[name].resolve = resolver  # type: ignore[attr-defined]
    return schema


SCHEMA = _schema()


def _field(source: Any, info: Any, **_: Any) -> Any:
    """A field that no one resolves: the key or the attribute of its name."""
    name = snake(info.field_name)
    return source[name] if isinstance(source, dict) else getattr(source, name)


def answer(state: State, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the answer to a request; what the schema forbids is a violation."""
    name = asked.get("operationName") or None
    try:
        document = parse(asked["query"])
        errors = validate(SCHEMA, document)
    except GraphQLError as error:
        document, errors = None, [error]
    if document is None or errors:
        return _against(state, name or asked["query"][:200], errors)
    state.operations.append(name or _name(document))
    result = execute_sync(
        SCHEMA, document, context_value=state, variable_values=asked.get("variables") or {},
        operation_name=name, field_resolver=_field,
    )  # fmt: skip
    if result.errors:
        return _failed(state, state.operations[-1], result.errors)
    return 200, {"data": result.data}


def _name(document: Any) -> str:
    named = [one for one in document.definitions if isinstance(one, OperationDefinitionNode)]
    return named[0].name.value if named and named[0].name else ""


def _failed(state: State, name: str, errors: list[GraphQLError]) -> tuple[int, dict[str, Any]]:
    for error in errors:
        if isinstance(error.original_error, Refused):
            raise error.original_error
    return _against(state, name, errors)


def _against(state: State, name: str, errors: list[GraphQLError]) -> tuple[int, dict[str, Any]]:
    state.violations.extend(f"{name}: {error.message}" for error in errors)
    return 400, {"errors": [{"message": error.message} for error in errors]}
