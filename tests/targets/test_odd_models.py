"""Models that exporters really write and quantisers trip over answer like their source."""

from pathlib import Path
from typing import Any

import flatbuffers
import msgspec
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from digits import INPUT, OUTPUT
from digits_targets import manifest_for
from digits_tflite import Writer
from edgepack.errors import UnsupportedError
from edgepack.manifest import Binding, TensorSpec
from edgepack_targets import registry
from edgepack_targets.interface import DEFAULT, NativeTensor, Placement, Quantization

TARGETS = ("onnx", "openvino")
INT8 = Quantization("int8")
DYNAMIC = Quantization("int8", method="dynamic")
HOWS = {
    "onnx": (None, Quantization("fp16"), INT8, DYNAMIC, Quantization("w8"), Quantization("w4")),
    "openvino": (None, Quantization("fp16"), INT8, Quantization("w8"), Quantization("w4")),
}
LIMITS = {"fp16": 2e-3, "int8": 0.2, "w8": 0.02, "w4": 0.3}


def weight(*shape: int) -> NDArray[np.float32]:
    size = np.sqrt(shape[-2]) if len(shape) > 1 else 1
    return (np.random.default_rng(shape).normal(size=shape) / size).astype(np.float32)


def node(kind: str, inputs: str, output: str, **settings: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **settings)


def model(
    nodes: list[onnx.NodeProto], shape: list[int], out: list[int], **weights: NDArray[Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scaled() -> onnx.ModelProto:
    """Gemms with every attribute."""
    nodes = [
        node("Gemm", "x a p", "u", alpha=0.5, beta=3.0, transB=1),
        node("Relu", "u", "r"),
        node("Gemm", "r b q", "y", alpha=2.0),
    ]
    parts = {"a": weight(48, 64), "p": weight(48), "b": weight(48, 16), "q": weight(1, 16)}
    return model(nodes, [1, 64], [1, 16], **parts)


def one_bias() -> onnx.ModelProto:
    """Biases of one number, and of two axes."""
    nodes = [node("Gemm", "x a p", "u"), node("Relu", "u", "r"), node("Gemm", "r b q", "y")]
    parts = {"a": weight(64, 48), "p": np.float32([[0.5]]), "b": weight(48, 16)}
    return model(nodes, [1, 64], [1, 16], q=weight(1, 16), **parts)


def no_bias() -> onnx.ModelProto:
    nodes = [node("MatMul", "x a", "u"), node("Relu", "u", "r"), node("MatMul", "r b", "y")]
    return model(nodes, [1, 64], [1, 32], a=weight(64, 64), b=weight(64, 32))


def stacked() -> onnx.ModelProto:
    nodes = [node("MatMul", "x a", "u"), node("Relu", "u", "r"), node("MatMul", "r b", "y")]
    return model(nodes, [1, 3, 4, 64], [1, 3, 4, 32], a=weight(3, 64, 64), b=weight(64, 32))


def shared() -> onnx.ModelProto:
    nodes = [node("MatMul", "x a", "u"), node("Tanh", "u", "r"), node("MatMul", "r a", "y")]
    return model(nodes, [1, 64], [1, 64], a=weight(64, 64))


def held_by_nodes() -> onnx.ModelProto:
    held = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in (("a", weight(64, 64)), ("b", weight(64, 16)))
    ]
    nodes = [*held, node("Gemm", "x a", "u"), node("Tanh", "u", "r"), node("MatMul", "r b", "y")]
    return model(nodes, [1, 64], [1, 16])


def to_vector() -> onnx.ModelProto:
    nodes = [node("MatMul", "x a", "u"), node("Tanh", "u", "r"), node("MatMul", "r b", "y")]
    return model(nodes, [1, 64], [1], a=weight(64, 32), b=weight(32))


def recurrent() -> onnx.ModelProto:
    """An LSTM that leaves its first output out."""
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=32),
        node("Squeeze", "h axis", "s"),
        node("Gemm", "s a", "y"),
    ]
    parts = {"w": weight(1, 128, 8), "r": weight(1, 128, 32), "a": weight(32, 16)}
    return model(nodes, [12, 1, 8], [1, 16], axis=np.int64([0]), **parts)


