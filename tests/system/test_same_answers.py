"""One model, three runtimes: the same file and the same request give the same decisions."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from system.harness import BIN, clean_env, free_port, run, wait

pytestmark = [pytest.mark.system, pytest.mark.toolchain, pytest.mark.scale]
TARGETS = ("openvino", "tflite", "onnx")


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundles(
    request: pytest.FixtureRequest, keras_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("same")
    targets = [word for target in TARGETS for word in ("--target", target)]
    done = run(
        "edgepack", "build", keras_home / "model.keras", *targets, "--precision", request.param,
        "--calibration", keras_home / "calibration.npz", "--name", "digits", "--unsigned",
        "--out", home, "--json", env=clean_env(home),
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return {b["target"]: Path(b["path"]) for b in done.document["bundles"]}


def test_the_same_request_gets_the_same_decisions(
    bundles: dict[str, Path], keras_home: Path, tmp_path: Path
) -> None:
    with np.load(keras_home / "evaluate.npz") as data:
        images = data["image"][:60]
    answers = {}
    for target, bundle in bundles.items():
        with served(bundle, tmp_path / f"{target}.log") as url:
            answers[target] = [ask(url, image) for image in images]
    assert answers["openvino"] == answers["tflite"] == answers["onnx"]
    assert len(set(answers["onnx"])) == 10, "the samples show every digit"


def test_the_same_file_gets_the_same_decisions(
    bundles: dict[str, Path], keras_home: Path, tmp_path: Path
) -> None:
    decisions = {}
    for target, bundle in bundles.items():
        out = tmp_path / f"{target}.npz"
        done = run(
            "edgepack", "run", bundle, "--input", keras_home / "x.npz", "--out", out,
            env=clean_env(tmp_path),
        )  # fmt: skip
        assert done.code == 0, done.stderr
        with np.load(out) as data:
            decisions[target] = data["scores"].argmax(axis=1).tolist()
    assert decisions["openvino"] == decisions["tflite"] == decisions["onnx"]


@contextlib.contextmanager
def served(bundle: Path, log: Path) -> Iterator[str]:
    """Yield the address at which BUNDLE is served by the device's own runner."""
    port = free_port()
    command = [BIN / "edgepack-agent", "serve", bundle, "--listen", f"127.0.0.1:{port}"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        wait("the model to be served", lambda: ready(url))
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200
    return False


def ask(url: str, image: np.ndarray) -> int:
    tensor = {
        "name": "image",
        "shape": [1, *image.shape],
        "datatype": "FP32",
        "data": image.ravel().tolist(),
    }
    reply = httpx.post(f"{url}/v2/models/digits/infer", content=json.dumps({"inputs": [tensor]}))
    assert reply.status_code == 200, reply.text
    return int(np.argmax(reply.json()["outputs"][0]["data"]))
