"""The same protocol over gRPC, `inference.GRPCInferenceService`, as Triton's clients speak it.

A request becomes one of the REST protocol with binary tensors, so that there is one place that
checks what strangers send. Each runner has a listener of its own on the same port (SO_REUSEPORT):
at a swap, the new one is there before the old one says goodbye, and clients connect anew.
"""

import json
from collections.abc import Mapping
from typing import Any

import grpc
import msgspec
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from edgepack_agent.runner import protocol
from edgepack_agent.runner.api import Api
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.protocol import RequestError

__all__ = ["GrpcServer"]

GRACE_S = 5.0
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
_FIELDS = {
    "BOOL": "bool_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents",
}  # fmt: skip


class GrpcServer:
    """A listener for the model of API on ADDRESS, `127.0.0.1:PORT`."""

    def __init__(self, api: Api, model: Model, address: str) -> None:
        limit = protocol.body_limit(model.manifest)
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", limit), ("grpc.so_reuseport", 1)]
        )
        rpc.add_GRPCInferenceServiceServicer_to_server(_Service(api, model), self._server)
        self.port = self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Take connections."""
        await self._server.start()

    async def stop(self) -> None:
        """Take no more, answer what is under way."""
        await self._server.stop(GRACE_S)


class _Service(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The methods of the protocol; names are those of its definition."""

    def __init__(self, api: Api, model: Model) -> None:
        self._api, self._model = api, model

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        return pb.ModelReadyResponse(ready=self._is_ours(request))

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        return pb.ServerMetadataResponse(name="edgepack", extensions=["edgepack_bundle"])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        await self._check(request, context)
        about = protocol.describe_model(self._model.manifest, self._model.digest)
        sides = {
            side: [pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in about[side]]
            for side in ("inputs", "outputs")
        }
        return pb.ModelMetadataResponse(
            name=about["name"], versions=about["versions"], platform=about["platform"], **sides
        )

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        await self._check(request, context, name=request.model_name, version=request.model_version)
        try:
            asked, outputs = await self._api.ask(*_as_rest(request))
        except RequestError as error:
            await self._refuse(error, context)
        return _answer(self._model, asked, outputs)

    async def _admit(self, context: Any) -> None:
        given = dict(context.invocation_metadata() or ())
        try:
            self._api.gate.admit(str(given.get("authorization", "")), over_tcp=True)
        except RequestError as error:
            await self._refuse(error, context)

    async def _check(self, request: Any, context: Any, **named: str) -> None:
        if not self._is_ours(request, **named):
            await self._refuse(RequestError(404, "there is no such model here"), context)

    def _is_ours(self, request: Any, name: str = "", version: str = "") -> bool:
        manifest = self._model.manifest
        name, version = name or request.name, version or getattr(request, "version", "")
        return name == manifest.name and version in {"", manifest.version}

    async def _refuse(self, error: RequestError, context: Any) -> None:
        self._api.refused(error)
        code = _CODES.get(error.status, grpc.StatusCode.INTERNAL)
        await context.abort(code, str(error))


def _as_rest(request: Any) -> tuple[Mapping[str, str], bytes]:
    """Return headers and body of the same request over REST."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestError(400, f"{len(request.inputs)} inputs, {len(raw)} raw contents")
    tensors = []
    for place, tensor in enumerate(request.inputs):
        told: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape),
        }  # fmt: skip
        if raw:
            told["parameters"] = {"binary_data_size": len(raw[place])}
        else:
            told["data"] = _contents(tensor)
        tensors.append(told)
    document = {
        "id": request.id,
        "inputs": tensors,
        "outputs": [{"name": output.name} for output in request.outputs],
        "parameters": {"binary_data_output": True},
    }
    try:
        head = msgspec.json.encode(document)
    except (ValueError, TypeError) as error:
        raise RequestError(400, f"the request is not valid: {error}") from error
    return {protocol.HEADER_LENGTH: str(len(head))}, b"".join((head, *raw))


def _contents(tensor: Any) -> list[Any]:
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise RequestError(
            400, f"input `{tensor.name}`: {tensor.datatype[:16]} comes as raw contents only"
        )
    return list(getattr(tensor.contents, field))


def _answer(model: Model, asked: protocol.InferRequest, outputs: Mapping[str, Any]) -> Any:
    """Return the response, its tensors as they come over REST as binary."""
    headers, body = protocol.write_response(model.manifest, model.digest, asked, outputs)
    length = int(headers.get(protocol.HEADER_LENGTH, len(body)))
    said, rest = json.loads(body[:length]), memoryview(body)[length:]
    answer = pb.ModelInferResponse(
        model_name=said["model_name"], model_version=said["model_version"], id=asked.id
    )
    answer.parameters["edgepack_bundle"].string_param = model.digest
    for tensor in said["outputs"]:
        answer.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        size = tensor["parameters"]["binary_data_size"]
        answer.raw_output_contents.append(bytes(rest[:size]))
        rest = rest[size:]
    return answer
