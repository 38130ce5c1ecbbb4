"""The OpenAPI document of the API of one model, from routes and manifest. Serves nothing."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from edgepack.manifest import Manifest, TensorSpec
from edgepack_agent.runner.connection import Route
from edgepack_agent.runner.protocol import DATATYPES

__all__ = ["REFUSALS", "describe_api", "describe_infer", "describe_read"]

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_ERROR = {"$ref": "#/components/schemas/Error"}
REFUSALS = {
    400: "The request is not what the protocol or this model asks for.",
    401: "Over TCP: the token is missing or wrong.",
    403: "Over TCP: the name of the host is not a local one.",
    404: "There is no such path, or nothing to show there yet.",
    405: "Another method is right.",
    408: "The body did not come in time.",
    413: "The body is larger than one for this model can be.",
    415: "The body is compressed.",
    431: "The head is too long.",
    429: "Too many requests; `Retry-After` says when.",
    500: "The runtime failed.",
    503: "Too many requests are waiting; `Retry-After` says when.",
    504: "No answer within the deadline.",
}


def describe_api(manifest: Manifest, digest: str, routes: Mapping[str, Route]) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1) of the API that serves the model of MANIFEST at ROUTES."""
    return {
        "openapi": "3.1.0",
        "info": {"title": manifest.release, "version": manifest.version, "x-bundle": digest},
        # A brace in the name of a camera would be read as that of a parameter.
        "paths": {quote(path): _operations(route) for path, route in routes.items()},
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _object({"error": {"type": "string"}})},
        },
    }


def _operations(route: Route) -> dict[str, Any]:
    about = dict(route.about) | ({"security": []} if route.free else {})
    return {method.lower(): about for method in route.methods if method != "HEAD"}


def describe_read(
    told: str, kind: str = "application/json", schema: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the operation that answers what is TOLD, of the type KIND and like SCHEMA."""
    anything = {} if kind == "application/json" else {"type": "string"}
    return {"summary": told, "responses": _responses(kind, {"schema": schema or anything})}


def describe_infer(manifest: Manifest) -> dict[str, Any]:
    """Return the operation that asks the model of MANIFEST."""
    request = _object(
        {
            "id": {"type": "string"},
            "inputs": _tensors(manifest.inputs),
            "outputs": {"type": "array", "items": {"type": "object"}},
            "parameters": {"type": "object"},
        },
        "inputs",
    )
    answer = _object(
        {
            "id": {"type": "string"},
            "model_name": {"const": manifest.name},
            "model_version": {"const": manifest.version},
            "outputs": _tensors(manifest.outputs),
            "parameters": {"type": "object"},
        },
        "outputs",
    )
    body: dict[str, Any] = {
        "application/json": {"schema": request},
        # JSON of the length in `Inference-Header-Content-Length`, then tensors as they are.
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    if manifest.preprocess is not None:
        body |= {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png")
        }
    return {
        "summary": "Ask the model",
        "requestBody": {"required": True, "content": body},
        "responses": _responses("application/json", {"schema": answer}),
    }


def _responses(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    good = {"description": "The answer.", "content": {kind: content}}
    refused = {
        str(status): {"description": told, "content": {"application/json": {"schema": _ERROR}}}
        for status, told in REFUSALS.items()
    }
    return {"200": good} | refused


def _tensors(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Return the schema of a list of tensors: one alternative for each of SPECS."""
    return {"type": "array", "items": {"anyOf": [_tensor(spec) for spec in specs]}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return _object(
        {
            "name": {"const": spec.name},
            "datatype": {"const": _NAMES.get(spec.dtype, spec.dtype)},
            "shape": {"type": "array", "items": {"type": "integer"}, "examples": [spec.shape]},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
        "name", "datatype", "shape",
    )  # fmt: skip


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties} | (
        {"required": list(required)} if required else {}
    )
