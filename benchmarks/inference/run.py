"""Time the local inference API against the bare runtime, and its throughput against a peer.

    python benchmarks/inference/run.py [--requests 300] [--seconds 5] [--write-page]

The model is a MobileNetV2 (224 x 224, width 1.0, random weights) as int8 for every target, built
by `edgepack build`. One client asks a real runner over its unix socket and calls the same session
in its own process in turn, so that a slow moment of the machine hits both. Pictures come as float32
(602 kB, as the model takes them) and as uint8 (151 kB, preprocessed by the runner). The runtime has
one thread, which leaves the second core to the client.
"""

import contextlib
import json
import os
import queue
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import peers
from platformdirs import user_cache_path

from edgepack.bundle import open_bundle
from edgepack_agent.adapters.runner import Runner
from edgepack_agent.runner import protocol
from edgepack_agent.runner.setup import Setup
from edgepack_packager.adapters.toolchains import find_toolchain, interpreter
from edgepack_targets import registry

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "benchmarks-inference.md"
TARGETS = ("onnx", "openvino", "tflite")
CLIENTS = 4
KERAS = """
import sys, keras, numpy
keras.utils.set_random_seed(7)
model = keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3))
model.save(sys.argv[1] + "/mobilenet.keras")
drawn = numpy.random.default_rng(7).normal(0, 0.5, (16, 224, 224, 3)).clip(-1, 1)
numpy.savez(sys.argv[1] + "/calibration.npz", **{model.layers[0].name: drawn.astype("float32")})
"""
RECIPE = """
model:
  task: classify
  preprocess: {color: rgb, resize: {mode: stretch}, scale: 127.5, mean: [1.0]}
"""
Body = tuple[bytes, dict[str, str]]
SIZE = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def build(home: Path) -> dict[str, Path]:
    """Return the bundle of every target."""
    found = interpreter(find_toolchain("tf"))
    if found is None:
        raise SystemExit("edgepack toolchain install tf")
    subprocess.run([found.python, "-c", KERAS, home], check=True, capture_output=True)
    (home / "recipe.yaml").write_text(RECIPE)
    targets = [word for target in TARGETS for word in ("--target", target)]
    done = subprocess.run(
        [Path(sys.executable).with_name("edgepack"), "build", "mobilenet.keras", "--recipe",
         "recipe.yaml", "--name", "mobilenet", *targets, "--precision", "int8", "--calibration",
         "calibration.npz", "--unsigned", "--out", "dist", "--json"],
        cwd=home, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {b["target"]: home / b["path"] for b in json.loads(done.stdout)["bundles"]}


def body(name: str, array: np.ndarray, datatype: str) -> Body:
    """Return a request with ARRAY as a binary tensor."""
    sized = {"binary_data_size": array.nbytes}
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": sized}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document, separators=(",", ":")).encode()
    return head + array.tobytes(), {protocol.HEADER_LENGTH: str(len(head))}


def upload(data: bytes) -> Body:
    """Return DATA as a form with a file."""
    mark = "edgepack-benchmark"
    head = (
        f"--{mark}\r\nContent-Disposition: form-data; name=content; filename=x\r\n"
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    content = head.encode() + data + f"\r\n--{mark}--\r\n".encode()
    return content, {"content-type": f"multipart/form-data; boundary={mark}"}


class Connection:
    """A client that keeps its connection and does no more than it must, as load generators do.

    What a client's own library costs, tenths of a millisecond in Python's, is not the API's.
    """

    def __init__(self, address: Any, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._sock.connect(address)
        self._path = path
        if self._sock.family == socket.AF_INET:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, request: Body) -> None:
        """Ask and read the answer."""
        content, headers = request
        lines = [f"POST {self._path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(content)}", "", ""]
        self._sock.sendall("\r\n".join(lines).encode() + content)
        data = b""
        while b"\r\n\r\n" not in data:
            data = self._more(data)
        head, _, said = data.partition(b"\r\n\r\n")
        size = SIZE.search(head)
        if size is None or not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{head!r}: {said[:200]!r}")
        while len(said) < int(size[1]):
            said = self._more(said)

    def _more(self, data: bytes) -> bytes:
        more = self._sock.recv(65536)
        if not more:
            raise SystemExit("the server has hung up")
        return data + more


@contextlib.contextmanager
def serving(slot: Path, home: Path, threads: int = 1) -> Iterator[str]:
    """Yield the unix socket of a runner for SLOT."""
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{home}/api.sock")
        unix.listen()
        runner = Runner.start(
            slot, [unix], lambda _, event: events.put(event), Setup(threads=threads)
        )
        try:
            runner.send({"cmd": "accept"})
            while events.get()["evt"] != "accepting":
                pass
            yield f"{home}/api.sock"
        finally:
            runner.stop(5)


def medians(calls: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Return the median of each call in milliseconds, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(count + 20):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 20:
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def latency(bundle: Path, requests: int) -> dict[str, float]:
    """Return the medians of one target."""
    with tempfile.TemporaryDirectory() as name, open_bundle(bundle) as opened:
        home, manifest = Path(name), opened.manifest
        opened.extract(home / "slot")
        (spec,) = manifest.inputs
        dice = np.random.default_rng(1)
        pixels = dice.integers(0, 256, (1, 224, 224, 3), np.uint8)
        given = {spec.name: (pixels / np.float32(127.5) - 1).astype(np.float32)}
        path = f"/v2/models/{manifest.name}/infer"
        target = registry.find(manifest.target.runtime)
        session = target.load(home / "slot" / "model", manifest, threads=1)
        with serving(home / "slot", home) as address:
            asked = Connection(address, path)
            as_floats = body(spec.name, given[spec.name], "FP32")
            as_pixels = body(spec.name, pixels, "UINT8")
            return medians(
                {
                    "raw": lambda: session.run(given),
                    "float32": lambda: asked.post(as_floats),
                    "uint8": lambda: asked.post(as_pixels),
                },
                requests,
            )


def per_second(address: Any, path: str, request: Body, seconds: float) -> float:
    """Return how many requests a second `CLIENTS` clients get answered."""
    counts = [0] * CLIENTS
    end = time.monotonic() + seconds

    def ask(place: int) -> None:
        connection = Connection(address, path)
        while time.monotonic() < end:
            connection.post(request)
            counts[place] += 1

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def throughput(bundle: Path, seconds: float) -> dict[str, float]:
    """Return requests a second of the runner and of the peer, on the same ONNX file."""
    with tempfile.TemporaryDirectory() as name, open_bundle(bundle) as opened:
        home, manifest = Path(name), opened.manifest
        opened.extract(home / "slot")
        (spec,) = manifest.inputs
        array = np.zeros((1, 224, 224, 3), np.float32)
        request = body(spec.name, array, "FP32")
        with serving(home / "slot", home) as address:
            path = f"/v2/models/{manifest.name}/infer"
            ours = max(per_second(address, path, request, seconds) for _ in range(2))
        model = next((home / "slot" / "model").iterdir())
        with _peer(model) as port:
            plain = upload(array.tobytes())
            theirs = max(per_second(("127.0.0.1", port), "/predict", plain, seconds)
                         for _ in range(2))  # fmt: skip
    return {"edgepack": ours, "LitServe": theirs}


@contextlib.contextmanager
def _peer(model: Path) -> Iterator[int]:
    python = peers.environment(user_cache_path("edgepack") / "benchmarks" / "litserve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [python, peers.SERVER, model, str(port)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit("the peer does not start")
            time.sleep(0.2)
        time.sleep(2)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def table(bundles: dict[str, Path], requests: int, seconds: float) -> str:
    """Return the measurements as Markdown tables."""
    lines = [
        "| target | raw call, ms | float32: ms, ratio | uint8: ms, ratio |",
        "|---|---|---|---|",
    ]
    for target, bundle in bundles.items():
        found = latency(bundle, requests)
        cells = [
            f"{found[kind]:.2f}, **{found[kind] / found['raw']:.2f} x** "
            f"(+{1000 * (found[kind] - found['raw']):.0f} us)"
            for kind in ("float32", "uint8")
        ]
        lines.append(f"| {target} | {found['raw']:.2f} | {' | '.join(cells)} |")
    speed = throughput(bundles["onnx"], seconds)
    lines += ["", f"| requests a second, {CLIENTS} clients, float32 | |", "|---|---|"]
    lines += [f"| {name} | {count:.0f} |" for name, count in speed.items()]
    return "\n".join(lines)


@click.command()
@click.option("--requests", default=300, help="Of each kind.")
@click.option("--seconds", default=5.0, help="Of each measurement of throughput.")
@click.option("--write-page", is_flag=True, help="Put the tables into docs.")
def main(requests: int, seconds: float, write_page: bool) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        found = table(build(Path(name)), requests, seconds)
    click.echo(found)
    if write_page:
        before, _, rest = PAGE.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->")[2]
        PAGE.write_text(f"{before}<!-- table -->\n{found}\n\n<!-- end -->{after}")


if __name__ == "__main__":
    main()
