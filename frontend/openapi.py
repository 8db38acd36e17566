"""Pure. `/openapi.json`: the routes as they are, with the schemas of the structs that read and write their bodies."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from bus.version import VERSION
from frontend.anthropic.errors import OVERLOADED, AnthropicEnvelope
from frontend.doors.routes import Route
from frontend.errors import ERROR_STATUSES, Envelope

_REF = "#/components/schemas/{name}"
_PARAM = re.compile(r"\{([a-z_]+)(?:\.\.\.)?\}")
_KEYS: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}, {}]
"""Any of them; without configured keys none is needed."""


def make_openapi(routes: Iterable[Route]) -> bytes:
    """Return the document, OpenAPI 3.1, in JSON."""
    shown = list(routes)
    types = [
        kind for route in shown for kind in (route.doc.body, route.doc.answer, route.doc.event) if kind is not None
    ]
    types += [Envelope, AnthropicEnvelope]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        path = _PARAM.sub(r"{\1}", route.pattern)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Busway", "version": VERSION, "description": "Large language models over many workers."},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _operation(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    doc = route.doc
    words = inspect.getdoc(route.handler) or ""
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": words.split("\n\n")[0].replace("\n", " "),
        "responses": {str(doc.status): _answer(route, schema_of), **_errors(route, schema_of)},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAM.findall(route.pattern)
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in doc.query]
    if parameters:
        operation["parameters"] = parameters
    if doc.body is not None:
        content = {"application/json": {"schema": schema_of[id(doc.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    elif doc.form:
        fields = {name: {"type": "string", **({"format": "binary"} if name == "file" else {})} for name in doc.form}
        form = {"schema": {"type": "object", "properties": fields, "required": ["file"]}}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": form}}
    if route.family != "plain":
        operation["security"] = _KEYS
    return operation


def _answer(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    doc = route.doc
    content: dict[str, Any] = {doc.media: {"schema": {} if doc.answer is None else schema_of[id(doc.answer)]}}
    if doc.event is not None:
        data = {"contentMediaType": "application/json", "contentSchema": schema_of[id(doc.event)]}
        end = [] if route.family == "anthropic" else [{"const": "[DONE]"}]
        shown = {"type": "string", "anyOf": [*end, data]} if end else {"type": "string", **data}
        event = {"type": "object", "properties": {"event": {"type": "string"}, "data": shown}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    return {"description": "The answer.", "content": content}


def _errors(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    is_anthropic = route.family == "anthropic"
    content = {"application/json": {"schema": schema_of[id(AnthropicEnvelope if is_anthropic else Envelope)]}}
    statuses = {**ERROR_STATUSES, OVERLOADED: "Overloaded"} if is_anthropic else ERROR_STATUSES
    return {str(status): {"description": words, "content": content} for status, words in statuses.items()}


def _operation_id(route: Route) -> str:
    words = re.findall(r"[a-z]+", route.pattern.removeprefix("/v1"))
    return "_".join([route.method.lower(), *words])
