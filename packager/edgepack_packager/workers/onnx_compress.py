"""The compress step of ONNX sources, on the host: zeros, shared values, low rank. Trains nothing.

Works on the constant weights of convolutions and matrix products, wherever the exporter put
them. Biases, norms and tables are left alone.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgepack.errors import UnsupportedError
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.thinning import (
    cluster,
    distinct,
    factorise,
    is_thin,
    rank_of,
    smallest,
    sparsity,
)
from edgepack_targets.onnx_reading import read_source

__all__ = ["compress"]

Facts = dict[str, Any]
Settings = Mapping[str, Any]
Array = np.ndarray[Any, Any]
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
TOOLS = ("onnx", "numpy")
WEIGHTS_ARE_NO_INPUTS = 4


def compress(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Do `args["steps"]` to the source and write OUT/model.onnx; return kind, file and facts.

    Facts of a step: its settings, parameters before and after, and what it really did.

    Raises:
        UnsupportedError: there is nothing in the model that a step could change.
    """
    say("opening the model")
    model = read_source(Path(args["source"]))
    # Before this version of the format every weight was an input, too, with a shape of its own.
    model.ir_version = max(model.ir_version, WEIGHTS_ARE_NO_INPUTS)
    _constants_become_weights(model.graph)
    applied = []
    for step in args["steps"]:
        say(step["kind"].replace("_", " "))
        before = _parameters(model.graph)
        facts = {"parameters_before": before} | STEPS[step["kind"]](model.graph, step)
        applied.append(dict(step) | facts | {"parameters_after": _parameters(model.graph)})
    onnx.save(model, out / "model.onnx")
    return {
        "kind": "onnx",
        "file": "model.onnx",
        "applied": applied,
        "versions": installed_versions(TOOLS),
    }


def _constants_become_weights(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initialisers, and no input is one."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if value is not None and not value.data_location:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)
    weights = {one.name for one in graph.initializer}
    for value in [one for one in graph.input if one.name in weights]:
        graph.input.remove(value)


def _parameters(graph: onnx.GraphProto) -> int:
    return sum(int(np.prod(one.dims)) for one in graph.initializer)


def _weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the float tensors with two axes or more that convolutions and products use."""
    used = {name for node in graph.node if node.op_type in WEIGHTED for name in node.input[:2]}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    found = {
        one.name: one
        for one in graph.initializer
        if one.name in used and len(one.dims) > 1 and one.data_type in floats
    }
    if not found:
        raise UnsupportedError(
            "the model has no float weights to change",
            why="a convolution or matrix product with a constant weight is needed",
            fix="a quantised model is compressed already: start from the float model",
            reason="no_weights",
        )
    return found


def _values(graph: onnx.GraphProto) -> dict[str, Array]:
    return {name: numpy_helper.to_array(one) for name, one in _weights(graph).items()}


def _write(tensor: onnx.TensorProto, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _prune_magnitude(graph: onnx.GraphProto, step: Settings) -> Facts:
    values, tensors = _values(graph), _weights(graph)
    for name, stays in smallest(values, step["sparsity"]).items():
        _write(tensors[name], np.where(stays, values[name], 0).astype(values[name].dtype))
    return {"measured_sparsity": round(sparsity(_values(graph).values()), 6)}


def _cluster(graph: onnx.GraphProto, step: Settings) -> Facts:
    tensors = _weights(graph)
    for name, values in _values(graph).items():
        _write(tensors[name], cluster(values, step["clusters"]))
    return {"distinct_values": distinct(list(_values(graph).values()))}


def _low_rank(graph: onnx.GraphProto, step: Settings) -> Facts:
    """Split matrix products in two; `kept` are the weights that would not shrink."""
    ranks: dict[str, list[int]] = {}
    kept: list[str] = []
    elsewhere = {one.name for one in graph.output} | set(_used_in_bodies(graph))
    for name, tensor in _weights(graph).items():
        users = [node for node in graph.node if name in node.input]
        rank = rank_of(min(tensor.dims), step["rank"])
        alone = len(users) == 1 and name not in elsewhere
        product = alone and _is_product(users[0], name) and len(tensor.dims) == 2
        shrinks = product and rank * sum(tensor.dims) < np.prod(tensor.dims)
        if not shrinks or is_thin(tensor.dims):
            kept.append(name)
            continue
        _split(graph, users[0], tensor, rank)
        ranks[name] = [rank]
    if not ranks:
        raise UnsupportedError(
            "low_rank finds no matrix product that would shrink",
            why=f"in an ONNX model only Gemm and MatMul are split; weights: {', '.join(kept)}",
            fix="choose a lower `rank`, or compress the model before its export",
            reason="nothing_to_factorise",
        )
    return {"ranks": ranks, "kept": kept}


def _used_in_bodies(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield what the bodies of branches and loops in GRAPH take, from outside or not."""
    for attribute in (one for node in graph.node for one in node.attribute):
        for body in (attribute.g, *attribute.graphs):
            yield from (name for node in body.node for name in node.input)
            yield from (one.name for one in body.output)
            yield from _used_in_bodies(body)


def _is_product(node: onnx.NodeProto, weight: str) -> bool:
    """Return whether NODE multiplies by WEIGHT from the right, untransposed input, no scale."""
    if node.op_type == "MatMul":
        return bool(node.input[1] == weight)
    settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    plain = not settings.get("transA") and settings.get("alpha", 1.0) == 1.0
    return bool(node.op_type == "Gemm" and node.input[1] == weight and plain)


def _split(
    graph: onnx.GraphProto, node: onnx.NodeProto, tensor: onnx.TensorProto, rank: int
) -> None:
    """Put a thin MatMul before NODE, which then multiplies by what is left of its weight."""
    turned = any(one.name == "transB" and one.i for one in node.attribute)
    matrix = numpy_helper.to_array(tensor)
    first, last = factorise(matrix.T if turned else matrix, rank)
    thin = f"{tensor.name}/first"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(first), thin))
    _write(tensor, last.T if turned else last)
    before = onnx.helper.make_node("MatMul", [node.input[0], thin], [f"{thin}/out"], name=thin)
    graph.node.insert(list(graph.node).index(node), before)
    node.input[0] = f"{thin}/out"


STEPS: dict[str, Callable[[onnx.GraphProto, Settings], Facts]] = {
    "prune_magnitude": _prune_magnitude,
    "cluster": _cluster,
    "low_rank": _low_rank,
}
