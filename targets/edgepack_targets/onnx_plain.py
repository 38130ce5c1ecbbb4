"""An ONNX model as quantisers and other runtimes understand it: weights and dense layers plain.

Computes the same as before, to the rounding of a product of weights. Knows no quantiser.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["dense_parts", "plain"]

Array = NDArray[Any]
Weights = Mapping[str, TensorProto]
FACTORS = {"alpha", "beta"}


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return MODEL, changed: every constant is a weight, every Gemm is x W + b where it can be.

    Quantisers look for weights among the initializers, not in nodes. onnxruntime computes an
    int8 Gemm with an alpha wrongly, OpenVINO's quantiser takes no bias with two axes.
    """
    _store_constants(model.graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and not node.domain:
            _make_plain(model.graph, node, weights)
    return model


def dense_parts(node: onnx.NodeProto, weights: Weights) -> list[Array] | None:
    """Return the weight and, maybe, the bias of the Gemm NODE, if all are constant float32."""
    names = [name for name in node.input[1:] if name]
    if any(n not in weights or weights[n].data_type != TensorProto.FLOAT for n in names):
        return None
    return [numpy_helper.to_array(weights[name]) for name in names]


def _store_constants(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type != "Constant" or node.domain or value is None:
            nodes.append(node)
            continue
        weight = graph.initializer.add()
        weight.CopyFrom(value)
        weight.name = node.output[0]
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _make_plain(graph: onnx.GraphProto, node: onnx.NodeProto, weights: Weights) -> None:
    facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    parts = dense_parts(node, weights)
    if parts is None or not _is_odd(facts, parts):
        return
    weight, *bias = parts
    width = weight.shape[0 if facts.get("transB") else 1]
    if any(b.size not in {1, width} or b.shape[-1:] not in {(), (1,), (width,)} for b in bias):
        return  # one for each row
    scaled = [weight * np.float32(facts.get("alpha", 1))]
    scaled += [
        np.broadcast_to(b.reshape(-1), (width,)) * np.float32(facts.get("beta", 1)) for b in bias
    ]
    for place, array in enumerate(scaled, 1):
        # Another layer may share the weight.
        name = f"{node.output[0]}_part_{place}"
        fresh = np.ascontiguousarray(array, np.float32)
        graph.initializer.append(numpy_helper.from_array(fresh, name))
        node.input[place] = name
    kept = [a for a in node.attribute if a.name not in FACTORS]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_odd(facts: Mapping[str, Any], parts: list[Array]) -> bool:
    factors = {facts.get("alpha", 1), facts.get("beta", 1)}
    return factors != {1} or any(bias.ndim != 1 or bias.size == 1 for bias in parts[1:])
