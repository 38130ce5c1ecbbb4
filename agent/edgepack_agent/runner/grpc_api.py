"""The same protocol over gRPC, `inference.GRPCInferenceService`, as Triton's clients speak it.

A call becomes a request of the REST protocol with binary tensors, so that there is one place that
checks what strangers send. Each runner has a listener of its own on the same port (SO_REUSEPORT):
at a swap, the new one is there before the old one says goodbye, and clients connect anew.

The methods are registered one by one, not through the generated servicer: that one logs a
traceback for every call of a method that is not there, before anybody was asked for a token.
"""

import asyncio
import json
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from edgepack_agent.runner import protocol
from edgepack_agent.runner.api import EXTENSIONS, VERSION, Api
from edgepack_agent.runner.connection import DEADLINE_S, late
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.protocol import RequestError

__all__ = ["GrpcServer"]

GRACE_S = 5.0
MAX_CALLS = 128
"""At the same time; more are refused before they are read."""
IDLE_S = 300.0
"""Connections without a call for so long are closed; clients open them again unasked."""
_SERVICE = "inference.GRPCInferenceService"
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
_Answer = Callable[[Any], Awaitable[Any]]


class GrpcServer:
    """A listener for the model of API on ADDRESS, `127.0.0.1:PORT`."""

    def __init__(self, api: Api, model: Model, address: str) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", protocol.body_limit(model.manifest)),
                ("grpc.max_concurrent_streams", MAX_CALLS),
                ("grpc.max_connection_idle_ms", int(IDLE_S * 1000)),
                ("grpc.so_reuseport", 1),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        service = _Service(api, model)
        handlers = grpc.method_handlers_generic_handler(_SERVICE, service.handlers())
        self._server.add_generic_rpc_handlers((handlers,))
        self.port = self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Take connections."""
        await self._server.start()

    async def stop(self) -> None:
        """Take no more, answer what is under way."""
        await self._server.stop(GRACE_S)


class _Service:
    """The methods of the protocol."""

    def __init__(self, api: Api, model: Model) -> None:
        self._api, self._model = api, model
        self._limit = protocol.body_limit(model.manifest)
        self._threads = ThreadPoolExecutor(MAX_CALLS, "grpc")

    def handlers(self) -> dict[str, Any]:
        """Return what answers each method, by its name."""
        methods: dict[str, tuple[Any, _Answer]] = {
            "ServerLive": (pb.ServerLiveRequest, self._live),
            "ServerReady": (pb.ServerReadyRequest, self._ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._about_server),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._about_model),
            "ModelInfer": (pb.ModelInferRequest, self._infer),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self._index),
        }
        return {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(kind, answer),
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (kind, answer) in methods.items()
        }

    def _guarded(self, kind: Any, answer: _Answer) -> Callable[[bytes, Any], Awaitable[Any]]:
        """Return a method that gives ANSWER to whoever may have it, and counts."""

        async def method(data: bytes, context: Any) -> Any:
            try:
                # Before it is parsed, which takes several times the memory of the message.
                self._admit(context)
                found = await answer(_parse(kind, data))
            except RequestError as error:
                self._api.refused(error)
                code = _CODES.get(error.status, grpc.StatusCode.INTERNAL)
                self._api.calls[code.name] += 1
                await context.abort(code, str(error))
            self._api.calls["OK"] += 1
            return found

        return method

    def _admit(self, context: Any) -> None:
        given = dict(context.invocation_metadata() or ())
        self._api.gate.admit(str(given.get("authorization", "")), over_tcp=True)

    async def _live(self, _request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _request: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def _about_server(self, _request: Any) -> Any:
        return pb.ServerMetadataResponse(name="edgepack", version=VERSION, extensions=EXTENSIONS)

    async def _index(self, _request: Any) -> Any:
        manifest = self._model.manifest
        answer = pb.RepositoryIndexResponse()
        answer.models.add(name=manifest.name, version=manifest.version, state="READY")
        return answer

    async def _model_ready(self, request: Any) -> Any:
        return pb.ModelReadyResponse(ready=self._is_ours(request.name, request.version))

    async def _about_model(self, request: Any) -> Any:
        self._check(request.name, request.version)
        about = protocol.describe_model(self._model.manifest, self._model.digest)
        sides = {
            side: [pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in about[side]]
            for side in ("inputs", "outputs")
        }
        return pb.ModelMetadataResponse(
            name=about["name"], versions=about["versions"], platform=about["platform"], **sides
        )

    async def _infer(self, request: Any) -> Any:
        self._check(request.model_name, request.model_version)
        asked = self._api.read(*_as_rest(request, self._limit))
        patience = min(asked.timeout_s, DEADLINE_S)
        loop, over = asyncio.get_running_loop(), threading.Event()
        try:
            async with asyncio.timeout(patience):
                outputs = await loop.run_in_executor(self._threads, self._asked, asked, over)
        except TimeoutError as error:
            raise late(patience) from error
        finally:
            over.set()  # whoever has cancelled takes no turn from others
        return _answer(self._api, self._model, asked, outputs)

    def _asked(self, asked: protocol.InferRequest, over: threading.Event) -> Mapping[str, Any]:
        outputs = self._api.ask(asked, over.is_set)
        self._model.decided(outputs)
        return outputs

    def _check(self, name: str, version: str) -> None:
        if not self._is_ours(name, version):
            raise RequestError(404, "there is no such model here", "not_found")

    def _is_ours(self, name: str, version: str) -> bool:
        manifest = self._model.manifest
        return name == manifest.name and version in {"", manifest.version}


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(400, f"this is no {kind.DESCRIPTOR.name}") from error


def _as_rest(request: Any, limit: int) -> tuple[Mapping[str, str], bytes]:
    """Return headers and body of the same request over REST, its tensors LIMIT bytes or less."""
    raw = list(request.raw_input_contents) or [_raw(tensor, limit) for tensor in request.inputs]
    if len(raw) != len(request.inputs):
        raise RequestError(400, f"{len(request.inputs)} inputs, {len(raw)} raw contents")
    document = {
        "id": request.id,
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _plain(tensor.parameters) | {"binary_data_size": len(piece)},
            }
            for tensor, piece in zip(request.inputs, raw, strict=True)
        ],
        "outputs": [
            {"name": output.name, "parameters": _plain(output.parameters) | {"binary_data": True}}
            for output in request.outputs
        ],
        "parameters": _plain(request.parameters) | {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    return {protocol.HEADER_LENGTH: str(len(head))}, b"".join((head, *raw))


def _plain(parameters: Any) -> dict[str, Any]:
    """Return PARAMETERS, a map to messages with one of several fields, as what is in them."""
    found = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, field) if field else None
    return found


def _raw(tensor: Any, limit: int) -> bytes:
    """Return the typed contents of TENSOR as they come in `raw_input_contents`."""
    if tensor.datatype == "BYTES":
        elements = tensor.contents.bytes_contents
        return b"".join(struct.pack("<I", len(each)) + each for each in elements)
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise RequestError(
            400, f"input `{tensor.name}`: {tensor.datatype[:16]} comes as raw contents only"
        )
    values = getattr(tensor.contents, field)
    dtype = np.dtype(protocol.DATATYPES[tensor.datatype]).newbyteorder("<")
    if len(values) * dtype.itemsize > limit:
        # A small number takes a byte on the way and up to eight here.
        raise RequestError(413, f"a request has at most {limit} bytes", "too_large")
    try:
        return np.fromiter(values, dtype, len(values)).tobytes()
    except OverflowError as error:
        raise RequestError(400, f"input `{tensor.name}`: a number is too large") from error


def _answer(
    api: Api, model: Model, asked: protocol.InferRequest, outputs: Mapping[str, Any]
) -> Any:
    """Return the response, its tensors as they come over REST as binary."""
    headers, body = api.write(asked, outputs)
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
