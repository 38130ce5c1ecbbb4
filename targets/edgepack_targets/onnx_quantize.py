"""Makes an ONNX model smaller with onnxruntime's quantisers: one function per method.

Names stay those of the fp32 model, with what onnxruntime adds to them, so that a layer is found
again in the quantised model.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepack_targets.extras import require
from edgepack_targets.interface import Quantization
from edgepack_targets.layers import require_layers
from edgepack_targets.onnx_canonical import canonical
from edgepack_targets.onnx_convert import at_least, write
from edgepack_targets.onnx_host import POSITIVE
from edgepack_targets.onnx_plain import dense_parts
from edgepack_targets.onnx_reading import load
from edgepack_targets.onnx_session import describe
from edgepack_targets.quantization import needs_7_bits, translated
from edgepack_targets.samples import Samples
from edgepack_targets.silence import no_output, no_telemetry

with no_telemetry():
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

__all__ = ["quantize"]

MAX_CALIBRATION = 300
QDQ_OPSET = 13
"""The first in which a weight can have a scale per channel."""
RANGES = {
    "default": CalibrationMethod.MinMax,
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}
DENSE = ["MatMul", "Gemm"]
"""What is worth quantising in each call: on convolutions that is slower than fp32."""
BLOCK = 32
"""Weights that share a scale in MatMulNBits."""
INT8_ACTIVATIONS = 4
"""The level of accuracy at which MatMulNBits multiplies int8 with int8; exact floats are slow."""


def quantize(
    model_dir: Path,
    out_dir: Path,
    how: Quantization,
    calibration: Mapping[str, NDArray[Any]] | None,
) -> dict[str, Any]:
    """Write MODEL_DIR as HOW says to OUT_DIR; see `interface.Target`."""
    samples: Samples | None = None
    if how.precision == "int8" and how.method == "static":
        samples = Samples(describe(model_dir)[0], calibration, MAX_CALIBRATION, how.seed)
    model = load(model_dir / "model.onnx")
    require_layers(how.exclude, {node.name: node for node in model.graph.node})
    with no_output(), translated("onnxruntime"):
        if samples is not None:
            result = _static(model, how, samples)
        elif how.precision == "int8":
            result = _dynamic(model, how)
        elif how.precision == "fp16":
            result = _float16(model)
        else:
            result = _weights(model, how)
    write(canonical(result, rename=False), out_dir)
    return {
        "method": _method(how),
        "samples": 0 if samples is None else len(samples),
        "seed": how.seed,
        "tools": {"onnxruntime": require("onnxruntime", extra="onnx", wanted_for="onnxruntime")},
    }


def _static(model: ModelProto, how: Quantization, samples: Samples) -> ModelProto:
    def write_quantized(prepared: Path, result: Path) -> None:
        before = onnx.load(prepared)
        floats = [*_successors(model, how.exclude, before), *_too_much(before.graph, how)]
        quantize_static(
            str(prepared),
            str(result),
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=how.per_channel,
            reduce_range=needs_7_bits(how),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=RANGES[how.ranges],
            nodes_to_exclude=floats,
        )
        if floats:
            quantized = onnx.load(result)
            _read_floats(quantized.graph, before.graph, set(floats))
            onnx.save(quantized, result)

    return _prepared(model, write_quantized)


def _read_floats(graph: onnx.GraphProto, before: onnx.GraphProto, floats: set[str]) -> None:
    """Let the nodes FLOATS of GRAPH read what was computed, not what it was rounded to.

    onnxruntime quantises the output of every node that it quantises, also where only a layer
    reads it that was excluded because rounding its input loses the accuracy. Dense layers can
    give floats from integers; a convolution that should would be computed in float altogether.
    And it leaves a Relu to the quantisation after it: BEFORE says where one was. It does the
    same to a Clip; what reads one stays as it is.
    """
    makers = {name: node for node in graph.node for name in node.output}
    gone = _left_to_rounding(graph, before)
    ranks = {weight.name: len(weight.dims) for weight in graph.initializer}
    for node in [n for n in graph.node if n.name in floats]:
        for place, name in enumerate(node.input):
            tensor = _unrounded(name, makers, ranks)
            lost = gone.get(tensor or "", set())
            if tensor is None or "Clip" in lost:
                continue
            node.input[place] = _positive(graph, tensor) if lost else tensor


def _left_to_rounding(graph: onnx.GraphProto, before: onnx.GraphProto) -> dict[str, set[str]]:
    """Return by tensor the operators of BEFORE that gave it and are not in GRAPH any more."""
    there = {node.name for node in graph.node}
    gone: dict[str, set[str]] = {}
    for node in before.node:
        if node.op_type in {"Relu", "Clip"} and node.name not in there:
            gone[node.output[0]] = {node.op_type} | gone.get(node.input[0], set())
    return gone


def _unrounded(
    name: str, makers: Mapping[str, onnx.NodeProto], ranks: Mapping[str, int]
) -> str | None:
    """Return what NAME was before it was quantised and back, if a dense layer made it."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        maker = makers.get(name)
        if maker is None or maker.op_type != kind:
            return None
        name = maker.input[0]
    if name not in makers or makers[name].op_type not in DENSE:
        return None
    # Of a stack of weights onnxruntime gives no floats: it fails in the first call.
    stored = (n.input[0] for n in map(makers.get, makers[name].input) if n is not None)
    return None if any(ranks.get(weight, 0) > 2 for weight in stored) else name


