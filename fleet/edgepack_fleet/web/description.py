"""The OpenAPI description: what the routes say, and what can be answered by all that are alike."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from edgepack_fleet.web.schemas import Problem

__all__ = ["describe"]

METHODS = ("get", "head", "put", "post", "delete")
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "With the same key the same request is done once, and answered the same "
    "for a day (`Idempotent-Replayed: true`)",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the whole description of APP."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schemas["Problem"].pop("$defs", {})
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                _complete(path, method, item[method])
    return document


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """Add to OPERATION how it can be refused, and what every POST takes."""
    operation["responses"].pop("422", None)
    for status in _refusals(path, method, secured="security" in operation):
        answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        operation["responses"][str(status)] = answer
        if method != "head":
            answer["content"] = PROBLEM
        if status in {429, 503}:
            seconds = {"type": "integer", "minimum": 1}
            answer["headers"] = {"Retry-After": {"schema": seconds, "description": "Seconds"}}
    if method == "post":
        operation.setdefault("parameters", []).append(KEY)


def _refusals(path: str, method: str, *, secured: bool) -> Iterator[int]:
    """Yield the statuses other than success that METHOD of PATH can have."""
    yield 400
    if secured:
        yield from (401, 403)
    if "{" in path or method == "post":
        yield 404
    if method in {"post", "delete"}:
        yield 409
    if method in {"post", "put"}:
        yield from (413, 422)
    if "/repo/" in path and method in {"post", "put"}:
        yield 507
    yield from (429, 500, 503)
