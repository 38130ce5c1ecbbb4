"""The `tflite` target: TFLite models on LiteRT with XNNPACK. Imports both only when used."""

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

__all__ = ["TFLITE"]


class _TfLite:
    """See `interface.Target`."""

    name: Final = "tflite"
    extra: Final = "tflite"

    def version(self) -> str:
        """Return the version of LiteRT."""
        return require(
            "ai-edge-litert", extra=self.extra, wanted_for="the runtime of target `tflite`"
        )

    def capability(self) -> Capability:
        """Return what the target can do on a host."""
        return Capability(
            ("tflite",),
            ("fp32", "fp16", "int8", "w8", "w4"),
            max_calibration=300,
            options=frozenset({"dynamic", "per_tensor", "minmax", "exclude", "int8_io"}),
        )

    def load(
        self,
        model_dir: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        place: Placement = DEFAULT,
    ) -> Session:
        """Load MODEL_DIR/model.tflite."""
        version = self.version()
        from edgepack_targets import tflite_session

        return tflite_session.load(model_dir, manifest, version, threads, place)

    def describe(self, model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
        """Return the native inputs and outputs."""
        self.version()
        from edgepack_targets import tflite_session

        return tflite_session.describe(model_dir)

    def convert(
        self,
        source: Path,
        source_format: str,
        out_dir: Path,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Check SOURCE and copy it."""
        self._require_host()
        from edgepack_targets import tflite_host

        tflite_host.convert(source, source_format, out_dir, shapes)

    def quantize(
        self,
        model_dir: Path,
        out_dir: Path,
        how: Quantization,
        calibration: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Any]:
        """Quantise with ai-edge-quantizer."""
        self._require_host()
        require_expressible(self.name, self.capability(), how)
        from edgepack_targets import tflite_quantize

        done = tflite_quantize.quantize(model_dir, out_dir, how, calibration)
        require_effect(self.name, how, self.applied(out_dir))
        return done

    def diagnose(
        self, fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
    ) -> list[Layer]:
        """Compare the layers of both models."""
        self._require_host()
        from edgepack_targets import tflite_host

        return tflite_host.diagnose(fp32_dir, quantized_dir, samples)

    def applied(self, model_dir: Path) -> Applied:
        """Count what is quantised."""
        self._require_host()
        from edgepack_targets import tflite_graph

        return tflite_graph.applied(model_dir / "model.tflite")

    def annotate(self, model_dir: Path, facts: Mapping[str, Any]) -> None:
        """Write FACTS into a metadata buffer."""
        self._require_host()
        from edgepack_targets import tflite_metadata

        tflite_metadata.annotate(model_dir, facts)

    def annotations(self, model: Path) -> dict[str, Any]:
        """Return the facts in a metadata buffer."""
        self._require_host()
        from edgepack_targets import tflite_metadata

        return tflite_metadata.annotations(model)

    def _require_host(self) -> None:
        self.version()
        require(
            "ai-edge-quantizer", extra="packager", wanted_for="the quantiser of target `tflite`"
        )


TFLITE: Target = _TfLite()
