"""`/openapi.json` is made from the routes; here it is judged by others' rules, and against the page that people read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from halfmsg.coordinator import api_calls, openapi
from halfmsg.coordinator.errors import CODES, RETRY_AFTER_S
from halfmsg.coordinator.routes import ROUTES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def document() -> Any:
    return msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES)))


def test_document_is_valid_openapi(document: Any) -> None:
    """By the validator of the OpenAPI community."""
    errors = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert not errors


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_route_is_documented_and_built(document: Any, route: Any) -> None:
    """Each route has its operation, its success, its problems and its call."""
    operation = document["paths"][route.path][route.method.lower()]
    assert str(route.status) in operation["responses"] and "500" in operation["responses"]
    assert {str(CODES[code][0]) for code in route.codes} <= operation["responses"].keys()
    assert ("requestBody" in operation) == (route.takes is not None)
    assert {each["name"] for each in operation["parameters"]} >= set(re.findall(r"{(\w+)}", route.path)) | set(route.query)
    assert callable(getattr(api_calls.Calls, route.call))


def test_operation_ids_are_unique(document: Any) -> None:
    """Generators name functions by them."""
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_document_has_no_route_that_is_not_there(document: Any) -> None:
    """And none twice."""
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert listed == {(route.method, route.path) for route in ROUTES} and len(listed) == len(ROUTES)


@pytest.mark.parametrize("code", sorted(CODES))
def test_code_stands_in_the_docs(code: str) -> None:
    """A program that meets a code finds what to do in docs/api.md."""
    assert f"`{code}`" in (ROOT / "docs/api.md").read_text()


def test_codes_that_wait_are_429_and_5xx() -> None:
    """Retry-After is told where waiting helps, and nowhere else."""
    assert {CODES[code][0] // 100 for code in RETRY_AFTER_S} <= {4, 5}
    assert all(CODES[code][0] in (429, 503, 507) for code in RETRY_AFTER_S)
    assert {code for code, (status, _) in CODES.items() if status in (429, 503, 507)} == set(RETRY_AFTER_S)
