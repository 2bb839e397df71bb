"""The OpenAPI 3.1 document of the API, made of the table and the models (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, assert_never

from pydantic import TypeAdapter

from kbridge.frontends.models import ProblemDocument
from kbridge.frontends.problems import PROBLEM_TYPE, Kind
from kbridge.frontends.routes import ROUTES, Answers, Describes, Route, Streams, Upgrades
from kbridge.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

_SCHEMAS: Final = "#/components/schemas/{model}"
_ABOUT: Final = (
    "Served on the unix socket `control` of kbridge's runtime folder; whoever may connect to it may do all of "
    "this. Requests with an `Origin` are refused: no web page has business here."
)


@cache
def document() -> dict[str, Any]:
    """Return the document."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    # A path's WebSocket comes after its plain rows, and adds to them.
    for route in sorted(ROUTES, key=lambda row: isinstance(row.action, Upgrades)):
        operations = paths.setdefault(route.path, {})
        method = route.method.lower()
        if method in operations:
            _add_upgrade(operations[method], route, schemas)
        else:
            operations[method] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kbridge", "version": VERSION, "description": _ABOUT},
        "servers": [{"url": "http://localhost/", "description": "over the unix socket"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    parameters = [*_path_parameters(route), *_query_parameters(route.query)]
    if parameters:
        operation["parameters"] = parameters
    match route.action:
        case Answers(result=result, body=body):
            if body is not None:
                operation["requestBody"] = {"required": True, "content": _json(_schema(body, schemas))}
            responses = {"200": {"description": "Done", "content": _json(_schema(result, schemas))}}
        case Streams(media_types=media_types, body=body, lines=lines):
            if body is not None:
                operation["requestBody"] = {"required": True, "content": _json(_schema(body, schemas))}
            # OpenAPI 3.1 has no words for the lines of a stream: an extension has them.
            operation["x-lines"] = _schema(lines, schemas)
            content: dict[str, Any] = {
                media: {"schema": {"type": "string"}} for media in media_types.values()
            }
            responses = {"200": {"description": "The record", "content": content}}
        case Upgrades():
            responses = {}
            _describe_upgrade(operation, responses, route, schemas)
        case Describes():
            responses = {"200": {"description": "OpenAPI 3.1", "content": _json({"type": "object"})}}
        case _:
            assert_never(route.action)
    operation["responses"] = responses | _problems(route.all_problems, schemas)
    return operation


def _add_upgrade(operation: dict[str, Any], route: Route, schemas: dict[str, Any]) -> None:
    known = {parameter["name"] for parameter in operation.get("parameters", [])}
    more = [one for one in _query_parameters(route.query) if one["name"] not in known]
    operation.setdefault("parameters", []).extend(more)
    _describe_upgrade(operation, operation["responses"], route, schemas)


def _describe_upgrade(
    operation: dict[str, Any], responses: dict[str, Any], route: Route, schemas: dict[str, Any]
) -> None:
    action = route.action
    assert isinstance(action, Upgrades)
    # OpenAPI has no words for a WebSocket's messages: an extension has them.
    messages: dict[str, Any] = {"summary": route.summary, "sends": _schema(action.sends, schemas)}
    if action.takes is not None:
        messages["takes"] = _schema(action.takes, schemas)
    if action.binary:
        messages["binary"] = action.binary
    operation["x-websocket"] = messages
    responses["101"] = {"description": "With `Upgrade: websocket`: see x-websocket"}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    if route.has_crash:
        return [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "The crash's name, or the beginning of one that no other begins with",
                "schema": {"type": "string"},
            }
        ]
    if not route.has_guest:
        return []
    schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,30}$"}
    return [
        {"name": "name", "in": "path", "required": True, "description": "The guest's name", "schema": schema}
    ]


def _query_parameters(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": one.pop("description", ""),
            "schema": one,
        }
        for name, one in schema["properties"].items()
    ]


def _problems(kinds: Iterable[Kind], schemas: dict[str, Any]) -> dict[str, Any]:
    titles: dict[str, list[str]] = {}
    for kind in kinds:
        titles.setdefault(str(kind.status), []).append(f"{kind.title} (`{kind.label}`)")
    schema = _schema(ProblemDocument, schemas)
    return {
        status: {"description": "; or ".join(words), "content": {PROBLEM_TYPE: {"schema": schema}}}
        for status, words in sorted(titles.items())
    }


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _schema(source: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refers to the document's own, to which those of ``source`` are added."""
    found = TypeAdapter(source).json_schema(ref_template=_SCHEMAS)
    schemas.update(found.pop("$defs", {}))
    if "title" in found and found.get("type") == "object":
        name = found["title"]
        schemas[name] = found
        return {"$ref": _SCHEMAS.format(model=name)}
    return dict(found)