def bounded() -> onnx.ModelProto:
    nodes = [node("Gemm", "x a p", "u"), node("Clip", "u lo hi", "r"), node("Gemm", "r b", "y")]
    parts = {"a": 4 * weight(64, 48), "p": weight(48), "b": weight(48, 16)}
    return model(nodes, [1, 64], [1, 16], lo=np.float32(0), hi=np.float32(1), **parts)


def grouped() -> onnx.ModelProto:
    nodes = [
        node("ConvTranspose", "x w b", "u", strides=[2, 2], group=2),
        node("LeakyRelu", "u", "r"),
        node("Conv", "r v", "y"),
    ]
    parts = {"w": weight(8, 4, 2, 2), "b": weight(8), "v": weight(4, 8, 1, 1)}
    return model(nodes, [1, 8, 6, 6], [1, 4, 12, 12], **parts)


class Case:
    """A model, 24 samples and what onnxruntime answers to them before anything is done."""

    def __init__(self, source: onnx.ModelProto, where: Path) -> None:
        import onnxruntime as ort  # the plugins import it first, without telemetry

        registry.find("onnx").version()
        self.source = where / "source.onnx"
        onnx.save(source, self.source)
        (value,) = source.graph.input
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        self.samples = np.random.default_rng(1).normal(size=(24, *shape)).astype(np.float32)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(source.SerializeToString(), options)
        self.wanted = np.stack([session.run(None, {"x": one})[0] for one in self.samples])
        self.fp32 = {target: where / target for target in TARGETS}
        for target, place in self.fp32.items():
            place.mkdir()
            base = self.source if target == "onnx" else self.fp32["onnx"] / "model.onnx"
            registry.find(target).convert(base, "onnx", place)

    def calibration(self) -> dict[str, NDArray[Any]]:
        batched = self.samples.shape[1] == 1
        return {"x": self.samples[:, 0] if batched else self.samples}

    def quantized(self, target: str, how: Quantization, where: Path) -> Path:
        where.mkdir()
        given = self.calibration() if how == Quantization("int8", exclude=how.exclude) else None
        registry.find(target).quantize(self.fp32[target], where, how, given)
        return where

    def loss(self, target: str, model_dir: Path, place: Placement = DEFAULT) -> float:
        """Return ||got - wanted|| / ||wanted|| of what a session answers, on one thread a call."""
        inputs, outputs = registry.find(target).describe(model_dir)
        manifest = msgspec.structs.replace(
            manifest_for(target), inputs=bound(inputs), outputs=bound(outputs)
        )
        threads = 1 if place.hint == "latency" else 2
        session = registry.find(target).load(model_dir, manifest, threads=threads, place=place)
        got = np.stack([session.run({"x": one})["y"] for one in self.samples])
        session.close()
        return float(np.linalg.norm(got - self.wanted) / np.linalg.norm(self.wanted))


def bound(natives: list[NativeTensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=n.name, shape=n.shape, dtype=n.dtype, binding=Binding(native_name=n.name))
        for n in natives
    )