def _positive(graph: onnx.GraphProto, tensor: str) -> str:
    """Add to GRAPH what Relu does to TENSOR; return its output.

    As Max: with a Relu onnxruntime fuses the dense layer before it sees the integers, and then
    dequantises its weights in every call, twelve times slower.
    """
    zero, result = f"{tensor}_zero", tensor + POSITIVE
    if result not in {name for node in graph.node for name in node.output}:
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), zero))
        graph.node.append(helper.make_node("Max", [tensor, zero], [result], f"{result}_Max"))
    return result


def _too_much(graph: onnx.GraphProto, how: Quantization) -> list[str]:
    """Return the nodes of GRAPH that onnxruntime quantises statically, but wrongly or not at all.

    It multiplies the bias of a Gemm by alpha, too; looks for a scale per channel along the wrong
    axis of a bias with two, and of a ConvTranspose with groups.
    """
    weights = {weight.name: len(weight.dims) for weight in graph.initializer}
    found = []
    for node in graph.node:
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        bias = node.input[2] if len(node.input) > 2 else ""
        scaled = facts.get("alpha", 1) != 1 or weights.get(bias, 1) != 1
        grouped = how.per_channel and facts.get("group", 1) > 1
        if (node.op_type == "Gemm" and bias and scaled) or (
            node.op_type == "ConvTranspose" and grouped
        ):
            found.append(node.name)
    return found


def _dynamic(model: ModelProto, how: Quantization) -> ModelProto:
    def write_quantized(prepared: Path, result: Path) -> None:
        before = onnx.load(prepared)
        quantize_dynamic(
            str(prepared),
            str(result),
            op_types_to_quantize=DENSE,
            per_channel=how.per_channel,
            reduce_range=needs_7_bits(how),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[
                name
                for excluded in (*_successors(model, how.exclude, before), *_stacks(before.graph))
                # It first writes a Gemm as a MatMul of this name and an Add.
                for name in (excluded, f"{excluded}_MatMul")
            ],
        )

    return _prepared(model, write_quantized)


def _stacks(graph: onnx.GraphProto) -> list[str]:
    """Return the MatMuls of GRAPH whose weight is a vector or a stack: no integer kernel does."""
    ranks = {weight.name: len(weight.dims) for weight in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and any(ranks.get(name, 2) != 2 for name in node.input)
    ]


