"""ONNX to TFLite through onnx2tf: right whatever the layout, or refused with the reason."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from digits import INPUT, digits_data, digits_onnx
from edgepack.errors import EdgepackError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.worker import run_step
from edgepack_packager.core.binding import Native, Public, bind
from edgepack_packager.workers import onnx_source
from packager_rig import OnnxDigits, edgepack

pytestmark = pytest.mark.onnx2tf
FLOAT = TensorProto.FLOAT


def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def model_of(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, Any] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def converted(model: onnx.ModelProto, home: Path, **shapes: list[int]) -> Path:
    """Return the TFLite model that a build would make of MODEL."""
    for name in ("opened", "out"):
        (home / name).mkdir()
    (home / "source.onnx").write_bytes(model.SerializeToString())
    args = {"source": str(home / "source.onnx"), "shapes": shapes}
    onnx_source.normalise(args, home / "opened", lambda _: None)
    return bridged(home / "opened", home / "out")


def bridged(opened: Path, out: Path) -> Path:
    where, _ = toolchains.install(toolchains.find_toolchain("onnx2tf"))
    run_step(where, "onnx2tf_bridge.tflite", {"from": str(opened)}, out, timeout_s=600)
    return out / "model.tflite"


def refusal(model: onnx.ModelProto, home: Path, **shapes: list[int]) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        converted(model, home, **shapes)
    return caught.value


def check_same(tflite: Path, source: Path, seed: int = 3) -> None:
    """Check that TFLITE, bound by name and shape as a build does it, answers as SOURCE."""
    import onnxruntime as ort

    session = ort.InferenceSession(source)
    rng = np.random.default_rng(seed)
    given = {i.name: rng.random(i.shape).astype(np.float32) for i in session.get_inputs()}
    truth = dict(
        zip((o.name for o in session.get_outputs()), session.run(None, given), strict=True)
    )
    runner = Interpreter(str(tflite), num_threads=1).get_signature_runner()
    sides = (runner.get_input_details(), runner.get_output_details())
    natives = [[Native(n, tuple(d["shape"]), "float32") for n, d in side.items()] for side in sides]
    publics = [
        [Public(n, n, a.shape, "float32") for n, a in side.items()] for side in (given, truth)
    ]
    inputs, outputs = (bind(p, n) for p, n in zip(publics, natives, strict=True))
    assert [spec.name for spec in inputs] == [spec.binding.native_name for spec in inputs]
    moved = {s.name: given[s.name].transpose(order(s)) for s in inputs}
    answers = runner(**moved)
    for spec in outputs:
        back = answers[spec.binding.native_name].transpose(np.argsort(order(spec)))
        np.testing.assert_allclose(back, truth[spec.name], rtol=1e-3, atol=1e-4)


def order(spec: Any) -> tuple[int, ...]:
    return spec.binding.permutation or tuple(range(len(spec.shape)))


@pytest.mark.parametrize(
    "shape", [[1, 3, 3, 3], [1, 3, 8, 8], [1, 4, 4, 6], [1, 8, 8], [1, 3, 8]], ids=str
)
def test_every_layout_is_right_or_kept(tmp_path: Path, shape: list[int]) -> None:
    rank, channels = len(shape) - 2, shape[1]
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((channels, channels, *[3] * rank)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["maps"], pads=[1] * 2 * rank),
        helper.make_node("Relu", ["maps"], ["y"]),
        helper.make_node("ReduceMean", ["maps"], ["mean"], axes=[1]),
    ]
    flat = [shape[0], 1, *shape[2:]]
    outputs = [value("y", shape), value("mean", flat)]
    model = model_of(nodes, [value("x", shape)], outputs, {"w": kernel})
    check_same(converted(model, tmp_path), tmp_path / "source.onnx")


def test_names_and_order_of_several_tensors_survive(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["in/b:0", "in/a:0"], ["out/1:0"]),
        helper.make_node("Mul", ["in/b:0", "in/a:0"], ["out/0:0"]),
        helper.make_node("MatMul", ["in/a:0", "w"], ["last"]),
    ]
    inputs = [value("in/b:0", [1, 4]), value("in/a:0", [1, 4])]
    outputs = [value("out/1:0", [1, 4]), value("out/0:0", [1, 4]), value("last", [1, 4])]
    weights = {"w": np.arange(16, dtype=np.float32).reshape(4, 4)}
    model = model_of(nodes, inputs, outputs, weights)
    tflite = converted(model, tmp_path)
    runner = Interpreter(str(tflite)).get_signature_runner()
    assert set(runner.get_output_details()) == {"out/1:0", "out/0:0", "last"}
    a, b = np.float32([[1, 2, 3, 4]]), np.float32([[10, 20, 30, 40]])
    answers = runner(**{"in/a:0": a, "in/b:0": b})
    np.testing.assert_array_equal(answers["out/1:0"], b - a)
    np.testing.assert_array_equal(answers["out/0:0"], b * a)


def pool(pads: list[int], kernel: int) -> onnx.ModelProto:
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[kernel, kernel], pads=pads)
    sizes = [6 + pads[0] + pads[2] - kernel + 1, 6 + pads[1] + pads[3] - kernel + 1]
    return model_of([node], [value("x", [1, 2, 6, 6])], [value("y", [1, 2, *sizes])])


def test_lopsided_average_pool_over_everything_is_right(tmp_path: Path) -> None:
    check_same(converted(pool([0, 0, 1, 1], 7), tmp_path), tmp_path / "source.onnx")


def test_other_lopsided_average_pools_are_right_too(tmp_path: Path) -> None:
    check_same(converted(pool([0, 0, 1, 1], 3), tmp_path), tmp_path / "source.onnx")


def test_conversion_is_the_same_every_time(tmp_path: Path) -> None:
    model = onnx.load(digits_onnx(tmp_path / "d.onnx", batch=1))
    first = converted(model, tmp_path)
    (tmp_path / "again").mkdir()
    again = bridged(tmp_path / "opened", tmp_path / "again")
    assert first.read_bytes() == again.read_bytes()
    image = digits_data()[1].head(1).inputs.transpose(0, 2, 3, 1)
    (answer,) = Interpreter(str(first)).get_signature_runner()(**{INPUT: image}).values()
    assert answer.argmax() == digits_data()[1].labels[0]


def test_quantised_onnx_is_refused_because_it_would_be_wrong(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    weights = {"s": np.float32(0.1), "z": np.uint8(128)}
    model = model_of(nodes, [value("x", [1, 4])], [value("y", [1, 4])], weights)
    error = refusal(model, tmp_path)
    assert (error.exit_code, error.reason) == (5, "quantized_source")
    assert "DequantizeLinear, QuantizeLinear" in error.why
    assert "fp32" in error.fix


def test_all_operators_that_tflite_cannot_have_are_named(tmp_path: Path) -> None:
    def branch(kind: str) -> onnx.GraphProto:
        node = helper.make_node(kind, ["x"], [f"{kind}_y"])
        return helper.make_graph([node], kind, [], [value(f"{kind}_y", [1, 3, 3])])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["yes"]),
        helper.make_node(
            "If", ["yes"], ["a"], then_branch=branch("Exp"), else_branch=branch("Neg")
        ),
        helper.make_node("CDist", ["b", "b"], ["y"], domain="com.microsoft", metric="euclidean"),
        helper.make_node("Flatten", ["a"], ["b"]),
    ]
    nodes[3], nodes[4] = nodes[4], nodes[3]
    model = model_of(
        nodes, [value("x", [1, 3, 3])], [value("y", [1, 1])], {"zero": np.float32(0)},
        ("com.microsoft",),
    )  # fmt: skip
    error = refusal(model, tmp_path)
    assert (error.exit_code, error.reason) == (5, "unsupported_operator")
    assert error.why.endswith("ai.onnx:If, com.microsoft:CDist")


def test_open_batch_is_refused(tmp_path: Path) -> None:
    model = onnx.load(digits_onnx(tmp_path / "d.onnx"))
    error = refusal(model, tmp_path, image=[-1, 1, 16, 16])
    assert (error.exit_code, error.reason) == (5, "dynamic_shape")


def test_onnx_source_keeps_its_accuracy_on_tflite(digits: OnnxDigits, tmp_path: Path) -> None:
    done = edgepack(
        "build", digits.model, "--target", "tflite", "--precision", "fp32", "--precision",
        "fp16", "--precision", "int8", "--calibration", digits.calibration, "--evaluate",
        digits.evaluation, "--max-drop", "0.01", "--unsigned", "--no-cache", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    plain, small = done.bundle("tflite", "fp32"), done.bundle("tflite", "int8")
    assert plain["parity"]["cosine"] > 0.99999
    assert plain["metrics"]["drop"] == 0
    assert small["model_bytes"] < 0.35 * plain["model_bytes"]
