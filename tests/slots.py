"""Extracted digits bundles for the ONNX runtime, as a device has them, and handles that remember.

Slots are built once per process with the real bundle writer and reader and copied per test.
"""

import http.client
import json
import queue
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from digits import INPUT, LABELS, OUTPUT, digits_data, digits_onnx
from edgepack.bundle import open_bundle, write_bundle
from edgepack.decoders import Softmax
from edgepack.manifest import (
    Agreement,
    Binding,
    Golden,
    Manifest,
    Preprocess,
    Provenance,
    Target,
    TensorSpec,
)
from edgepack_agent.adapters.runner import Event, Runner
from edgepack_agent.runner.setup import Setup

DEADLINE_S = 30.0


def digits_manifest(version: str = "1.0.0") -> Manifest:
    """Return the manifest of a digits bundle, `files` and `build_id` still to be filled in."""
    return Manifest(
        schema="edgepack.bundle/v1",
        name="digits",
        version=version,
        build_id="",
        task="classify",
        target=Target(
            runtime="onnx", min_runtime="1.20", precision="fp32", execution_precision="f32"
        ),
        inputs=(_spec(INPUT, (1, 1, 16, 16), "NCHW"),),
        outputs=(_spec(OUTPUT, (1, 10), "NC"),),
        agreement=Agreement(rule="top1", output=OUTPUT),
        golden=Golden(inputs="golden/inputs.npz", outputs="golden/outputs.npz", samples=8),
        provenance=Provenance(source_sha256="0" * 64, source_format="onnx"),
        files=(),
        preprocess=Preprocess(input=INPUT, color="gray"),
        postprocess=Softmax(output=OUTPUT, activation="softmax", top_k=3),
        labels=LABELS,
    )


def _spec(
    name: str, shape: tuple[int, ...], layout: str | None, dtype: str = "float32"
) -> TensorSpec:
    binding = Binding(native_name=name)
    return TensorSpec(name=name, shape=shape, dtype=dtype, binding=binding, layout=layout)


@cache
def digits_bundle(version: str = "1.0.0", wrong_labels: float = 0.0) -> Path:
    """Return an unsigned digits bundle."""
    home = Path(tempfile.mkdtemp(prefix="edgepack-slots-"))
    model = digits_onnx(home / "model.onnx", wrong_labels, batch=1)
    inputs = digits_data()[1].head(8).inputs
    np.savez(home / "inputs.npz", **{INPUT: inputs})
    np.savez(home / "outputs.npz", **{OUTPUT: np.concatenate([raw(model, i) for i in inputs])})
    (home / "labels.txt").write_text("\n".join(LABELS) + "\n")
    files = {
        "model/model.onnx": model,
        "golden/inputs.npz": home / "inputs.npz",
        "golden/outputs.npz": home / "outputs.npz",
        "labels.txt": home / "labels.txt",
    }
    return write_bundle(home, digits_manifest(version), files).path


def digits_slot(directory: Path, version: str = "1.0.0", wrong_labels: float = 0.0) -> Path:
    """Extract a digits bundle to DIRECTORY and return it."""
    with open_bundle(digits_bundle(version, wrong_labels)) as bundle:
        bundle.extract(directory)
    return directory


def raw(model: Path, image: np.ndarray) -> np.ndarray:
    """Return what onnxruntime itself answers for one IMAGE (1, 16, 16)."""
    return _session(model).run(None, {INPUT: image[None]})[0]


