"""Anything that OpenVINO reads to an uncompressed IR with the shapes that were asked for."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.openvino_graph import rename
from edgepack_targets.openvino_session import natives
from edgepack_targets.shapes import static_shapes
from edgepack_targets.silence import no_telemetry
from edgepack_targets.tflite_plain import plain

with no_telemetry():
    import openvino as ov

__all__ = ["SOURCES", "convert"]

SOURCES = ("saved_model", "onnx", "tflite", "openvino")
NO_RULE = re.compile(r"No conversion rule found for operations?: (.+)")
ONNX_VERSION = re.compile(r"-\d+$")
"""What OpenVINO writes behind the name of one of ONNX's own operators."""
Shapes = Mapping[str, tuple[int, ...]]


def convert(source: Path, source_format: str, out_dir: Path, shapes: Shapes | None) -> None:
    """Write SOURCE to OUT_DIR/model.xml and .bin; see `interface.Target`.

    An input whose shape in SHAPES begins with -1 keeps a dynamic batch.
    """
    if source_format not in SOURCES:
        raise UnsupportedError(
            f"target `openvino` takes no {source_format}",
            why=f"it takes {', '.join(SOURCES)}",
            reason="no_route",
        )
    if source_format == "tflite":
        with tempfile.TemporaryDirectory(prefix="edgepack-openvino-") as folder:
            copy = Path(folder) / source.name
            copy.write_bytes(plain(source.read_bytes()))
            return _write(copy, source_format, out_dir, shapes)
    return _write(source, source_format, out_dir, shapes)


def _write(source: Path, source_format: str, out_dir: Path, shapes: Shapes | None) -> None:
    model = _convert(source, source_format)
    known = {native.name: native.shape for native in natives(model)[0]}
    wanted = static_shapes(known, shapes or {}, dynamic_batch=True)
    if wanted != known:
        # Converted again with the shapes, not reshaped: that leaves no shape arithmetic inside.
        model = _convert(source, source_format, wanted)
    rename(model)
    ov.save_model(model, out_dir / "model.xml", compress_to_fp16=False)


def _convert(source: Path, source_format: str, shapes: Shapes | None = None) -> ov.Model:
    try:
        with no_telemetry():
            if source_format == "openvino":
                model = ov.Core().read_model(source)
                if shapes:
                    model.reshape({name: list(shape) for name, shape in shapes.items()})
                return model
            given = [(name, list(shape)) for name, shape in (shapes or {}).items()]
            return ov.convert_model(source, **({"input": given} if given else {}))
    except (Exception, SystemExit) as error:  # its errors have no other common base
        raise _told(source, str(error).strip() or type(error).__name__) from error


def _told(source: Path, error: str) -> UnsupportedError | UsageError:
    missing = sorted(
        {
            ONNX_VERSION.sub("", name.strip())
            for names in NO_RULE.findall(error)
            for name in names.split(",")
        }
    )
    if missing:
        return UnsupportedError(
            f"OpenVINO does not have {len(missing)} of the model's operators",
            why=f"missing: {', '.join(missing)}",
            fix="replace them in the model, or leave target openvino out",
            reason="unsupported_operator",
        )
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return UsageError(
        f"OpenVINO cannot convert {source.name}",
        why=lines[-1][:300],
        fix="check the file, and that all of its operators are ones OpenVINO knows",
        reason="bad_model",
    )
