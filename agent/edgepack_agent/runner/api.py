"""The HTTP routes: Open Inference Protocol v2, its neighbours, and what else asks to be one.

Every answer carries the digest of the bundle that gave it. Reads no file, knows no runtime:
it hands what `protocol` has read to the model, through the engine's queue.
"""

import asyncio
import ipaddress
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any

import msgspec

from edgepack_agent.runner import protocol
from edgepack_agent.runner.engine import Engine, ExpiredError, QueueFullError
from edgepack_agent.runner.families import Families, Family
from edgepack_agent.runner.gate import Gate
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.openapi import describe_api
from edgepack_agent.runner.protocol import InferRequest, RequestError
from edgepack_agent.runner.statistics import Statistics

__all__ = ["DEADLINE_S", "EXTENSIONS", "VERSION", "Api", "Call", "Reply", "Route"]

log = logging.getLogger(__name__)

DEADLINE_S = 30.0
"""Seconds after which a request is answered with 504, whatever the model does."""
VERSION = version("edgepack")
EXTENSIONS = ["binary_tensor_data", "edgepack_image", "edgepack_bundle", "model_repository"]
_Scope = Mapping[str, Any]
_Receive = Callable[[], Awaitable[dict[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]
_JSON = {"content-type": "application/json"}

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    headers: Mapping[str, str]
    receive: _Receive


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path."""

    answer: Callable[[Call], Awaitable[Reply]]
    methods: tuple[str, ...] = ("GET", "HEAD")
    free: bool = False
    """Whether whoever asks needs no token."""


class Api:
    """The ASGI app of one loaded model.

    Args:
        model: What is asked.
        engine: Where it works.
        statistics: Where requests without an answer are counted.
        closing: Whether connections should end after their answer.

    Attributes:
        gate: Who may ask.
        routes: What answers which path; more may be added.
        requests: HTTP requests by status.
        calls: Calls over gRPC by the name of their status.
        families: What `/metrics` tells beside the model; more may be added.
    """

    def __init__(
        self, model: Model, engine: Engine, statistics: Statistics, closing: Callable[[], bool]
    ) -> None:
        self._model, self._engine, self._statistics = model, engine, statistics
        self._closing = closing
        self._told: set[type[Exception]] = set()
        self._limit = protocol.body_limit(model.manifest)
        self.requests: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()
        self.gate = Gate()
        self.routes = self._routes()
        self.families: list[Families] = [self._traffic]

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one HTTP request."""
        try:
            status, headers, body = await self._answer(scope, receive)
        except RequestError as error:
            self.refused(error)
            status, headers, body = _refusal(error)
        self.requests[status] += 1
        headers = headers | {
            "content-length": str(len(body)), "edgepack-bundle": self._model.digest,
        }  # fmt: skip
        if self._closing():
            headers["connection"] = "close"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: _Scope, receive: _Receive) -> Reply:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        over_tcp = _over_tcp(scope)
        if over_tcp:
            _check_host(headers)
        path, method = scope["path"].rstrip("/"), scope["method"]
        route = self.routes.get(path)
        if route is None or not route.free:
            # Before it is said what there is: a stranger learns nothing.
            self.gate.admit(headers.get("authorization", ""), over_tcp=over_tcp)
        if route is None:
            raise RequestError(404, f"there is no {path[:200]} here", "not_found")
        if method not in route.methods:
            raise RequestError(405, f"this is a {' or '.join(route.methods)}")
        return await route.answer(Call(headers, receive))

    def _routes(self) -> dict[str, Route]:
        documents = _documents(self._model)
        free = {"/healthz", "/readyz"}
        routes = {
            path: Route(_always(document), free=path in free)
            for path, document in documents.items()
        }
        manifest = self._model.manifest
        base = f"/v2/models/{manifest.name}"
        infer = Route(self._infer, ("POST",))
        index = [{"name": manifest.name, "version": manifest.version, "state": "READY"}]
        return routes | {
            f"{base}/infer": infer,
            f"{base}/versions/{manifest.version}/infer": infer,
            "/v2/repository/index": Route(_always(msgspec.json.encode(index)), ("POST",)),
            "/metrics": Route(self._metrics),
        }

    async def _metrics(self, _call: Call) -> Reply:
        from edgepack_agent.runner.metrics import CONTENT_TYPE_LATEST, Metrics

        told = chain.from_iterable(tell() for tell in self.families)
        found = Metrics(self._model, self._statistics, told)
        return 200, {"content-type": CONTENT_TYPE_LATEST}, found.text()

    def _traffic(self) -> Iterator[Family]:
        requests = {(str(status),): float(count) for status, count in self.requests.items()}
        yield Family(
            "edgepack_http_requests", "Requests by status.", requests, ("code",), counter=True
        )
        calls = {(status,): float(count) for status, count in self.calls.items()}
        yield Family("edgepack_grpc_calls", "gRPC, by status.", calls, ("code",), counter=True)
        waiting = {(): float(self._engine.waiting)}
        yield Family("edgepack_queue_depth", "Requests that wait for the model.", waiting)

    async def _body_in_time(self, call: Call) -> bytes:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._body(call.headers, call.receive)
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

    async def _infer(self, call: Call) -> Reply:
        body = await self._body_in_time(call)
        request, outputs = await self.ask(call.headers, body)
        answer = protocol.write_response(self._model.manifest, self._model.digest, request, outputs)
        return 200, *answer

    async def ask(
        self, headers: Mapping[str, str], body: bytes
    ) -> tuple[InferRequest, dict[str, Any]]:
        """Return the request in HEADERS and BODY as it was read, and the model's outputs.

        Raises:
            RequestError: it is none, or there is no answer in time.
        """
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
        return request, outputs

    def refused(self, error: RequestError) -> None:
        """Count a request that got no answer."""
        self._statistics.failed(error.reason)

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
    server = {"name": "edgepack", "version": VERSION, "extensions": EXTENSIONS}
    documents: dict[str, dict[str, Any]] = {
        "/v2": server,
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/healthz": {"live": True},
        "/readyz": {"ready": True},
        "/openapi.json": describe_api(manifest, model.digest),
    }
    for path in (base, f"{base}/versions/{manifest.version}"):
        documents |= {path: about, f"{path}/ready": state}
    return {path: msgspec.json.encode(document) for path, document in documents.items()}


def _always(document: bytes) -> Callable[[Call], Awaitable[Reply]]:
    async def answer(_call: Call) -> Reply:
        return 200, _JSON, document

    return answer


def _over_tcp(scope: _Scope) -> bool:
    server = scope.get("server")
    return server is not None and server[1] is not None


def _check_host(headers: Mapping[str, str]) -> None:
    """Refuse a web page whose name was made to point here: over TCP, only local names are ours."""
    host = headers.get("host", "")
    if host and not _is_local(host):
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


def _refusal(error: RequestError) -> Reply:
    headers = dict(_JSON)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    again_s = 1.0 if error.status == 503 else error.retry_after_s
    if again_s is not None:
        headers["retry-after"] = str(math.ceil(again_s))
    return error.status, headers, msgspec.json.encode({"error": str(error)})
