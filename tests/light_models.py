"""The real topologies inside the `onnx` wheel, with weights that make them compute something.

The wheel fills most weights with one constant, so that every class of every picture scores the
same and nothing would be proven. Here they are drawn from a seed: He normal, which keeps
activations in range, and the last layer is shifted and scaled until the classes differ.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = tuple(sorted(path.stem.removeprefix("light_") for path in LIGHT.glob("*.onnx")))
SIDE = 224
SCALES = {("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1)}
LAYERS = {"Conv", "Gemm"}
MOVES = {"Unsqueeze", "Reshape"}
"""What weights may go through on their way to a layer."""


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """Return the topology NAME with seeded weights; opset 9 and IR 3, as the wheel has it."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    graph = model.graph
    rng = np.random.default_rng(seed)
    weights = {key: _draw(rng, graph, key, shape) for key, shape in _weights(graph)}
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    sizes = {node.input[0] for node in graph.node if node.op_type == "ConstantOfShape"}
    _keep(graph.node, nodes)
    gone = sizes | set(weights)
    _keep(graph.initializer, [one for one in graph.initializer if one.name not in gone])
    _keep(graph.input, [one for one in graph.input if one.name not in gone])
    # Before IR 4 every weight is an input, too.
    graph.initializer.extend(numpy_helper.from_array(w, key) for key, w in weights.items())
    graph.input.extend(
        helper.make_tensor_value_info(key, TensorProto.FLOAT, w.shape) for key, w in weights.items()
    )
    onnx.checker.check_model(model)
    _spread_classes(model)
    return model


def pictures(count: int, seed: int = 1) -> Floats:
    """Return COUNT unlike pictures, (COUNT, 3, 224, 224) in -1..1: waves, blobs and colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (count, 3, 7, 7)).repeat(SIDE // 7, 2).repeat(SIDE // 7, 3)
    x = np.linspace(0, 1, SIDE)
    waves = [
        np.sin(2 * np.pi * (fx * x[:, None] + fy * x)) for fx, fy in rng.integers(1, 30, (count, 2))
    ]
    grain = rng.uniform(-1, 1, (count, 3, SIDE, SIDE))
    share = rng.dirichlet((1, 1, 1), count)[:, :, None, None, None]
    mixed = share[:, 0] * coarse + share[:, 1] * np.stack(waves)[:, None] + share[:, 2] * grain
    return mixed.astype(np.float32)


def answers(model: onnx.ModelProto, inputs: Floats, tensor: str = "") -> Floats:
    """Return what onnxruntime makes of each of INPUTS: the output, or the inner TENSOR."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if tensor:
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        watched.graph.output.append(onnx.ValueInfoProto(name=tensor))
        model = watched
    session = ort.InferenceSession(model.SerializeToString(), options)
    name = _input(model.graph)
    wanted = [tensor or session.get_outputs()[0].name]
    return np.concatenate([session.run(wanted, {name: one[None]})[0] for one in inputs])


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every float weight that a node reads, constant or not."""
    read = {key for node in graph.node for key in node.input}
    initial = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            sizes = numpy_helper.to_array(initial[node.input[0]])
            yield node.output[0], tuple(int(size) for size in sizes)
    for one in graph.initializer:
        if one.data_type == TensorProto.FLOAT and one.name in read:
            yield one.name, tuple(one.dims)


def _draw(
    rng: np.random.Generator, graph: onnx.GraphProto, key: str, shape: tuple[int, ...]
) -> Floats:
    kind, port = _use(graph, key)
    if kind in LAYERS and port == 1:
        fan_in = np.prod(shape[1:])
        drawn = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
    elif (kind, port) in SCALES:
        drawn = rng.uniform(0.5, 1.5, shape)
    else:
        drawn = 0.05 * rng.standard_normal(shape)
    return drawn.astype(np.float32)


def _use(graph: onnx.GraphProto, key: str) -> tuple[str, int]:
    """Return the kind of node that reads KEY, and at which port; shapes do not count."""
    node = next(node for node in graph.node if key in node.input)
    if node.op_type in MOVES:
        return _use(graph, node.output[0])
    return node.op_type, list(node.input).index(key)


def _spread_classes(model: onnx.ModelProto) -> None:
    """Shift and scale the last layer so that each class is about N(0, 4) over pictures."""
    graph = model.graph
    last = [node for node in graph.node if node.op_type in LAYERS][-1]
    seen = answers(model, pictures(8, seed=99), last.output[0])
    rows = seen.reshape(*seen.shape[:2], -1).mean(axis=2)
    mean, scale = rows.mean(axis=0), 2 / rows.std(axis=0).mean()
    initial = {one.name: one for one in graph.initializer}
    makers = {node.output[0]: node.input[0] for node in graph.node}
    weight, bias = (initial.get(key) or initial[makers[key]] for key in last.input[1:3])
    for tensor, shift, factor in ((weight, 0, scale), (bias, mean, scale)):
        moved = (numpy_helper.to_array(tensor) - shift) * factor
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))


def _input(graph: onnx.GraphProto) -> str:
    weights = {one.name for one in graph.initializer}
    return next(value.name for value in graph.input if value.name not in weights)


def _keep(field: object, items: list[object]) -> None:
    copies = [type(item)() for item in items]
    for copy, item in zip(copies, items, strict=True):
        copy.CopyFrom(item)
    del field[:]
    field.extend(copies)
