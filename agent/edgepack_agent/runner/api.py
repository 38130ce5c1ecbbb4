"""The HTTP routes: Open Inference Protocol v2 plus /healthz and /readyz, as one ASGI app.

Every answer carries the digest of the bundle that gave it. Reads no file, knows no runtime:
it hands what `protocol` has read to the model, through the engine's queue.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

import msgspec

from edgepack_agent.runner import protocol
from edgepack_agent.runner.engine import Engine, ExpiredError, QueueFullError
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.protocol import RequestError
from edgepack_agent.runner.statistics import Statistics

__all__ = ["DEADLINE_S", "Api"]

log = logging.getLogger(__name__)

DEADLINE_S = 30.0
"""Seconds after which a request is answered with 504, whatever the model does."""
_EXTENSIONS = ["binary_tensor_data", "edgepack_image", "edgepack_bundle"]
_Scope = Mapping[str, Any]
_Receive = Callable[[], Awaitable[dict[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]
_Reply = tuple[int, dict[str, str], bytes]


class Api:
    """The ASGI app of one loaded model.

    Args:
        model: What is asked.
        engine: Where it works.
        statistics: Where requests without an answer are counted.
        closing: Whether connections should end after their answer.
    """

    def __init__(
        self, model: Model, engine: Engine, statistics: Statistics, closing: Callable[[], bool]
    ) -> None:
        self._model, self._engine, self._statistics = model, engine, statistics
        self._closing = closing
        self._told: set[type[Exception]] = set()
        self._limit = protocol.body_limit(model.manifest)
        self._documents = _documents(model)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one HTTP request."""
        try:
            status, headers, body = await self._answer(scope, receive)
        except RequestError as error:
            self._statistics.failed(error.reason)
            status, headers, body = _refusal(error)
        headers |= {"content-length": str(len(body)), "edgepack-bundle": self._model.digest}
        if self._closing():
            headers["connection"] = "close"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: _Scope, receive: _Receive) -> _Reply:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        _check_host(scope, headers)
        path, method = scope["path"].rstrip("/"), scope["method"]
        if path in self._infer_paths():
            if method != "POST":
                raise RequestError(405, "inference is a POST")
            body = await self._body_in_time(headers, receive)
            return await self._infer(headers, body)
        document = self._documents.get(path)
        if document is None:
            raise RequestError(404, f"there is no {path[:200]} here", "not_found")
        if method not in {"GET", "HEAD"}:
            raise RequestError(405, "only inference is a POST")
        return 200, {"content-type": "application/json"}, document

    def _infer_paths(self) -> tuple[str, str]:
        base = f"/v2/models/{self._model.manifest.name}"
        return f"{base}/infer", f"{base}/versions/{self._model.manifest.version}/infer"

    async def _body_in_time(self, headers: Mapping[str, str], receive: _Receive) -> bytes:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._body(headers, receive)
        except TimeoutError as error:
            raise RequestError(408, "the request did not come", "slow_request") from error

    async def _body(self, headers: Mapping[str, str], receive: _Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            raise _too_large(self._limit)
        pieces, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the client has gone", "disconnected")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._limit:
                raise _too_large(self._limit)
            more = message.get("more_body", False)
        return b"".join(pieces)

    async def _infer(self, headers: Mapping[str, str], body: bytes) -> _Reply:
        model = self._model
        request = protocol.read_request(headers, body, model.manifest)
        patience = min(request.timeout_s, DEADLINE_S)
        try:
            async with asyncio.timeout(patience):
                work = self._engine.submit(lambda: model.answer(request.inputs), patience)
                outputs = await asyncio.wrap_future(work)
        except QueueFullError as error:
            raise RequestError(503, "too many requests are waiting", "queue_full") from error
        except (ExpiredError, TimeoutError) as error:
            raise RequestError(504, f"no answer within {patience:g} s", "deadline") from error
        except RequestError:
            raise
        except Exception as error:
            self._tell_once(error)
            raise RequestError(500, "the runtime failed", "runtime_error") from error
        return 200, *protocol.write_response(model.manifest, model.digest, request, outputs)

    def _tell_once(self, error: Exception) -> None:
        """Log ERROR if it is the first of its kind; the statistics count them all."""
        if type(error) not in self._told:
            self._told.add(type(error))
            log.error("the runtime failed", exc_info=error)


def _documents(model: Model) -> dict[str, bytes]:
    """Return the answers that never change, by path."""
    manifest = model.manifest
    about = protocol.describe_model(manifest, model.digest)
    base = f"/v2/models/{manifest.name}"
    state = {"name": manifest.name, "version": manifest.version, "ready": True}
    server = {"name": "edgepack", "version": version("edgepack"), "extensions": _EXTENSIONS}
    documents: dict[str, dict[str, Any]] = {
        "/v2": server,
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/healthz": {"live": True},
        "/readyz": {"ready": True},
    }
    for path in (base, f"{base}/versions/{manifest.version}"):
        documents |= {path: about, f"{path}/ready": state}
    return {path: msgspec.json.encode(document) for path, document in documents.items()}


def _check_host(scope: _Scope, headers: Mapping[str, str]) -> None:
    """Refuse a web page whose name was made to point here: over TCP, only local names are ours."""
    server = scope.get("server")
    over_tcp = server is not None and server[1] is not None
    host = headers.get("host", "")
    if over_tcp and host and not _is_local(host):
        raise RequestError(403, "only local names are served", "foreign_host")


def _is_local(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"a request for this model has at most {limit} bytes", "too_large")


def _refusal(error: RequestError) -> _Reply:
    headers = {"content-type": "application/json"}
    if error.status == 503:
        headers["retry-after"] = "1"
    return error.status, headers, msgspec.json.encode({"error": str(error)})
