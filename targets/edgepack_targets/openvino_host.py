"""OpenVINO on a host: converts to an uncompressed IR and quantises with NNCF."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.extras import require
from edgepack_targets.interface import Applied, Quantization
from edgepack_targets.openvino_session import describe, natives
from edgepack_targets.samples import Samples
from edgepack_targets.shapes import static_shapes
from edgepack_targets.silence import no_output, no_telemetry
from edgepack_targets.weights import Stored, int4_values, tally

with no_telemetry():
    import openvino as ov

__all__ = ["applied", "convert", "quantize"]

MAX_CALIBRATION = 300
SOURCES = ("saved_model", "onnx", "tflite")
PLUMBING = {"Parameter", "Result", "Constant", "FakeQuantize", "Convert", "ReadValue", "Assign"}
# What NNCF leaves between stored int8 weights and the operator that uses them.
DEQUANTIZE = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose"}
STORED: dict[ov.Type, Literal["float", "float16", "int8", "int4"]] = {
    ov.Type.f32: "float", ov.Type.f64: "float", ov.Type.f16: "float16", ov.Type.bf16: "float16",
    ov.Type.i8: "int8", ov.Type.u8: "int8", ov.Type.i4: "int4", ov.Type.u4: "int4",
}  # fmt: skip
INTEGER = ("int8", "int4")


def convert(
    source: Path,
    source_format: str,
    out_dir: Path,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Write SOURCE to OUT_DIR/model.xml and .bin; see `interface.Target`."""
    if source_format not in SOURCES:
        raise UnsupportedError(
            f"target `openvino` takes no {source_format}",
            why=f"it takes {', '.join(SOURCES)}",
            reason="no_route",
        )
    model = _convert(source)
    known = {native.name: native.shape for native in natives(model)[0]}
    static = static_shapes(known, shapes or {})
    if static != known:
        # Converted again with the shapes, not reshaped: that leaves no shape arithmetic inside.
        model = _convert(source, [(name, list(shape)) for name, shape in static.items()])
    _save(model, out_dir)


def quantize(
    model_dir: Path,
    out_dir: Path,
    how: Quantization,
    calibration: Mapping[str, NDArray[Any]] | None,
) -> dict[str, Any]:
    """Write MODEL_DIR as int8 to OUT_DIR; see `interface.Target`."""
    samples = Samples(describe(model_dir)[0], calibration, MAX_CALIBRATION, how.seed)
    model = ov.Core().read_model(model_dir / "model.xml")
    with no_telemetry(), no_output():
        import nncf

        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(model, nncf.Dataset(list(samples)), subset_size=len(samples))
    _save(quantized, out_dir)
    versions = {
        name: require(name, extra="packager", wanted_for=name) for name in ("nncf", "openvino")
    }
    return {
        "method": "nncf-ptq-int8",
        "samples": len(samples),
        "seed": how.seed,
        "tools": versions,
    }


def applied(model_dir: Path) -> Applied:
    """Return what is really in MODEL_DIR/model.xml; see `interface.Target`."""
    model = ov.Core().read_model(model_dir / "model.xml")
    nodes = model.get_ordered_ops()
    workers = [node for node in nodes if not _is_plumbing(node)]
    weights = [n for n in nodes if _is_weight(n)]
    return Applied(
        operators=len(workers),
        quantized_operators=sum(any(map(_gives_int8, _sources(n))) for n in workers),
        **tally(_stored(n) for n in weights),
    )


def _convert(source: Path, static: list[tuple[str, list[int]]] | None = None) -> ov.Model:
    try:
        with no_telemetry():
            return ov.convert_model(source, **({"input": static} if static else {}))
    except (Exception, SystemExit) as error:  # its errors have no other common base
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UsageError(
            f"OpenVINO cannot convert {source}",
            why=lines[-1].strip() if lines else type(error).__name__,
            fix="check the file, and that all of its operators are ones OpenVINO knows",
            reason="bad_model",
        ) from error


def _save(model: ov.Model, out_dir: Path) -> None:
    _name_by_position(model)
    ov.save_model(model, out_dir / "model.xml", compress_to_fp16=False)


def _name_by_position(model: ov.Model) -> None:
    """Name operators after kind and position.

    OpenVINO numbers unnamed ones with a counter of the process, so the same conversion would
    give another file the second time. Tensor names, which the binding uses, stay.
    """
    for position, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{position}")


def _is_plumbing(node: Any) -> bool:
    """Say whether NODE only moves or scales: no work that is or is not quantised."""
    kind = node.get_type_name()
    return kind in PLUMBING or (kind in DEQUANTIZE and _from_constant(node))


def _sources(node: Any) -> list[Any]:
    return [value.get_source_output().get_node() for value in node.inputs()]


def _from_constant(node: Any) -> bool:
    """Say whether everything that NODE reads is constant."""
    return all(
        source.get_type_name() == "Constant"
        or (source.get_type_name() in DEQUANTIZE and _from_constant(source))
        for source in _sources(node)
    )


def _gives_int8(node: Any) -> bool:
    """Say whether what NODE gives is quantised: activations, or weights stored as int8."""
    kind = node.get_type_name()
    if kind in DEQUANTIZE and _from_constant(node):
        return any(map(_gives_int8, _sources(node)))
    stored = kind == "Constant" and STORED.get(node.get_element_type()) in INTEGER
    return bool(stored) or kind == "FakeQuantize"


def _is_weight(node: Any) -> bool:
    """Say whether NODE is a stored weight: at least two axes that are not 1 wide."""
    if node.get_type_name() != "Constant" or node.get_element_type() not in STORED:
        return False
    return bool(sum(size > 1 for size in node.get_output_shape(0)) > 1)


def _stored(node: Any) -> Stored:
    """Return how the constant NODE is stored; NNCF's integer weights have their zero at 0."""
    kind, count = STORED[node.get_element_type()], math.prod(node.get_output_shape(0))
    values = int4_values(node.data.view(np.uint8), count) if kind == "int4" else node.data
    return Stored(kind, count, count - int(np.count_nonzero(values)))
