"""ONNX on a host: makes a model static and canonical, and quantises it with onnxruntime."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.extras import require
from edgepack_targets.interface import Applied, Quantization
from edgepack_targets.onnx_canonical import canonical
from edgepack_targets.onnx_session import describe
from edgepack_targets.samples import Samples
from edgepack_targets.shapes import static_shapes
from edgepack_targets.silence import no_telemetry
from edgepack_targets.weights import Stored, tally

with no_telemetry():
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

__all__ = ["applied", "convert", "quantize"]

MAX_CALIBRATION = 300
# With these dot-product instructions uint8 x int8 sums cannot saturate.
SAFE_DOT_PRODUCT = {"avx512_vnni", "avx_vnni", "vnni"}
PLUMBING = {"QuantizeLinear", "DequantizeLinear", "Constant", "Identity"}
STORED: dict[int, Literal["float", "float16", "int8", "int4"]] = {
    TensorProto.FLOAT: "float", TensorProto.DOUBLE: "float", TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "float16", TensorProto.INT8: "int8", TensorProto.UINT8: "int8",
}  # fmt: skip


def convert(
    source: Path,
    source_format: str,
    out_dir: Path,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Write SOURCE to OUT_DIR/model.onnx, static and canonical; see `interface.Target`."""
    if source_format != "onnx":
        raise UnsupportedError(
            f"target `onnx` takes no {source_format}",
            why="TensorFlow models become ONNX in the `tf` toolchain first",
            reason="no_route",
        )
    model = _read(source)
    _make_static(model, shapes or {})
    _write(canonical(model), out_dir)


def quantize(
    model_dir: Path,
    out_dir: Path,
    how: Quantization,
    calibration: Mapping[str, NDArray[Any]] | None,
) -> dict[str, Any]:
    """Write MODEL_DIR as QDQ int8 to OUT_DIR; see `interface.Target`."""
    samples = Samples(describe(model_dir)[0], calibration, MAX_CALIBRATION, how.seed)
    reduce_range = not SAFE_DOT_PRODUCT & set(how.cpu_features)
    with tempfile.TemporaryDirectory(prefix="edgepack-onnx-") as name:
        prepared, result = Path(name) / "prepared.onnx", Path(name) / "int8.onnx"
        quant_pre_process(str(model_dir / "model.onnx"), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(result),
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _write(canonical(onnx.load(result)), out_dir)
    return {
        "method": "static-qdq-u8s8" + ("-7bit" if reduce_range else ""),
        "samples": len(samples),
        "seed": how.seed,
        "tools": {"onnxruntime": require("onnxruntime", extra="onnx", wanted_for="onnxruntime")},
    }


def applied(model_dir: Path) -> Applied:
    """Return what is really in MODEL_DIR/model.onnx; see `interface.Target`."""
    graph = _read(model_dir / "model.onnx").graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    workers = [node for node in graph.node if node.op_type not in PLUMBING]
    # A bias is a vector; what has at least two axes is a weight.
    weights = [
        weight
        for weight in graph.initializer
        if len(weight.dims) > 1 and weight.data_type in STORED
    ]
    return Applied(
        operators=len(workers),
        quantized_operators=sum(1 for n in workers if dequantized & set(n.input)),
        **tally(map(_stored, weights)),
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
    """Gives onnxruntime one sample after the other."""

    def __init__(self, samples: Samples) -> None:
        self._samples: Iterator[dict[str, NDArray[Any]]] = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample, or None after the last one."""
        return next(self._samples, None)


def _read(path: Path) -> onnx.ModelProto:
    """Return the model in PATH with its external data folded in."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"{path} is not a valid ONNX model",
            why=lines[0],
            fix="export it again; weights kept outside must lie beside it",
            reason="bad_model",
        ) from error
    return model


def _make_static(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give every input of MODEL a static shape and infer those of the outputs."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    known = {value.name: _shape(value) for value in inputs}
    static = static_shapes(known, shapes)
    if known == static:
        return
    for value in inputs:
        for size, wanted in zip(value.type.tensor_type.shape.dim, static[value.name], strict=True):
            size.dim_value = wanted
    for value in model.graph.output:
        _forget_unknown(value)
    del model.graph.value_info[:]
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    if not value.type.tensor_type.HasField("shape"):
        raise UnsupportedError(
            f"the rank of input `{value.name}` is unknown",
            fix="export the model with the shapes of its inputs",
            reason="unknown_shape",
        )
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)


def _forget_unknown(value: onnx.ValueInfoProto) -> None:
    """Drop names of unknown axes, so that inference fills them in."""
    for size in value.type.tensor_type.shape.dim:
        if size.HasField("dim_param"):
            size.ClearField("dim_param")


def _write(model: onnx.ModelProto, out_dir: Path) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError, onnx.checker.ValidationError) as error:
        raise UnsupportedError(
            "the model cannot be written as one ONNX file", why=str(error), reason="bad_model"
        ) from error
    (out_dir / "model.onnx").write_bytes(data)


def _stored(weight: TensorProto) -> Stored:
    zeros = int(np.count_nonzero(numpy_helper.to_array(weight) == 0))
    return Stored(STORED[weight.data_type], math.prod(weight.dims), zeros)