def _prepared(model: ModelProto, write_quantized: Callable[[Path, Path], None]) -> ModelProto:
    """Return what WRITE_QUANTIZED makes of MODEL after onnxruntime's own preparation."""
    with tempfile.TemporaryDirectory(prefix="edgepack-onnx-") as name:
        prepared, result = Path(name) / "prepared.onnx", Path(name) / "int8.onnx"
        # As a file: of a model in memory it loses weights that it cannot fold.
        source = Path(name) / "source.onnx"
        onnx.save(at_least(model, QDQ_OPSET), source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        write_quantized(prepared, result)
        return onnx.load(result)


def _successors(model: ModelProto, names: Iterable[str], prepared: ModelProto) -> list[str]:
    """Return the nodes of PREPARED that do the work of the nodes NAMES of MODEL.

    Preparation fuses nodes: then it is the one that gives the next tensor that is still there.
    """
    makers = {tensor: node.name for node in prepared.graph.node for tensor in node.output}
    outputs = {n.name: next(filter(None, n.output), n.name) for n in model.graph.node}
    readers = {tensor: node for node in reversed(model.graph.node) for tensor in node.input}
    found = []
    for name in names:
        tensor = outputs[name]
        while tensor not in makers and tensor in readers:
            tensor = readers[tensor].output[0]
        found.append(makers.get(tensor, name))
    return found


def _float16(model: ModelProto) -> ModelProto:
    """Store the weights of MODEL in 16 bits and let it compute in 32, as the other targets do.

    onnxruntime's converter makes the computation 16 bit too: faster nowhere on x86, another
    precision on ARM, and NaN where activations exceed 65504, which real topologies do.
    """
    graph, casts = model.graph, []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        array = numpy_helper.to_array(weight)
        if np.abs(array).max(initial=0) <= np.finfo(np.float16).max:
            name, half = weight.name, f"{weight.name}_half"
            weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), half))
            casts.append(helper.make_node("Cast", [half], [name], half, to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _weights(model: ModelProto, how: Quantization) -> ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _split_dense(model, set(how.exclude))
    worker = MatMulNBitsQuantizer(
        model,
        bits=int(how.precision[1:]),
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=INT8_ACTIVATIONS,
        nodes_to_exclude=[*how.exclude, *_of_other_types(model.graph)],
    )
    worker.process()
    result: ModelProto = worker.model.model
    return result


def _of_other_types(graph: onnx.GraphProto) -> list[str]:
    """Return the nodes of GRAPH with a weight that is not float32, which MatMulNBits multiplies."""
    others = {w.name for w in graph.initializer if w.data_type != TensorProto.FLOAT}
    return [node.name for node in graph.node if others & set(node.input)]


def _split_dense(model: ModelProto, keep: set[str]) -> None:
    """Write every Gemm with constant weights, but those called KEEP, as MatMul and Add.

    The quantiser knows MatMul alone, and passes over Gemm without a word.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        parts = None if node.op_type != "Gemm" else dense_parts(node, weights)
        if parts is None or node.name in keep or facts.get("transA"):
            nodes.append(node)
            continue
        nodes += _split(model.graph, node, facts, parts)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _split(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    facts: Mapping[str, Any],
    parts: list[NDArray[Any]],
) -> list[onnx.NodeProto]:
    """Return what does the work of the Gemm NODE; PARTS are its weight and, maybe, its bias."""
    name, (weight, *bias) = node.name, parts
    turned = weight.T if facts.get("transB") else weight
    graph.initializer.append(_tensor(f"{name}_weight", turned * np.float32(facts.get("alpha", 1))))
    product = f"{node.output[0]}_MatMul" if bias else node.output[0]
    first = helper.make_node("MatMul", [node.input[0], f"{name}_weight"], [product], name)
    if not bias:
        return [first]
    graph.initializer.append(_tensor(f"{name}_bias", bias[0] * np.float32(facts.get("beta", 1))))
    second = helper.make_node("Add", [product, f"{name}_bias"], list(node.output), f"{name}_Add")
    return [first, second]


def _tensor(name: str, array: NDArray[Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)


def _method(how: Quantization) -> str:
    match how.precision:
        case "fp16":
            return "float16-weights"
        case "w8" | "w4":
            return f"matmul-nbits-{how.precision[1:]}bit-block{BLOCK}"
    parts = {
        "7bit": needs_7_bits(how),
        "per-tensor": not how.per_channel,
        how.ranges: how.ranges not in {"default", "minmax"},
    }
    first = "static-qdq-u8s8" if how.method == "static" else "dynamic-u8s8"
    return "-".join([first, *(part for part, used in parts.items() if used)])


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
    """Gives onnxruntime one sample after the other."""

    def __init__(self, samples: Samples) -> None:
        self._samples: Iterator[dict[str, NDArray[Any]]] = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample, or None after the last one."""
        return next(self._samples, None)
