"""The interface described in OpenAPI 3.1, made from the same table and types that answer requests, and a page of it."""

import html
import json
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from wenfang import __version__
from wenfang.serve.desk import Route
from wenfang.serve.gate import OPEN_PATHS

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANY_REQUEST = (400, 401, 403, 405, 429, 431, 500, 503)
ANY_BODY = (404, 408, 413, 415, 504)


def document(routes: tuple[Route, ...], models: list[str], *, locked: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        routes: the table.
        models: what clients may ask for.
        locked: whether keys are asked for.
    """
    kinds = [route.asks for route in routes if route.asks is not None]
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    shown = {name: _shown(schema, models) for name, schema in schemas["$defs"].items()}
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path.replace(":path", ""), {})[route.method.lower()] = _operation(route, models, locked)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Wenfang", "version": __version__, "description": "OpenAI's interface, on your own machine."},
        "paths": paths,
        "components": {
            "schemas": {**shown, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(described: dict[str, Any]) -> str:
    """The document as one page without scripts or anything from elsewhere."""
    parts = [f"<h1>{html.escape(described['info']['title'])}</h1><p><a href='/openapi.json'>openapi.json</a></p>"]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation['summary'])}</p>")
            if "requestBody" in operation:
                name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                schema = described["components"]["schemas"][name]
                rows = [
                    f"<tr><td><code>{html.escape(field)}</code>{' *' if field in schema.get('required', ()) else ''}"
                    f"</td><td>{html.escape(about.get('description', ''))}</td>"
                    f"<td><code>{html.escape(json.dumps(_bare(about), ensure_ascii=False))}</code></td></tr>"
                    for field, about in schema["properties"].items()
                ]
                parts.append(f"<table>{''.join(rows)}</table>")
    style = "body{font:16px/1.5 sans-serif;max-width:70rem;margin:2rem auto}td{padding:.2rem 1rem .2rem 0}"
    return f"<!doctype html><meta charset=utf-8><title>Wenfang API</title><style>{style}</style>{''.join(parts)}"


def _operation(route: Route, models: list[str], locked: bool) -> dict[str, Any]:
    statuses = (*ANY_REQUEST, *(ANY_BODY if route.asks else ()), *route.refuses)
    operation: dict[str, Any] = {
        "summary": route.about,
        "responses": {
            "200": {"description": "OK", "content": {kind: {} for kind in route.media_types}},
            **{str(status): _refusal(status) for status in sorted(set(statuses))},
        },
        "security": [{"key": []}] if locked and route.path not in OPEN_PATHS else [],
    }
    if "{model:path}" in route.path:
        parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": models}}
        operation["parameters"] = [parameter]
    if route.asks is not None:
        schema = {"$ref": f"#/components/schemas/{route.asks.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _refusal(status: int) -> dict[str, Any]:
    phrase = "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": phrase, "content": content}


def _shown(schema: dict[str, Any], models: list[str]) -> dict[str, Any]:
    """A type's schema with what pydantic does not know: a null is as good as nothing, and which models there are."""
    required = schema.get("required", ())
    properties = {
        name: about if name in required or _nullable(about) else {**_bare(about, keep=True), "anyOf": _or_null(about)}
        for name, about in schema.get("properties", {}).items()
    }
    if "model" in properties:
        properties["model"] = {"type": "string", "enum": models}
    return {**schema, "properties": properties}


def _nullable(about: dict[str, Any]) -> bool:
    return {"type": "null"} in about.get("anyOf", ())


def _or_null(about: dict[str, Any]) -> list[dict[str, Any]]:
    return [*about.get("anyOf", [_bare(about)]), {"type": "null"}]


def _bare(about: dict[str, Any], *, keep: bool = False) -> dict[str, Any]:
    """The constraints of a property without its words, or with `keep` the words alone."""
    words = ("title", "description", "default")
    if "patternProperties" in about:  # pydantic's way to say what every key is like.
        about = {**about, "additionalProperties": False}
    return {name: value for name, value in about.items() if (name in words) == keep}
