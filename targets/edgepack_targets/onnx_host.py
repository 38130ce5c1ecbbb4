"""What is in an ONNX model on a host: how weights are stored, and how two models' layers differ."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgepack_targets.interface import Applied, Layer
from edgepack_targets.layers import Losses
from edgepack_targets.onnx_reading import load
from edgepack_targets.onnx_session import describe, open_model
from edgepack_targets.samples import Samples
from edgepack_targets.weights import Stored, int4_values, tally

__all__ = ["POSITIVE", "applied", "diagnose"]

PLUMBING = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "Identity",
}  # fmt: skip
POSITIVE = "_positive"
"""Ends the name of what `onnx_quantize` made of a tensor whose Relu was lost."""
INTEGER = {"MatMulInteger", "ConvInteger", "MatMulNBits"}
"""Operators that take integers as they are."""
STORED: dict[int, Literal["float", "float16", "int8", "int4"]] = {
    TensorProto.FLOAT: "float", TensorProto.DOUBLE: "float", TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "float16", TensorProto.INT8: "int8", TensorProto.UINT8: "int8",
}  # fmt: skip


def applied(model_dir: Path) -> Applied:
    """Return what is really in MODEL_DIR/model.onnx; see `interface.Target`."""
    graph = load(model_dir / "model.onnx").graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    stored = {weight.name for weight in graph.initializer}
    workers = [
        node
        for node in graph.node
        if node.op_type not in PLUMBING and not (node.op_type == "Cast" and node.input[0] in stored)
    ]
    integers = [n for n in workers if n.op_type in INTEGER or dequantized & set(n.input)]
    return Applied(
        operators=len(workers), quantized_operators=len(integers), **tally(_weights(graph))
    )


def diagnose(
    fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
) -> list[Layer]:
    """Compare tensors of the same name, quantised ones as they are read; see `interface.Target`."""
    chosen = Samples(describe(fp32_dir)[0], samples, len(next(iter(samples.values()), ())), 0)
    fp32, quantized = (load(d / "model.onnx") for d in (fp32_dir, quantized_dir))
    kinds = {node.name: node.op_type for node in fp32.graph.node}
    names = _shared(fp32.graph, quantized.graph)
    read_as = _read_as(quantized.graph)
    runs = (_Run(fp32, list(names)), _Run(quantized, [read_as.get(t, t) for t in names]))
    losses = Losses()
    for sample in chosen:
        for name, one, other in zip(names.values(), runs[0](sample), runs[1](sample), strict=True):
            if one.dtype.kind == "f":
                losses.add(name, one, other)
    return losses.worst_first(kinds)


def _shared(fp32: onnx.GraphProto, quantized: onnx.GraphProto) -> dict[str, str]:
    """Return the layer of every tensor that both models compute.

    That is the node which gives it in the quantised model, where a convolution also does the
    work of the Relu after it; if that is none of fp32's, the one which gives it there.
    """
    known = {node.name for node in fp32.node}
    makers = {name: node.name for node in quantized.node for name in node.output if name}
    # An LSTM may leave out any of its outputs but one.
    given = [(n, next(filter(None, n.output), "")) for n in fp32.node if n.op_type not in PLUMBING]
    return {
        tensor: makers[tensor] if makers[tensor] in known else node.name
        for node, tensor in given
        if tensor in makers
    }


def _read_as(graph: onnx.GraphProto) -> dict[str, str]:
    """Return what readers get instead of each tensor: what it is quantised to, or its Relu."""
    found = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "Max"}
    positive = {tensor: name for tensor, name in found.items() if name == tensor + POSITIVE}
    steps = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    back = (n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in steps)
    return {steps[node.input[0]]: node.output[0] for node in back} | positive


class _Run:
    """A model that gives the values of TENSORS."""

    def __init__(self, model: onnx.ModelProto, tensors: list[str]) -> None:
        own = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors if t not in own)
        self._session, self._tensors = open_model(model.SerializeToString(), 1), tensors

    def __call__(self, sample: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        answers: list[NDArray[Any]] = self._session.run(self._tensors, sample)
        return answers


def _weights(graph: onnx.GraphProto) -> Iterator[Stored]:
    """Yield the weights of GRAPH; a bias is a vector, what has at least two axes is a weight."""
    known = {weight.name: weight for weight in graph.initializer}
    for node in (n for n in graph.node if n.op_type == "MatMulNBits"):
        # Two layers may share one weight.
        packed = [known.pop(name) for name in node.input[1:] if name in known][:1]
        yield from (_packed(weight, node) for weight in packed)
    for weight in known.values():
        if len(weight.dims) > 1 and weight.data_type in STORED:
            zeros = int(np.count_nonzero(numpy_helper.to_array(weight) == 0))
            yield Stored(STORED[weight.data_type], math.prod(weight.dims), zeros)


def _packed(weight: TensorProto, node: onnx.NodeProto) -> Stored:
    """Return how the weight of a symmetric MatMulNBits is stored: its 0 is in the middle."""
    facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bits, rows, columns = facts["bits"], facts["K"], facts["N"]
    raw = numpy_helper.to_array(weight).reshape(-1)
    values = raw if bits == 8 else int4_values(raw, 2 * raw.size)
    # Each column is padded to whole blocks.
    used = values.reshape(columns, -1)[:, :rows]
    zeros = int(np.count_nonzero(used == 1 << (bits - 1)))
    return Stored("int8" if bits == 8 else "int4", rows * columns, zeros)
