"""The `onnx-mobile` target: ORT format for onnxruntime in apps. Imports it only when used.

It is built from a finished model of target `onnx`, so every precision is lowered there and
every setting of quantisation is that target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgepack.errors import UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets.cpu import features
from edgepack_targets.extras import require
from edgepack_targets.interface import (
    DEFAULT,
    MACHINES,
    Applied,
    Capability,
    Layer,
    NativeTensor,
    Placement,
    Quantization,
    Session,
    Target,
)
from edgepack_targets.onnx import ONNX

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ONNX_MOBILE"]


class _OnnxMobile:
    """See `interface.Target`."""

    name: Final = "onnx-mobile"
    extra: Final = "onnx"

    def version(self) -> str:
        """Return the version of onnxruntime."""
        return require(
            "onnxruntime", extra=self.extra, wanted_for="the runtime of target `onnx-mobile`"
        )

    def capability(self) -> Capability:
        """Return what the target can do on a host."""
        base = ONNX.capability()
        return Capability(
            sources=("onnx",),
            precisions=tuple(p for p in ("fp32", "fp16", "int8") if p in base.precisions),
            max_calibration=base.max_calibration,
            options=base.options,
            built_from=ONNX.name,
            archs=tuple(MACHINES),
            same_bytes=False,
        )

    def load(
        self,
        model_dir: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        place: Placement = DEFAULT,
    ) -> Session:
        """Load MODEL_DIR/model.ort, on a CPU that has what it was written for."""
        version = self.version()
        _require_cpu(manifest)
        from edgepack_targets import onnx_session

        return onnx_session.load(model_dir, manifest, version, threads, place, runtime=self.name)

    def describe(self, model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
        """Return the native inputs and outputs."""
        self.version()
        from edgepack_targets import onnx_session

        return onnx_session.describe(model_dir, self.name)

    def convert(
        self,
        source: Path,
        source_format: str,
        out_dir: Path,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        arch: str | None = None,
    ) -> Mapping[str, Any]:
        """Write SOURCE, a finished model of target `onnx`, for ARCH; see `onnx_mobile_host`."""
        self._require_host()
        from edgepack_targets import onnx_mobile_host

        return onnx_mobile_host.convert(
            source, source_format, out_dir, shapes, arch or self.capability().archs[0]
        )

    def quantize(
        self,
        model_dir: Path,
        out_dir: Path,
        how: Quantization,
        calibration: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Any]:
        """Refuse: a model in ORT format is finished."""
        raise _built_from_onnx("quantise")

    def diagnose(
        self, fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
    ) -> list[Layer]:
        """Refuse: layers are compared in the models it is built from."""
        raise _built_from_onnx("compare")

    def applied(self, model_dir: Path) -> Applied:
        """Count what is quantised."""
        self._require_host()
        from edgepack_targets import onnx_mobile_host

        return onnx_mobile_host.applied(model_dir)

    def annotate(self, model_dir: Path, facts: Mapping[str, Any]) -> None:
        """Refuse: `convert` keeps the metadata of the model it is given."""
        raise _built_from_onnx("annotate")

    def annotations(self, model: Path) -> dict[str, Any]:
        """Return what the metadata of the ORT format says."""
        self._require_host()
        from edgepack_targets import onnx_metadata

        return onnx_metadata.annotations_of_session(model)

    def _require_host(self) -> None:
        self.version()
        require("onnx", extra="packager", wanted_for="the converter of target `onnx-mobile`")


def _require_cpu(manifest: Manifest) -> None:
    """Refuse a CPU on which the layout in the file would give wrong answers, not an error."""
    missing = sorted(set(manifest.target.cpu_features) - features())
    if missing:
        raise UnsupportedError(
            f"{manifest.release} cannot run on this CPU",
            why=f"the file was written for one with {', '.join(missing)}",
            fix="build it for this machine, or for target `onnx`, which runs on all",
            reason="wrong_hardware",
        )


def _built_from_onnx(verb: str) -> UnsupportedError:
    return UnsupportedError(
        f"target `onnx-mobile` cannot {verb} a model",
        why="the ORT format is written once and has no way back",
        fix=f"{verb} the model of target `onnx` and convert that",
        reason="built_from_onnx",
    )


ONNX_MOBILE: Target = _OnnxMobile()
