"""The `openvino` target: OpenVINO IR on the CPU plugin. Imports it and NNCF only when used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgepack.manifest import Manifest
from edgepack_targets.extras import require
from edgepack_targets.interface import (
    DEFAULT,
    Applied,
    Capability,
    Layer,
    NativeTensor,
    Placement,
    Quantization,
    Session,
    Target,
)
from edgepack_targets.quantization import require_effect, require_expressible

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OPENVINO"]


class _OpenVino:
    """See `interface.Target`."""

    name: Final = "openvino"
    extra: Final = "openvino"

    def version(self) -> str:
        """Return the version of OpenVINO."""
        return require("openvino", extra=self.extra, wanted_for="the runtime of target `openvino`")

    def capability(self) -> Capability:
        """Return what the target can do on a host."""
        options = {"per_tensor", "minmax", "entropy", "percentile", "smooth", "bias_full"}
        return Capability(
            ("saved_model", "onnx", "tflite", "openvino"),
            ("fp32", "fp16", "bf16", "int8", "w8", "w4"),
            max_calibration=300,
            options=frozenset(options | {"bias_none", "exclude"}),
        )

    def load(
        self,
        model_dir: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        place: Placement = DEFAULT,
    ) -> Session:
        """Load MODEL_DIR/model.xml and model.bin."""
        version = self.version()
        from edgepack_targets import openvino_session

        return openvino_session.load(model_dir, manifest, version, threads, place)

    def describe(self, model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
        """Return the native inputs and outputs."""
        self.version()
        from edgepack_targets import openvino_session

        return openvino_session.describe(model_dir)

    def convert(
        self,
        source: Path,
        source_format: str,
        out_dir: Path,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Convert SOURCE to an uncompressed IR."""
        self._require_host()
        from edgepack_targets import openvino_convert

        openvino_convert.convert(source, source_format, out_dir, shapes)

    def quantize(
        self,
        model_dir: Path,
        out_dir: Path,
        how: Quantization,
        calibration: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Any]:
        """Quantise with NNCF."""
        self._require_host()
        require_expressible(self.name, self.capability(), how)
        from edgepack_targets import openvino_quantize

        done = openvino_quantize.quantize(model_dir, out_dir, how, calibration)
        require_effect(self.name, how, self.applied(out_dir))
        return done

    def diagnose(
        self, fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
    ) -> list[Layer]:
        """Compare the layers of both models."""
        self._require_host()
        from edgepack_targets import openvino_host

        return openvino_host.diagnose(fp32_dir, quantized_dir, samples)

    def applied(self, model_dir: Path) -> Applied:
        """Count what is quantised."""
        self._require_host()
        from edgepack_targets import openvino_graph

        return openvino_graph.applied(model_dir / "model.xml")

    def annotate(self, model_dir: Path, facts: Mapping[str, Any]) -> None:
        """Write FACTS into the IR's `rt_info`."""
        self._require_host()
        from edgepack_targets import openvino_metadata

        openvino_metadata.annotate(model_dir, facts)

    def annotations(self, model: Path) -> dict[str, Any]:
        """Return the facts in the IR's `rt_info`."""
        self._require_host()
        from edgepack_targets import openvino_metadata

        return openvino_metadata.annotations(model)

    def _require_host(self) -> None:
        self.version()
        require("nncf", extra="packager", wanted_for="the converter of target `openvino`")


OPENVINO: Target = _OpenVino()
