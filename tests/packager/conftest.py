"""Shared by the packager's tests: one trained Keras model, its sources, and one build of each."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from digits import calibration_npz, digits_onnx, evaluation_npz
from digits_torch import torch_digits
from edgepack_packager.adapters import toolchains
from kept import made_once
from packager_rig import Done, OnnxDigits, Pair, build_twice, edgepack

PRECISIONS = ("fp32", "fp16", "int8")
ZOO = """
import sys
import keras
import tensorflow as tf

out = sys.argv[2]
keras.saving.load_model(sys.argv[1]).export(f"{out}/saved", verbose=False)


class Counter(tf.Module):
    def __init__(self):
        self.total = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def count(self, x):
        self.total.assign_add(1.0)
        return {"y": x + self.total}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def double(self, x):
        return {"y": 2.0 * x}


counter = Counter()
tf.saved_model.save(counter, f"{out}/stateful", signatures={"serving_default": counter.count})
tf.saved_model.save(
    counter, f"{out}/two", signatures={"count": counter.count, "double": counter.double}
)


class Printer(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def tell(self, x):
        tf.print("told", output_stream=f"file://{out}/told.txt")
        return {"y": 2.0 * x}


printer = Printer()
tf.saved_model.save(printer, f"{out}/printing", signatures={"serving_default": printer.tell})
left, right = keras.Input((4,), name="left"), keras.Input((4, 3), name="right")
both = keras.layers.Dense(5, name="both")(
    keras.layers.Concatenate()([left, keras.layers.Flatten()(right)])
)
total = keras.layers.Dense(2, name="total")(both)
keras.Model([right, left], [total, both], name="pair").save(f"{out}/pair.keras")
"""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> OnnxDigits:
    home = tmp_path_factory.mktemp("digits")
    return OnnxDigits(
        home,
        digits_onnx(home / "digits.onnx"),
        calibration_npz(home / "calibration.npz"),
        evaluation_npz(home / "evaluation.npz"),
    )


def pair(
    factory: pytest.TempPathFactory, name: str, *words: str | Path, again: Sequence[str] = ()
) -> Pair:
    """Return two builds of WORDS, shared by all processes of the run; AGAIN: not all once more."""

    def make(home: Path) -> Pair:
        return Pair(home, *build_twice(home, *words, precisions=PRECISIONS, again=again))

    return made_once(factory, name, make)


@pytest.fixture(scope="session")
def onnx_builds(digits: OnnxDigits, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(
        tmp_path_factory, "onnx-builds",
        digits.model, "--target", "onnx", "--target", "openvino", "--calibration",
        digits.calibration, "--evaluate", digits.evaluation, "--max-drop", "0.01",
    )  # fmt: skip


@pytest.fixture(scope="session")
def zoo(keras_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with saved/ (the same model), stateful/, printing/, two/ and pair.keras."""

    def make(home: Path) -> Path:
        where, _ = toolchains.install(toolchains.find_toolchain("tf"))
        subprocess.run(
            [where.python, "-c", ZOO, keras_home / "model.keras", home],
            check=True, capture_output=True, env={"TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        return home

    return made_once(tmp_path_factory, "zoo", make)


@pytest.fixture(scope="session")
def keras_builds(keras_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(
        tmp_path_factory, "keras-builds", keras_home / "model.keras", "--target", "onnx",
        "--target", "openvino", "--target", "tflite", "--name", "digits", "--calibration",
        keras_home / "calibration.npz", "--evaluate", keras_home / "evaluate.npz", "--max-drop",
        "0.01", "--preprocess", '{"color": "gray"}', again=("int8",),
    )  # fmt: skip


@pytest.fixture(scope="session")
def saved_builds(zoo: Path, keras_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(
        tmp_path_factory, "saved-builds", zoo / "saved", "--target", "onnx", "--target",
        "openvino", "--target", "tflite", "--name", "digits", "--calibration",
        keras_home / "calibration.npz", "--evaluate", keras_home / "evaluate.npz", "--max-drop",
        "0.01", again=("int8",),
    )  # fmt: skip


@pytest.fixture(scope="session")
def onnx_tflite_build(digits: OnnxDigits, tmp_path_factory: pytest.TempPathFactory) -> Done:
    home = tmp_path_factory.mktemp("onnx-tflite-build")
    return edgepack(
        "build", digits.model, "--target", "tflite", "--precision", "fp32", "--precision", "fp16",
        "--precision", "int8", "--calibration", digits.calibration, "--evaluate",
        digits.evaluation, "--max-drop", "0.01", "--unsigned", "--no-cache", "--json",
        "--out", home, cwd=home,
    )  # fmt: skip


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what `torch_digits` writes."""
    return made_once(tmp_path_factory, "torch", torch_digits)


@pytest.fixture(scope="session")
def torch_builds(torch_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(
        tmp_path_factory, "torch-builds", torch_home / "digits.pt2", "--target", "onnx",
        "--target", "openvino", "--target", "tflite", "--calibration",
        torch_home / "calibration.npz", "--evaluate", torch_home / "evaluation.npz", "--max-drop",
        "0.01", again=("int8",),
    )  # fmt: skip
