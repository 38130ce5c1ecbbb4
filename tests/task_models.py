"""Small models of every task, made by hand so that what they must see is known. ONNX.

The detector is a real one, only without training: for boxes of several sizes it holds what is
inside against what is around, with one convolution each, and gives what YOLO v8 gives.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["SIDE", "blob_detector", "describing", "recipe_of", "segmenter"]

SIDE = 128
STRIDE = 8
OPSET, IR = 18, 9


def blob_detector(
    path: Path,
    colors: tuple[float, float, float],
    sizes: tuple[int, ...] = (24, 40),
    bar: float = 0.25,
) -> Path:
    """Write a detector of square spots whose colour, times COLORS, is above what is around.

    Input `image` [1, 3, 128, 128] in 0..1; output `found` [1, 5, N]: centre, size, score.
    """
    nodes, weights, boxes, flat = [], [], [], []
    weights.append(("mix", np.array(colors, np.float32).reshape(1, 3, 1, 1)))
    nodes.append(helper.make_node("Conv", ["image", "mix"], ["map"]))
    for size in sizes:
        kernel = _inside_against_around(size)
        weights.append((f"kernel{size}", kernel))
        pad = (kernel.shape[2] - 1) // 2
        nodes.append(
            helper.make_node(
                "Conv", ["map", f"kernel{size}"], [f"heat{size}"],
                strides=[STRIDE, STRIDE], pads=[pad, pad, pad, pad],
            )
        )  # fmt: skip
        nodes.append(helper.make_node("Reshape", [f"heat{size}", "row"], [f"flat{size}"]))
        boxes.append(_centres(size))
        flat.append(f"flat{size}")
    weights += [
        ("row", np.array([1, 1, -1], np.int64)),
        ("boxes", np.concatenate(boxes, axis=2)),
        ("bar", np.array(bar, np.float32)),
        ("steep", np.array(24, np.float32)),
    ]
    nodes += [
        helper.make_node("Concat", flat, ["heat"], axis=2),
        helper.make_node("Sub", ["heat", "bar"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
        helper.make_node("Concat", ["boxes", "score"], ["found"], axis=1),
    ]
    count = sum(each.shape[2] for each in boxes)
    return _save(path, nodes, weights, ("found", [1, 5, count]))


def segmenter(path: Path) -> Path:
    """Write a model that calls dark 0, red 1 and bright 2, at half the input's size."""
    weight = np.array([[-1, -1, -1], [2, -1, -1], [0.6, 1, 1]], np.float32).reshape(3, 3, 1, 1)
    bias = np.array([0.9, 0, -0.7], np.float32)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["half", "weight", "bias"], ["planes"]),
    ]
    weights = [("weight", weight), ("bias", bias)]
    return _save(path, nodes, weights, ("planes", [1, 3, SIDE // 2, SIDE // 2]))


def describing(path: Path) -> Path:
    """Write a model that stands a picture for by 48 numbers: the colours of a grid of 4 x 4."""
    side = SIDE // 4
    nodes = [
        helper.make_node(
            "AveragePool", ["image"], ["grid"], kernel_shape=[side, side], strides=[side, side]
        ),
        helper.make_node("Flatten", ["grid"], ["vector"]),
    ]
    return _save(path, nodes, [], ("vector", [1, 48]))


def recipe_of(task: str, path: Path) -> Path:
    """Write the recipe for the model of TASK."""
    path.write_text(f"model:\n  task: {task}\n{RECIPES[task]}  preprocess:\n{PREPROCESS}")
    return path


PREPROCESS = "    color: rgb\n    resize: {mode: letterbox, pad: 0}\n    scale: 255\n"
RECIPES = {
    "detect": (
        "  labels: [spot]\n"
        "  postprocess: {decoder: yolo, output: found, score_threshold: 0.5, nms_iou: 0.1}\n"
    ),
    "segment": "  labels: [dark, red, bright]\n  postprocess: {output: planes}\n",
    "embed": "",
}


def _inside_against_around(size: int) -> np.ndarray:
    """Return a kernel that gives the mean within SIZE less the mean around it."""
    outer = int(size * 1.5) // 2 * 2 + 1
    inner = np.zeros((outer, outer), bool)
    edge = (outer - size) // 2
    inner[edge : outer - edge, edge : outer - edge] = True
    kernel = np.where(inner, 1 / inner.sum(), -1 / (~inner).sum())
    return kernel.astype(np.float32)[None, None]


def _centres(size: int) -> np.ndarray:
    at = np.arange(0, SIDE, STRIDE, dtype=np.float32) + 0.5
    y, x = np.meshgrid(at, at, indexing="ij")
    width = np.full(x.size, size, np.float32)
    return np.stack([x.ravel(), y.ravel(), width, width])[None]


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[tuple[str, np.ndarray]],
    output: tuple[str, list[int]],
) -> Path:
    graph = helper.make_graph(
        nodes, "by-hand",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