@cache
def _session(model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


class Heard:
    """A runner's handle with a memory of its events."""

    def __init__(
        self,
        slot: Path,
        sockets: Sequence[socket.socket] = (),
        state: Path | None = None,
        setup: Setup | None = None,
    ) -> None:
        # What is beside the slot may be a source; a test that wants it otherwise says so.
        results = str(state) if state else None
        setup = setup or Setup(threads=1, read=(str(slot.parent),), results=results)
        self.events: queue.Queue[Event] = queue.Queue()
        self.past: list[Event] = []
        self.runner = Runner.start(slot, sockets, lambda _, event: self.events.put(event), setup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.kill()
        self.runner.stop(0)

    def tell(self, cmd: str, **fields: Any) -> None:
        self.runner.send({"cmd": cmd, **fields})

    def wait(self, name: str, when: Callable[[Event], bool] = lambda _: True) -> Event:
        """Return the next event NAME for which WHEN holds; fail if the runner ends before."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            event = self.events.get(timeout=deadline - time.monotonic())
            self.past.append(event)
            if event["evt"] == name and when(event):
                return event
            assert event["evt"] not in {"failed", "exited"}, event

    def silent_for(self, seconds: float) -> bool:
        """Return whether no event came for SECONDS; False after the first one that did."""
        try:
            self.past.append(self.events.get(timeout=seconds))
        except queue.Empty:
            return True
        return False

    def last(self) -> Event:
        """Return the `exited` event and check that nothing follows it."""
        exited = self.wait("exited")
        assert self.events.empty()
        return exited

    def accepting(self, **admit: Any) -> Self:
        """Return once it answers; ADMIT says who may ask, and where."""
        self.wait("loaded")
        if admit:
            self.tell("admit", **admit)
        self.tell("accept")
        self.wait("accepting")
        return self


def listen(path: Path | None = None) -> socket.socket:
    """Return a listening socket, on 127.0.0.1 or on the unix socket PATH."""
    if path is None:
        return socket.create_server(("127.0.0.1", 0))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def results(state: Path) -> list[dict[str, Any]]:
    """Return the rows that a runner has written below STATE so far, the whole ones."""
    path = state / "results.jsonl"
    *lines, _torn = path.read_text().split("\n") if path.exists() else ("",)
    return [json.loads(line) for line in lines]


def copy_of(slot: Path, directory: Path) -> Path:
    return Path(shutil.copytree(slot, directory))


def rewrite_manifest(slot: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest in SLOT and write it canonically, as an attacker would."""
    path = slot / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))


def counting_slot(directory: Path) -> Path:
    """Build in DIRECTORY a model that counts up to its input `n`, and so takes as long as asked."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["so_far", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("so_far", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["n"], ["trips"]),
            helper.make_node("Loop", ["trips", "", "zero"], ["count"], body=body),
        ],
        "counting",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("count", TensorProto.INT64, [1])],
        [
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), home / "model.onnx")
        np.savez(home / "inputs.npz", n=np.array([[3]], np.int64))
        np.savez(home / "outputs.npz", count=np.array([[3]], np.int64))
        manifest = msgspec.structs.replace(
            digits_manifest(),
            name="counting",
            task="raw",
            inputs=(_spec("n", (1,), None, "int64"),),
            outputs=(_spec("count", (1,), None, "int64"),),
            agreement=Agreement(rule="cosine", output="count"),
            golden=Golden(inputs="golden/inputs.npz", outputs="golden/outputs.npz", samples=1),
            preprocess=None,
            postprocess=None,
            labels=(),
        )
        files = {
            "model/model.onnx": home / "model.onnx",
            "golden/inputs.npz": home / "inputs.npz",
            "golden/outputs.npz": home / "outputs.npz",
        }
        with open_bundle(write_bundle(home, manifest, files).path) as bundle:
            bundle.extract(directory)
    return directory


class Client:
    """A plain HTTP client on one kept-alive connection, over TCP or a unix socket."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", timeout=DEADLINE_S)
        self._http.sock = (
            socket.socket(socket.AF_UNIX)
            if isinstance(address, str)
            else socket.socket(socket.AF_INET)
        )
        self._http.sock.settimeout(DEADLINE_S)
        self._http.sock.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def fileno(self) -> int:
        return self._http.sock.fileno()

    def send(self, method: str, path: str, body: bytes) -> None:
        """Ask without waiting for the answer."""
        self._http.request(method, path, body)

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers (lower case) and body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._http.request(method, path, body, named)
        answer = self._http.getresponse()
        content = answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def infer(self, image: np.ndarray, model: str = "digits") -> tuple[np.ndarray, dict[str, str]]:
        """Return the first output and the headers for IMAGE (1, 16, 16), sent as JSON."""
        tensor = {"name": INPUT, "datatype": "FP32", "shape": [1, *image.shape]}
        body = json.dumps({"inputs": [tensor | {"data": image.ravel().tolist()}]}).encode()
        status, headers, content = self.ask("POST", f"/v2/models/{model}/infer", body)
        assert status == 200, content
        found = json.loads(content)["outputs"][0]
        return np.array(found["data"], np.float32).reshape(found["shape"]), headers
