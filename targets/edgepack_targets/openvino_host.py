"""OpenVINO on a host: converts to an uncompressed IR and compares the layers of two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.interface import Layer
from edgepack_targets.layers import Losses
from edgepack_targets.openvino_graph import layers, rename
from edgepack_targets.openvino_session import describe, natives
from edgepack_targets.samples import Samples
from edgepack_targets.shapes import static_shapes
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import openvino as ov

__all__ = ["convert", "diagnose"]

SOURCES = ("saved_model", "onnx", "tflite")


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


def diagnose(
    fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
) -> list[Layer]:
    """Compare what layers of the same name give, both run in f32; see `interface.Target`."""
    chosen = Samples(describe(fp32_dir)[0], samples, len(next(iter(samples.values()), ())), 0)
    models = [ov.Core().read_model(d / "model.xml") for d in (fp32_dir, quantized_dir)]
    fp32, quantized = (layers(model) for model in models)
    shared = [name for name in fp32 if name in quantized]
    runs = [
        _Run(model, [found[name].output for name in shared])
        for model, found in zip(models, (fp32, quantized), strict=True)
    ]
    losses = Losses()
    for sample in chosen:
        for name, one, other in zip(shared, runs[0](sample), runs[1](sample), strict=True):
            losses.add(name, one, other)
    return losses.worst_first({name: fp32[name].kind for name in shared})


class _Run:
    """A model that gives the values of PORTS besides its own outputs."""

    def __init__(self, model: ov.Model, ports: list[Any]) -> None:
        added = model.add_outputs(ports)
        self._places = [model.outputs.index(port) for port in added]
        hints = {"INFERENCE_PRECISION_HINT": ov.Type.f32, "CACHE_DIR": ""}
        self._request = ov.Core().compile_model(model, "CPU", hints).create_infer_request()

    def __call__(self, sample: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self._request.infer(dict(sample))
        return [self._request.get_output_tensor(place).data.copy() for place in self._places]


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
    rename(model)
    ov.save_model(model, out_dir / "model.xml", compress_to_fp16=False)
