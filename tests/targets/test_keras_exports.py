"""What TensorFlow exports: other bytes in every process before, the same after conversion."""

import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from digits import digits_data
from edgepack_packager.adapters import toolchains
from edgepack_targets import registry
from edgepack_targets.interface import Quantization

pytestmark = pytest.mark.toolchain

EXPORT = """
import sys
import keras, numpy as np, tensorflow as tf
out = sys.argv[1]
keras.utils.set_random_seed(1)
image = keras.Input((16, 16, 1), name="image")
maps = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
maps = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(maps))
maps = keras.layers.MaxPooling2D()(maps)
hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(maps))
model = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="probs")(hidden))
model(np.zeros((1, 16, 16, 1), np.float32))
model.export(out + "/saved", format="tf_saved_model", verbose=False)
model.export(out + "/model.onnx", format="onnx", verbose=False)
converter = tf.lite.TFLiteConverter.from_saved_model(out + "/saved")
open(out + "/model.tflite", "wb").write(converter.convert())
images = np.load(out + "/../images.npy")
np.save(out + "/probs.npy", model.predict(images, verbose=0))
"""
ROUTES = [
    pytest.param("onnx", "onnx", "model.onnx", marks=pytest.mark.scale),
    pytest.param("openvino", "saved_model", "saved", marks=pytest.mark.scale),
    pytest.param("openvino", "onnx", "model.onnx", marks=pytest.mark.scale),
    pytest.param("openvino", "tflite", "model.tflite", marks=pytest.mark.scale),
    ("tflite", "tflite", "model.tflite"),
]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same model, exported in two processes with different hash seeds."""
    where, _ = toolchains.install(toolchains.find_toolchain("tf"))
    home = tmp_path_factory.mktemp("exports")
    np.save(home / "images.npy", digits_data()[1].head(8).inputs.transpose(0, 2, 3, 1))
    for seed in ("1", "77"):
        (home / seed).mkdir()
        env = {"PYTHONHASHSEED": seed, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1",
               "PATH": os.environ["PATH"]}  # fmt: skip
        done = subprocess.run(
            [where.python, "-c", EXPORT, home / seed],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return [home / "1", home / "77"]


def digest(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in directory.iterdir()
        if file.is_file()
    }


@pytest.mark.parametrize(("name", "form", "file"), ROUTES)
def test_two_exports_become_the_same_bytes(
    name: str, form: str, file: str, exports: list[Path], tmp_path: Path
) -> None:
    target, results = registry.find(name), []
    calibration = digits_data()[0].head(40).inputs.transpose(0, 2, 3, 1).copy()
    for export in exports:
        fp32, int8 = (tmp_path / export.name / kind for kind in ("fp32", "int8"))
        fp32.mkdir(parents=True)
        int8.mkdir()
        target.convert(export / file, form, fp32)
        native = target.describe(fp32)[0][0]
        assert native.shape == (1, 16, 16, 1), "an unknown batch becomes 1"
        target.quantize(fp32, int8, Quantization("int8"), {native.name: calibration})
        assert target.applied(int8)["int8_share"] > 0.99
        results.append((digest(fp32), digest(int8)))
    assert results[0] == results[1]


def test_the_exporter_names_the_process_and_we_do_not(exports: list[Path], tmp_path: Path) -> None:
    source = onnx.load(exports[0] / "model.onnx")
    assert "__inference" in source.graph.doc_string
    registry.find("onnx").convert(exports[0] / "model.onnx", "onnx", tmp_path)
    assert b"__inference" not in (tmp_path / "model.onnx").read_bytes()


def test_the_canonical_file_computes_what_keras_does(exports: list[Path], tmp_path: Path) -> None:
    import onnxruntime as ort

    registry.find("onnx").convert(exports[0] / "model.onnx", "onnx", tmp_path)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.load(exports[0].parent / "images.npy")
    name = session.get_inputs()[0].name
    got = np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    assert np.abs(got - np.load(exports[0] / "probs.npy")).max() < 1e-5
