"""The HTTP routes: Open Inference Protocol v2, its neighbours, and what else asks to be one.

Every answer carries the digest of the bundle that gave it. Reads no file, knows no runtime:
it hands what `protocol` has read to the model, when it is its turn.
"""

import ipaddress
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from edgepack_agent.runner import protocol
from edgepack_agent.runner.connection import DEADLINE_S, Call, Reply, Route, late
from edgepack_agent.runner.engine import Engine, ExpiredError, QueueFullError
from edgepack_agent.runner.families import Families, Family
from edgepack_agent.runner.gate import Gate
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.openapi import describe_api, describe_infer, describe_read
from edgepack_agent.runner.protocol import InferRequest, RequestError
from edgepack_agent.runner.statistics import Statistics

__all__ = ["EXTENSIONS", "VERSION", "Api"]

log = logging.getLogger(__name__)

VERSION = version("edgepack")
EXTENSIONS = ["binary_tensor_data", "edgepack_image", "edgepack_bundle", "model_repository"]
_JSON = {"content-type": "application/json"}
_FREE = {"/healthz", "/readyz"}


class Api:
    """What is asked of one loaded model, over HTTP; see `connection.App`.

    Args:
        model: What is asked.
        engine: Whose turn it is.
        statistics: Where requests without an answer are counted.

    Attributes:
        limit: Bytes that a body may have.
        gate: Who may ask.
        routes: What answers which path.
        requests: HTTP requests by status.
        calls: Calls over gRPC by the name of their status.
        families: What `/metrics` tells beside the model; more may be added.
    """

    def __init__(self, model: Model, engine: Engine, statistics: Statistics) -> None:
        self._model, self._engine, self._statistics = model, engine, statistics
        self._told: set[type[Exception]] = set()
        self._counting = threading.Lock()
        self._codec = protocol.Codec(model.manifest, model.digest)
        self._every_answer = {"edgepack-bundle": model.digest}
        self.limit = protocol.body_limit(model.manifest)
        self.requests: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()
        self.gate = Gate()
        self._own = self._routes()
        self.routes = self._own
        self.families: list[Families] = [self._traffic]

    def add(self, routes: Mapping[str, Route]) -> None:
        """Serve ROUTES beside those of the protocol, instead of what was added before."""
        self.routes = self._own | dict(routes)

    def admit(self, call: Call) -> Route:
        """Return what answers CALL, whose body is not read yet.

        Raises:
            RequestError: 401, 403, 404, 405 or 429; nothing does.
        """
        if call.over_tcp:
            _check_host(call.headers)
        route = self.routes.get(call.path)
        if route is None or not route.free:
            # Before it is said what there is: a stranger learns nothing.
            self.gate.admit(call.headers.get("authorization", ""), over_tcp=call.over_tcp)
        if route is None:
            raise _nothing_at(call.path)
        if call.method not in route.methods:
            raise RequestError(405, f"this is a {' or '.join(route.methods)}")
        return route

    def refuse(self, error: Exception) -> Reply:
        """Return what to say after ERROR, and count it."""
        if not isinstance(error, RequestError):
            self._tell_once(error)
            error = RequestError(500, "the runner failed", "runner_error")
        self.refused(error)
        headers = dict(_JSON)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        again_s = 1.0 if error.status == 503 else error.retry_after_s
        if again_s is not None:
            headers["retry-after"] = str(math.ceil(again_s))
        return Reply(error.status, headers, msgspec.json.encode({"error": str(error)}))

    def count(self, reply: Reply) -> Mapping[str, str]:
        """Count REPLY and return the header that names the bundle."""
        with self._counting:
            self.requests[reply.status] += 1
        return self._every_answer

    def _routes(self) -> dict[str, Route]:
        manifest = self._model.manifest
        base = f"/v2/models/{manifest.name}"
        infer = Route(self._infer, describe_infer(manifest), ("POST",))
        index = [{"name": manifest.name, "version": manifest.version, "state": "READY"}]
        served = describe_read("The models that are served")
        metrics = describe_read("Counters for Prometheus", "text/plain")
        return _documents(self._model) | {
            f"{base}/infer": infer,
            f"{base}/versions/{manifest.version}/infer": infer,
            "/v2/repository/index": Route(_always(index), served, ("POST",)),
            "/metrics": Route(self._metrics, metrics),
            "/openapi.json": Route(self._openapi, describe_read("This document")),
        }

    def _openapi(self, _call: Call) -> Reply:
        # Made when it is asked for: routes come and go with cameras.
        document = describe_api(self._model.manifest, self._model.digest, self.routes)
        return Reply(200, _JSON, msgspec.json.encode(document))

    def _metrics(self, _call: Call) -> Reply:
        from edgepack_agent.runner.metrics import CONTENT_TYPE_LATEST, Metrics

        told = chain.from_iterable(tell() for tell in self.families)
        found = Metrics(self._model, self._statistics, told)
        return Reply(200, {"content-type": CONTENT_TYPE_LATEST}, found.text())

    def _traffic(self) -> Iterator[Family]:
        with self._counting:  # a status that is new may come from any thread
            counted = dict(self.requests)
        requests = {(str(status),): float(count) for status, count in counted.items()}
        yield Family(
            "edgepack_http_requests", "Requests by status.", requests, ("code",), counter=True
        )
        calls = {(status,): float(count) for status, count in dict(self.calls).items()}
        yield Family("edgepack_grpc_calls", "gRPC, by status.", calls, ("code",), counter=True)
        waiting = {(): float(self._engine.waiting)}
        yield Family("edgepack_queue_depth", "Requests that wait for the model.", waiting)

    def _infer(self, call: Call) -> Reply:
        request = self.read(call.headers, call.body)
        call.wait_at_most(min(request.timeout_s, DEADLINE_S))
        outputs = self.ask(request)
        headers, body = self.write(request, outputs)
        return Reply(200, headers, body, lambda: self._model.decided(outputs))

    def read(self, headers: Mapping[str, str], body: bytes | memoryview) -> InferRequest:
        """Return the request in HEADERS and BODY.

        Raises:
            RequestError: it is none.
        """
        return self._codec.read(headers, body)

    def write(
        self, request: InferRequest, outputs: Mapping[str, Any]
    ) -> tuple[dict[str, str], bytes]:
        """Return headers and body that answer REQUEST with OUTPUTS.

        Raises:
            RequestError: they cannot be said as it asks.
        """
        try:
            return self._codec.write(request, outputs)
        except RequestError as error:
            if error.reason == "non_finite" and not _finite(request.inputs):
                told = "an input holds NaN or infinity, and so does the answer"
                raise RequestError(400, told) from error
            raise

    def ask(
        self, request: InferRequest, over: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Return the model's outputs for REQUEST, which are still to be counted by `decided`.

        Args:
            request: What is asked.
            over: Whether nobody waits any longer; asked when it is the request's turn.

        Raises:
            RequestError: there are none, or not in time.
        """
        patience = min(request.timeout_s, DEADLINE_S)

        def answer() -> dict[str, Any]:
            if over():
                raise ExpiredError
            return self._model.answer(request.inputs)

        try:
            return self._engine.run(answer, patience)
        except QueueFullError as error:
            raise RequestError(503, "too many requests are waiting", "queue_full") from error
        except ExpiredError as error:
            raise late(patience) from error
        except RequestError:
            raise
        except Exception as error:
            self._tell_once(error)
            raise RequestError(500, "the runtime failed", "runtime_error") from error

    def refused(self, error: RequestError) -> None:
        """Count a request that got no answer."""
        self._statistics.failed(error.reason)

    def _tell_once(self, error: Exception) -> None:
        """Log ERROR if it is the first of its kind; the statistics count them all."""
        if type(error) not in self._told:
            self._told.add(type(error))
            log.error("a request failed", exc_info=error)


def _finite(inputs: Mapping[str, Any]) -> bool:
    arrays = (given for given in inputs.values() if isinstance(given, np.ndarray))
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def _documents(model: Model) -> dict[str, Route]:
    """Return the routes whose answers never change."""
    manifest = model.manifest
    about = protocol.describe_model(manifest, model.digest)
    base = f"/v2/models/{manifest.name}"
    state = {"name": manifest.name, "version": manifest.version, "ready": True}
    server = {"name": "edgepack", "version": VERSION, "extensions": EXTENSIONS}
    documents: dict[str, tuple[str, dict[str, Any]]] = {
        "/v2": ("What serves, and its extensions", server),
        "/v2/health/live": ("Whether the server answers", {"live": True}),
        "/v2/health/ready": ("Whether the model answers", {"ready": True}),
        "/healthz": ("Whether the server answers, without a token", {"live": True}),
        "/readyz": ("Whether the model answers, without a token", {"ready": True}),
    }
    for path in (base, f"{base}/versions/{manifest.version}"):
        documents[path] = ("Inputs and outputs of the model", about)
        documents[f"{path}/ready"] = ("Whether the model answers", state)
    return {
        path: Route(_always(document), describe_read(told), free=path in _FREE)
        for path, (told, document) in documents.items()
    }


def _nothing_at(path: str) -> RequestError:
    told = f"there is no {path[:200]} here; /openapi.json says what there is"
    return RequestError(404, told, "not_found")


def _always(document: Any) -> Callable[[Call], Reply]:
    body = msgspec.json.encode(document)
    return lambda _call: Reply(200, _JSON, body)


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
