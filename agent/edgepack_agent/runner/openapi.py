"""The OpenAPI document of the API of one model, from its manifest. Serves nothing."""

from typing import Any

from edgepack.manifest import Manifest, TensorSpec
from edgepack_agent.runner.protocol import DATATYPES

__all__ = ["describe_api"]

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_ERROR = {"$ref": "#/components/schemas/Error"}
REFUSALS = {
    400: "The request is not what the protocol or this model asks for.",
    401: "Over TCP: the token is missing or wrong.",
    403: "Over TCP: the name of the host is not a local one.",
    404: "There is no such path.",
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


def describe_api(manifest: Manifest, digest: str) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1) of the API that serves the model of MANIFEST."""
    base = f"/v2/models/{manifest.name}"
    reads = {
        "/v2": "What serves, and its extensions",
        "/v2/health/live": "Whether the server answers",
        "/v2/health/ready": "Whether the model answers",
        "/v2/edgepack/cameras": "How each camera is and what was seen last; folders are none",
        "/openapi.json": "This document",
    }
    paths: dict[str, Any] = {path: {"get": _read(told)} for path, told in reads.items()}
    for path in ("/healthz", "/readyz"):
        paths[path] = {"get": _read("Health, without a token") | {"security": []}}
    paths["/metrics"] = {"get": _read("Counters for Prometheus", "text/plain")}
    paths["/v2/repository/index"] = {"post": _read("The models that are served")}
    for place in (base, f"{base}/versions/{manifest.version}"):
        paths[place] = {"get": _read("Inputs and outputs of the model")}
        paths[f"{place}/ready"] = {"get": _read("Whether the model answers")}
        paths[f"{place}/infer"] = {"post": _infer(manifest)}
    page = _read("The cameras, for a person: it asks for the token itself", "text/html")
    paths["/preview"] = {"get": page | {"security": []}}
    paths["/preview/{camera}.jpg"] = {"get": _picture()}
    return {
        "openapi": "3.1.0",
        "info": {"title": manifest.release, "version": manifest.version, "x-bundle": digest},
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _object({"error": {"type": "string"}})},
        },
    }


def _read(told: str, kind: str = "application/json") -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {} if kind == "application/json" else {"type": "string"}}
    return {"summary": told, "responses": _responses(kind, content)}


def _picture() -> dict[str, Any]:
    camera = {"name": "camera", "in": "path", "required": True, "schema": {"type": "string"}}
    told = "What a camera saw last, with the answer drawn on it; 404 before its first frame"
    return _read(told, "image/jpeg") | {"parameters": [camera]}


def _infer(manifest: Manifest) -> dict[str, Any]:
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
