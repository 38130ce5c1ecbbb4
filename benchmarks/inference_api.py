"""Time an inference over the local API against the same call on the bare runtime.

    python benchmarks/inference_api.py BUNDLE.edgepack [--requests 500]

Prints medians and ratios: the runner over TCP and over its unix socket, with JSON and binary
tensors, and, for comparison, the standard library's ThreadingHTTPServer doing the same work in
a process of its own. Calls alternate, so that a slow moment of the machine hits all alike.
"""

import http.client
import http.server
import json
import multiprocessing
import queue
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgepack.bundle import open_bundle
from edgepack.manifest import Manifest
from edgepack_agent.adapters.runner import Runner
from edgepack_agent.runner import protocol
from edgepack_agent.runner.slot import open_slot
from edgepack_targets import registry

OIP = {numpy: oip for oip, numpy in protocol.DATATYPES.items()}
Request = tuple[bytes, dict[str, str]]


def random_inputs(manifest: Manifest) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        spec.name: (random.random([max(n, 1) for n in spec.shape]) * 255).astype(spec.dtype)
        for spec in manifest.inputs
    }


def request(inputs: dict[str, np.ndarray], *, binary: bool) -> Request:
    tensors = [
        {"name": name, "datatype": OIP[array.dtype.name], "shape": list(array.shape)}
        | ({"parameters": {"binary_data_size": array.nbytes}} if binary
           else {"data": array.ravel().tolist()})
        for name, array in inputs.items()
    ]  # fmt: skip
    document = {"inputs": tensors, "parameters": {"binary_data_output": binary}}
    head = json.dumps(document, separators=(",", ":")).encode()
    headers = {protocol.HEADER_LENGTH: str(len(head))} if binary else {}
    return head + b"".join(a.tobytes() for a in inputs.values() if binary), headers


class Connection:
    def __init__(self, address: Any, path: str) -> None:
        self._http, self._path = http.client.HTTPConnection("127.0.0.1"), path
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._http.sock = socket.socket(family)
        self._http.sock.connect(address)
        if family == socket.AF_INET:
            self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, request: Request) -> None:
        self._http.request("POST", self._path, *request)
        answer = self._http.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {body[:200]!r}")


def serve_by_stdlib(slot: Path, listener: socket.socket) -> None:
    """Do what the runner does, as well as ThreadingHTTPServer can."""
    found = open_slot(slot)
    session = registry.find(found.manifest.target.runtime).load(
        slot / "model", found.manifest, threads=1
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            asked = protocol.read_request(headers, body, found.manifest)
            outputs = session.run(asked.inputs)
            more, answer = protocol.write_response(found.manifest, found.digest, asked, outputs)
            self.send_response(200)
            for name, value in (more | {"content-length": str(len(answer))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def measure(calls: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Return the median of each call in milliseconds, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(count + 20):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 20:
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", type=int, default=500)
def main(bundle: Path, requests: int) -> None:
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    with tempfile.TemporaryDirectory() as name:
        slot = Path(name) / "slot"
        with open_bundle(bundle) as opened:
            opened.extract(slot)
            manifest = opened.manifest
        tcp, plain = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(f"{name}/api.sock")
        unix.listen()
        runner = Runner.start(slot, [tcp, unix], lambda _, event: events.put(event), threads=1)
        other = multiprocessing.Process(target=serve_by_stdlib, args=(slot, plain), daemon=True)
        try:
            runner.send({"cmd": "accept"})
            while events.get()["evt"] != "accepting":
                pass
            other.start()
            report(manifest, slot, (tcp, unix, plain), requests)
        finally:
            runner.stop(5)
            other.kill()


def report(
    manifest: Manifest, slot: Path, sockets: tuple[socket.socket, ...], requests: int
) -> None:
    inputs = random_inputs(manifest)
    session = registry.find(manifest.target.runtime).load(slot / "model", manifest, threads=1)
    path = f"/v2/models/{manifest.name}/infer"
    as_json, as_binary = request(inputs, binary=False), request(inputs, binary=True)
    tcp, unix, plain = (Connection(s.getsockname(), path) for s in sockets)
    raw = "bare runtime"
    found = measure(
        {
            raw: lambda: session.run(inputs),
            "runner, unix, binary": lambda: unix.post(as_binary),
            "runner, tcp, binary": lambda: tcp.post(as_binary),
            "runner, tcp, JSON": lambda: tcp.post(as_json),
            "stdlib, tcp, binary": lambda: plain.post(as_binary),
            "stdlib, tcp, JSON": lambda: plain.post(as_json),
        },
        requests,
    )
    print(f"{manifest.release} {manifest.variant}, {len(as_binary[0])} bytes as binary")
    for name, ms in found.items():
        print(f"{name:22} {ms:8.3f} ms  {ms / found[raw]:6.2f} x  +{ms - found[raw]:.3f} ms")


if __name__ == "__main__":
    main()
