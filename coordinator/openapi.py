"""`/openapi.json` (3.1), made from the route table and the very types that decode requests; it cannot drift from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from halfmsg import __version__

from .errors import CODES
from .routes import Route

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"{(\w+)}")


def document(routes: Sequence[Route]) -> dict[str, Any]:
    types = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF, schema_hook=_schema_of)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "halfmsg", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components | {"Problem": _problem()}},
    }


def _schema_of(kind: Any) -> dict[str, Any]:
    """Raw is any JSON value; bytes never stand in JSON (`data_base64` does)."""
    return {}


def _operation(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    answer = {} if route.gives is None else by_type[route.gives]
    content = {} if route.status == 204 else {"content": {"application/json": {"schema": answer}}}
    operation: dict[str, Any] = {
        "operationId": route.call if route.call != "not_built" else _words(route),
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": {str(route.status): {"description": route.summary, **content}} | _problems(route),
    }
    if route.status == 201 or route.method == "PUT":
        other = "200" if route.status == 201 else "201"
        operation["responses"][other] = {"description": route.summary, **content}
    if route.takes is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_type[route.takes]}}}
    return operation


def _words(route: Route) -> str:
    return route.method.lower() + re.sub(r"\W+", "_", route.path.removeprefix("/v1")).rstrip("_")


def _parameters(route: Route) -> list[dict[str, Any]]:
    path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _PARAMETER.findall(route.path)]
    return path + [{"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in route.query]


def _problems(route: Route) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code in (*route.codes, "internal"):
        by_status.setdefault(CODES[code][0], []).append(code)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        str(status): {"description": ", ".join(codes), "content": {"application/problem+json": {"schema": schema}}}
        for status, codes in sorted(by_status.items())
    }


def _problem() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": text, "title": text, "status": {"type": "integer"}, "detail": text, "request_id": text,
            "code": {"type": "string", "enum": sorted(CODES)},
        },
    }  # fmt: skip