MODELS = (
    shared, recurrent,
    *(pytest.param(make, marks=pytest.mark.scale)
      for make in (one_bias, stacked, scaled, no_bias, held_by_nodes, to_vector)),
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_precision_answers_like_the_source(make: Any, target: str, tmp_path: Path) -> None:
    case = Case(make(), tmp_path)
    for place, how in enumerate(HOWS[target]):
        if how is None:
            assert case.loss(target, case.fp32[target]) < 1e-5
            continue
        out = case.quantized(target, how, tmp_path / str(place))
        assert case.loss(target, out) < LIMITS[how.precision], how
        layers = registry.find(target).diagnose(case.fp32[target], out, case.calibration())
        assert layers, how


def test_a_layer_kept_in_float_after_a_clip_still_reads_what_was_clipped(tmp_path: Path) -> None:
    case = Case(bounded(), tmp_path)
    how = Quantization("int8", exclude=("edgepack.Gemm_2",))
    assert case.loss("onnx", case.quantized("onnx", how, tmp_path / "out")) < LIMITS["int8"]


def test_a_layer_kept_in_float_after_a_stack_of_weights_runs(tmp_path: Path) -> None:
    case = Case(stacked(), tmp_path)
    how = Quantization("int8", exclude=("edgepack.MatMul_2",))
    assert case.loss("onnx", case.quantized("onnx", how, tmp_path / "out")) < LIMITS["int8"]


def test_what_onnxruntime_cannot_quantise_stays_float_and_the_rest_does_not(tmp_path: Path) -> None:
    case = Case(grouped(), tmp_path)
    out = case.quantized("onnx", INT8, tmp_path / "out")
    assert case.loss("onnx", out) < LIMITS["int8"]
    assert registry.find("onnx").applied(out)["quantized_operators"] == 2


def test_streams_of_one_thread_each_answer_like_the_source(tmp_path: Path) -> None:
    case = Case(no_bias(), tmp_path)
    out = case.quantized("openvino", INT8, tmp_path / "out")
    assert case.loss("openvino", out, Placement(hint="throughput")) < LIMITS["int8"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_that_16_bits_would_cut_are_refused(precision: Any, tmp_path: Path) -> None:
    large = weight(64, 32)
    large[3, 5] = 1e5
    case = Case(model([node("MatMul", "x a", "y")], [1, 64], [1, 32], a=large), tmp_path)
    how = Quantization(precision, cpu_features=("avx512_bf16",))
    with pytest.raises(UnsupportedError) as caught:
        case.quantized("openvino", how, tmp_path / "out")
    assert caught.value.reason == "weights_too_large"


def stacked_tflite(path: Path, stack: NDArray[np.float32]) -> tuple[int, bytes]:
    writer = Writer()
    count, rows, columns = stack.shape
    image = writer.tensor("x", (1, count, 4, rows))
    result = writer.tensor("y", (1, count, 4, columns))
    operands = [image, writer.weight("stack", stack)]
    options = schema.BatchMatMulOptionsT()
    kind = schema.BuiltinOptions.BatchMatMulOptions
    writer.operator(schema.BuiltinOperator.BATCH_MATMUL, operands, result, kind, options)
    path.write_bytes(writer.pack(image, result))
    return result, path.read_bytes()


def test_a_stack_of_weights_in_tflite_is_multiplied_right(tmp_path: Path) -> None:
    stack, out = weight(3, 64, 32), tmp_path / "out"
    stacked_tflite(tmp_path / "model.tflite", stack)
    samples = np.random.default_rng(2).normal(size=(24, 3, 4, 64)).astype(np.float32)
    out.mkdir()
    runtime = registry.find("tflite")
    runtime.quantize(tmp_path, out, INT8, {INPUT: samples})
    inputs, outputs = runtime.describe(out)
    manifest = msgspec.structs.replace(
        manifest_for("tflite"), inputs=bound(inputs), outputs=bound(outputs)
    )
    session = runtime.load(out, manifest, threads=1)
    got = np.concatenate([session.run({INPUT: one[None]})[OUTPUT] for one in samples])
    session.close()
    wanted = samples @ stack
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.05


def test_two_outputs_that_are_one_tensor_are_refused_where_one_would_be_empty(
    tmp_path: Path,
) -> None:
    result, content = stacked_tflite(tmp_path / "model.tflite", weight(3, 64, 32))
    twice = schema.ModelT.InitFromPackedBuf(content)
    twice.subgraphs[0].outputs = [result, result]
    (signature,) = twice.signatureDefs
    signature.outputs = [*signature.outputs, schema.TensorMapT(name="too", tensorIndex=result)]
    builder = flatbuffers.Builder()
    builder.Finish(twice.Pack(builder), file_identifier=b"TFL3")
    (tmp_path / "model.tflite").write_bytes(bytes(builder.Output()))
    samples = {INPUT: np.zeros((2, 3, 4, 64), np.float32)}
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError) as caught:
        registry.find("tflite").quantize(tmp_path, tmp_path / "out", INT8, samples)
    assert caught.value.reason == "shared_output"


@pytest.mark.scale
def test_weights_of_other_types_are_left_to_other_precisions(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "d", to=TensorProto.DOUBLE),
        node("Gemm", "d a", "u"),
        node("Cast", "u", "f", to=TensorProto.FLOAT),
        node("MatMul", "f b", "y"),
    ]
    parts = {"a": weight(64, 48).astype(np.float64), "b": weight(48, 16)}
    case = Case(model(nodes, [1, 64], [1, 16], **parts), tmp_path)
    out = case.quantized("onnx", Quantization("w8"), tmp_path / "out")
    assert case.loss("onnx", out) < LIMITS["w8"]
    assert registry.find("onnx").applied(out)["int8_weights"] == 48 * 16
