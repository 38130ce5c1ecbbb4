"""What is written in a .tflite file: its operators, their names, how weights are stored."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgepack_targets.interface import Applied
from edgepack_targets.weights import Stored, int4_values, tally

__all__ = ["applied", "operators", "scopes"]

PLUMBING = (schema.BuiltinOperator.QUANTIZE, schema.BuiltinOperator.DEQUANTIZE)
STORED: dict[int, tuple[Literal["float", "float16", "int8", "int4"], str]] = {
    schema.TensorType.FLOAT32: ("float", "f4"),
    schema.TensorType.FLOAT64: ("float", "f8"),
    schema.TensorType.FLOAT16: ("float16", "f2"),
    schema.TensorType.INT8: ("int8", "i1"),
    schema.TensorType.INT4: ("int4", "u1"),
}
INTEGER = (schema.TensorType.INT8, schema.TensorType.INT4)
KINDS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


def applied(path: Path) -> Applied:
    """Return what is really in the model in PATH; see `interface.Target`."""
    data = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(data)
    graph = model.subgraphs[0]
    workers = [op for op in graph.operators if _code(model, op) not in PLUMBING]
    # A bias is a vector; what has at least two axes and data in the file is a weight.
    weights = [t for t in graph.tensors if t.type in STORED and len(t.shape) > 1]
    return Applied(
        operators=len(workers),
        quantized_operators=sum(1 for op in workers if _reads_integers(graph, op)),
        **tally(s for t in weights if (s := _stored(model, t, data)) is not None),
    )


def operators(path: Path) -> dict[str, str]:
    """Return the kind of each operator in PATH by its layer's name: that of its first output."""
    model = _read(path)
    return {
        _outputs(model, op)[0]: KINDS.get(_code(model, op), "CUSTOM")
        for op in model.subgraphs[0].operators
        if _outputs(model, op)
    }


def scopes(path: Path) -> dict[str, str]:
    """Return what ai-edge-quantizer calls each layer in PATH, by the layer's name."""
    model = _read(path)
    every = (_outputs(model, op) for op in model.subgraphs[0].operators)
    return {names[0]: ";".join(names) + ";" for names in every if names}


def _read(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def _outputs(model: Any, operator: Any) -> list[str]:
    tensors = model.subgraphs[0].tensors
    return [tensors[index].name.decode() for index in operator.outputs if index >= 0]


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _stored(model: Any, tensor: Any, whole: bytes) -> Stored | None:
    """Return how the data of TENSOR is stored; None if it has none in the file."""
    raw = _data(model.buffers[tensor.buffer], whole)
    if not len(raw):
        return None
    kind, dtype = STORED[tensor.type]
    count = math.prod(int(size) for size in tensor.shape)
    values = int4_values(raw, count) if kind == "int4" else raw.view(dtype)
    return Stored(kind, count, count - int(np.count_nonzero(values)))


def _data(buffer: Any, whole: bytes) -> Any:
    """Return the bytes of BUFFER; ai-edge-quantizer writes large ones behind the flatbuffer."""
    if buffer.offset > 1:
        return np.frombuffer(whole, np.uint8, buffer.size, buffer.offset)
    return np.asarray([] if buffer.data is None else buffer.data, np.uint8)


def _reads_integers(graph: Any, operator: Any) -> bool:
    return any(graph.tensors[i].type in INTEGER for i in operator.inputs if i >= 0)
