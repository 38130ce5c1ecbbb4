"""TFLite on a host: checks and copies a model, and quantises it with ai-edge-quantizer."""

import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_targets.extras import require
from edgepack_targets.interface import Applied, Quantization
from edgepack_targets.samples import Samples
from edgepack_targets.shapes import static_shapes
from edgepack_targets.silence import no_output
from edgepack_targets.tflite_session import describe, natives, open_model
from edgepack_targets.weights import Stored, int4_values, tally

__all__ = ["applied", "convert", "quantize"]

MAX_CALIBRATION = 300
FILE = "model.tflite"
PLUMBING = (schema.BuiltinOperator.QUANTIZE, schema.BuiltinOperator.DEQUANTIZE)
STORED: dict[int, tuple[Literal["float", "float16", "int8", "int4"], str]] = {
    schema.TensorType.FLOAT32: ("float", "f4"),
    schema.TensorType.FLOAT64: ("float", "f8"),
    schema.TensorType.FLOAT16: ("float16", "f2"),
    schema.TensorType.INT8: ("int8", "i1"),
    schema.TensorType.INT4: ("int4", "u1"),
}
INTEGER = (schema.TensorType.INT8, schema.TensorType.INT4)


def convert(
    source: Path,
    source_format: str,
    out_dir: Path,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Write SOURCE to OUT_DIR/model.tflite; see `interface.Target`."""
    if source_format != "tflite":
        raise UnsupportedError(
            f"target `tflite` takes no {source_format}",
            why="TensorFlow models become TFLite in the `tf` toolchain first",
            reason="no_route",
        )
    try:
        inputs, _ = natives(open_model(source, 1))
    except IntegrityError as error:
        raise UsageError(
            f"{source} is not a TFLite model that can run here", why=error.why, reason="bad_model"
        ) from error
    # A TFLite file has its shapes already; what was asked for is checked against them.
    static_shapes({native.name: native.shape for native in inputs}, shapes or {})
    shutil.copyfile(source, out_dir / FILE)


def quantize(
    model_dir: Path,
    out_dir: Path,
    how: Quantization,
    calibration: Mapping[str, NDArray[Any]] | None,
) -> dict[str, Any]:
    """Write MODEL_DIR as int8 with float inputs and outputs to OUT_DIR; see `interface.Target`."""
    source = model_dir / FILE
    samples = Samples(describe(model_dir)[0], calibration, MAX_CALIBRATION, how.seed)
    key = _signature(source)
    from ai_edge_quantizer import qtyping, quantizer, recipe

    with no_output(), warnings.catch_warnings():
        # It warns of the memory that calibration takes: it has to keep all tensors.
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`")
        worker = quantizer.Quantizer(str(source))
        worker.load_quantization_recipe(recipe.static_wi8_ai8())
        for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            # Inputs and outputs stay float: the public tensors are those of the source.
            worker.update_quantization_recipe(
                ".*", side, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE
            )
        ranges = worker.calibrate({key: list(samples)}, num_threads=1)
        result = worker.quantize(ranges, enable_progress_report=False)
    (out_dir / FILE).write_bytes(bytes(result.quantized_model))
    names = ("ai-edge-quantizer", "ai-edge-litert")
    return {
        "method": "ai-edge-static-wi8-ai8",
        "samples": len(samples),
        "seed": how.seed,
        "tools": {name: require(name, extra="packager", wanted_for=name) for name in names},
    }


def applied(model_dir: Path) -> Applied:
    """Return what is really in MODEL_DIR/model.tflite; see `interface.Target`."""
    model = schema.ModelT.InitFromPackedBuf((model_dir / FILE).read_bytes())
    graph = model.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    workers = [op for op in graph.operators if codes[op.opcodeIndex] not in PLUMBING]
    # A bias is a vector; what has at least two axes and data in the file is a weight.
    weights = [t for t in graph.tensors if t.type in STORED and len(t.shape) > 1]
    return Applied(
        operators=len(workers),
        quantized_operators=sum(1 for op in workers if _reads_integers(graph, op)),
        **tally(s for t in weights if (s := _stored(model, t)) is not None),
    )


def _signature(path: Path) -> str:
    """Return the one signature of PATH, by which its inputs are fed."""
    signatures: dict[str, Any] = open_model(path, 1).get_signature_list()
    if not signatures:
        raise UnsupportedError(
            "this TFLite model cannot be quantised",
            why="it has no signature, and the quantiser finds its inputs by one",
            fix="export it again from a SavedModel",
            reason="no_signature",
        )
    return next(iter(signatures))


def _stored(model: Any, tensor: Any) -> Stored | None:
    """Return how the data of TENSOR is stored; None if it has none in the file."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    (kind, dtype), raw = STORED[tensor.type], np.asarray(data, np.uint8)
    count = math.prod(int(size) for size in tensor.shape)
    values = int4_values(raw, count) if kind == "int4" else raw.view(dtype)
    return Stored(kind, count, count - int(np.count_nonzero(values)))


def _reads_integers(graph: Any, operator: Any) -> bool:
    return any(graph.tensors[index].type in INTEGER for index in operator.inputs if index >= 0)
