"""Compress steps on models that are built in unusual ways: the result still opens and computes."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgepack.errors import UnsupportedError
from edgepack_packager.adapters.toolchains import find_toolchain, install
from edgepack_packager.adapters.worker import run_step
from edgepack_packager.core.compression import Cluster, LowRank, PruneMagnitude
from edgepack_packager.workers.onnx_compress import compress

WIDE = [1, 64]
RANDOM = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
WEIGHT = numpy_helper.from_array(RANDOM[0], "W")
X, Y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, WIDE) for name in "xy")
STEPS = (LowRank(rank=0.25, epochs=0), PruneMagnitude(sparsity=0.5), Cluster(clusters=8))


def old_format() -> onnx.ModelProto:
    """Every weight is an input, as it had to be; one is a constant."""
    nodes = [
        helper.make_node("Constant", [], ["K"], value=numpy_helper.from_array(RANDOM[1], "K")),
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("MatMul", ["a", "K"], ["y"]),
    ]
    weight = helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, [64, 64])
    graph = helper.make_graph(nodes, "old", [X, weight], [Y], [WEIGHT])
    opset = [helper.make_opsetid("", 8)]
    return helper.make_model(graph, opset_imports=opset, ir_version=3)


def branch() -> onnx.ModelProto:
    """A body uses the weight that the graph uses."""
    inner = helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, WIDE)
    then = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["t"])], "then", [], [inner])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "else", [], [inner])
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("If", ["c"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    chosen = numpy_helper.from_array(np.array(True), "c")
    graph = helper.make_graph(nodes, "branch", [X], [Y], [WEIGHT, chosen])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compressed(model: onnx.ModelProto, home: Path, *steps: Any) -> Any:
    onnx.save(model, home / "source.onnx")
    args = {"source": str(home / "source.onnx"), "steps": [step.as_dict() for step in steps]}
    compress(args, home, lambda _: None)
    onnx.checker.check_model(onnx.load(home / "model.onnx"))
    session = onnxruntime.InferenceSession(home / "model.onnx")
    return session.run(None, {"x": np.ones(WIDE, np.float32)})[0]


def test_weights_of_an_old_format_are_changed(tmp_path: Path) -> None:
    exact = np.ones(WIDE, np.float32) @ RANDOM[0] @ RANDOM[1]
    slightly = compressed(old_format(), tmp_path, Cluster(clusters=256))
    assert np.abs(slightly - exact).max() < 0.05 * np.abs(exact).max()
    compressed(old_format(), tmp_path, *STEPS)


def test_a_weight_that_a_body_uses_too_keeps_its_shape(tmp_path: Path) -> None:
    compressed(branch(), tmp_path, PruneMagnitude(sparsity=0.5))
    with pytest.raises(UnsupportedError, match="no matrix product"):
        compressed(branch(), tmp_path, LowRank(rank=0.25, epochs=0))


NESTED = """
import sys
import keras

keras.utils.set_random_seed(0)


def part(name):
    layers = [keras.Input((64,)), keras.layers.Dense(64, activation="relu", name="dense")]
    return keras.Sequential(layers, name=name)


x = keras.Input((64,), name="x")
y = keras.layers.Dense(10, name="y")(part("right")(part("left")(x)))
model = keras.Model(x, y)
for layer in ("left", "right"):
    dense = model.get_layer(layer).layers[0]
    # Of a quarter of its rank, so that nothing is lost.
    thin = keras.random.normal((64, 16), seed=len(layer)) / 8
    dense.kernel.assign(keras.ops.matmul(thin, keras.ops.transpose(thin)))
model.save(sys.argv[1])
"""


@pytest.mark.scale
@pytest.mark.toolchain
def test_layers_of_one_name_in_two_models_are_not_mixed_up(tmp_path: Path) -> None:
    where, _ = install(find_toolchain("tf"))
    subprocess.run(
        [where.python, "-c", NESTED, tmp_path / "nested.keras"], check=True, capture_output=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    plain = {
        "kind": "keras", "shapes": {}, "signature": None, "factory": None, "weights": None,
        "trust": False, "samples": str(tmp_path / "x.npz"),
    }  # fmt: skip
    np.savez(tmp_path / "x.npz", x=RANDOM[0])
    steps = [LowRank(rank=0.25, epochs=0).as_dict()]
    args = plain | {"source": str(tmp_path / "nested.keras"), "seed": 0, "train": None}
    done = run_step(
        where, "keras_compress.compress", args | {"steps": steps}, tmp_path, timeout_s=200
    )
    assert done["applied"][0]["ranks"] == {"left/dense": [16], "right/dense": [16]}
    answers = []
    for name in ("nested.keras", done["file"]):
        asked = plain | {"source": str(tmp_path / name)}
        run_step(where, "tf.reference", asked, tmp_path, timeout_s=200)
        with np.load(tmp_path / "outputs.npz") as outputs:
            answers.append(outputs[outputs.files[0]])
    assert np.abs(answers[0]).max() > 0.01
    assert np.abs(answers[0] - answers[1]).max() < 1e-4
