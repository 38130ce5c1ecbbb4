"""Average pools as onnx2tf reads them right: what is padded on one side more than on the other.

onnx2tf counts the padding of such a pool as if both sides had it. Here the padding becomes an
operator of its own, and a factor makes up for what it adds to the count. Standard library,
numpy and onnx.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["plain_average_pools"]


def plain_average_pools(model: Any) -> Any:
    """Return MODEL, of opset 13 or later and with static shapes, without lopsided average pools."""
    import onnx

    shapes = _shapes(onnx.shape_inference.infer_shapes(model).graph)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for index, node in enumerate(nodes):
        pool = _lopsided(node, shapes)
        even = pool is not None and bool(np.ptp(_factors(pool)) == 0)
        # onnx2tf takes no factor per place; what it then makes of the pool is checked anyway.
        fresh = _rewrite(model.graph, node, pool, f"edgepack.pool_{index}") if even and pool else []
        replaced = fresh or [node]
        model.graph.node.extend(replaced)
    return model


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    values = (*graph.input, *graph.value_info)
    return {v.name: tuple(s.dim_value for s in v.type.tensor_type.shape.dim) for v in values}


def _lopsided(node: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Return the attributes of NODE and the `sizes` it pools, if it has to be rewritten."""
    import onnx

    if node.op_type != "AveragePool" or node.input[0] not in shapes:
        return None
    said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    pads, rank = list(said.get("pads", ())), len(said["kernel_shape"])
    counted = said.get("count_include_pad", 0) or said.get("ceil_mode", 0)
    if counted or said.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:rank] == pads[rank:]:
        return None
    ones = [1] * rank
    return {"strides": ones, "dilations": ones} | said | {"sizes": shapes[node.input[0]][2:]}


def _rewrite(graph: Any, node: Any, pool: dict[str, Any], name: str) -> list[Any]:
    from onnx import helper, numpy_helper

    rank = len(pool["sizes"])
    begin, end = pool["pads"][:rank], pool["pads"][rank:]
    pads = np.array([0, 0, *begin, 0, 0, *end], np.int64)
    graph.initializer.append(numpy_helper.from_array(pads, f"{name}_pads"))
    factor = _factors(pool).ravel()[:1]
    graph.initializer.append(numpy_helper.from_array(factor, f"{name}_factor"))
    kept = {key: pool[key] for key in ("kernel_shape", "strides", "dilations")}
    if set(kept["dilations"]) == {1}:
        # Opset 19 brought dilations.
        del kept["dilations"]
    return [
        helper.make_node("Pad", [node.input[0], f"{name}_pads"], [f"{name}_padded"]),
        helper.make_node("AveragePool", [f"{name}_padded"], [f"{name}_mean"], **kept),
        helper.make_node("Mul", [f"{name}_mean", f"{name}_factor"], [node.output[0]]),
    ]


def _factors(pool: dict[str, Any]) -> NDArray[np.float32]:
    """Return (1, 1, ...): places in the kernel / places that hold a pixel."""
    rank = len(pool["sizes"])
    pads = zip(pool["pads"][:rank], pool["pads"][rank:], strict=True)
    axes = zip(
        pool["sizes"], pads, pool["kernel_shape"], pool["strides"], pool["dilations"], strict=True
    )
    counts = reduce(np.multiply.outer, [_counts(*axis) for axis in axes])
    factors = math.prod(pool["kernel_shape"]) / np.maximum(counts, 1)
    return factors.astype(np.float32)[None, None]  # type: ignore[no-any-return]


def _counts(
    size: int, pads: Sequence[int], kernel: int, stride: int, dilation: int
) -> NDArray[np.float64]:
    """Return how many pixels, not padding, each place of the kernel along one axis sees."""
    here = np.concatenate([np.zeros(pads[0]), np.ones(size), np.zeros(pads[1])])
    last = len(here) - dilation * (kernel - 1)
    return np.array(
        [here[i : i + dilation * kernel : dilation].sum() for i in range(0, last, stride)]
    )
