"""ONNX to the `onnx` target's fp32 model: static shapes, an opset that runs, canonical bytes."""

from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from edgepack.errors import UnsupportedError
from edgepack_targets.onnx_canonical import canonical
from edgepack_targets.onnx_operators import OLDEST
from edgepack_targets.onnx_plain import plain
from edgepack_targets.onnx_reading import opset_of, read_source
from edgepack_targets.shapes import static_shapes

__all__ = ["at_least", "convert", "write"]


def convert(
    source: Path,
    source_format: str,
    out_dir: Path,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Write SOURCE to OUT_DIR/model.onnx, static and canonical; see `interface.Target`.

    An input whose shape in SHAPES begins with -1 keeps a dynamic batch.
    """
    if source_format != "onnx":
        raise UnsupportedError(
            f"target `onnx` takes no {source_format}",
            why="other models become ONNX in a toolchain first",
            reason="no_route",
        )
    model = plain(at_least(read_source(source), OLDEST))
    _make_static(model, shapes or {})
    write(canonical(model), out_dir)


def at_least(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return MODEL, upgraded to OPSET if it is written in an older one, which stays otherwise.

    Raises:
        UnsupportedError: ONNX's version converter cannot upgrade it.
    """
    if opset_of(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # its errors have no other common base
        raise UnsupportedError(
            f"the model cannot be upgraded from opset {opset_of(model)} to {opset}",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            fix=f"export it again with opset {opset} or later",
            reason="opset_too_old",
        ) from error


def write(model: onnx.ModelProto, out_dir: Path) -> None:
    """Write MODEL, checked in full, to OUT_DIR/model.onnx.

    Raises:
        UnsupportedError: it is too large for one file, or no model that can run.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString(deterministic=True)
    except (
        ValueError,
        EncodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise UnsupportedError(
            "the model cannot be written as one ONNX file",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            reason="bad_model",
        ) from error
    (out_dir / "model.onnx").write_bytes(data)


def _make_static(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give every input of MODEL its shape and infer those of the outputs."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    known = {value.name: _shape(value) for value in inputs}
    wanted = static_shapes(known, shapes, dynamic_batch=True)
    if known == wanted:
        return
    for value in inputs:
        for size, length in zip(value.type.tensor_type.shape.dim, wanted[value.name], strict=True):
            if length > 0:
                size.dim_value = length
            else:
                size.dim_param = "batch"
    for value in model.graph.output:
        _forget_unknown(value)
    del model.graph.value_info[:]
    model.CopyFrom(_inferred(model))


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedError(
            "the model does not work with these shapes",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            fix="give others with --shape",
            reason="bad_shape",
        ) from error


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    if not value.type.tensor_type.HasField("shape"):
        raise UnsupportedError(
            f"the rank of input `{value.name}` is unknown",
            fix="export the model with the shapes of its inputs",
            reason="unknown_shape",
        )
    sizes = value.type.tensor_type.shape.dim
    # Some exporters say 0 or -1 for an axis that they do not know.
    return tuple(size.dim_value if size.dim_value > 0 else -1 for size in sizes)


def _forget_unknown(value: onnx.ValueInfoProto) -> None:
    """Drop names of unknown axes, so that inference fills them in."""
    for size in value.type.tensor_type.shape.dim:
        if size.dim_value < 1:
            size.Clear()
