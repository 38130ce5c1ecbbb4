"""OpenVINO on a host: compares the layers of two models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepack_targets.interface import Layer
from edgepack_targets.layers import Losses
from edgepack_targets.openvino_graph import layers
from edgepack_targets.openvino_session import describe
from edgepack_targets.samples import Samples
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import openvino as ov

__all__ = ["diagnose"]


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
