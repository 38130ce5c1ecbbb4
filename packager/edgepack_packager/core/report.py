"""What a build came to: the documents for scripts and the report beside a bundle. Pure."""

from dataclasses import asdict, dataclass, field
from typing import Any

from edgepack.errors import EdgepackError
from edgepack_packager.core.holdout import Paired
from edgepack_packager.core.layers import layer_rows
from edgepack_packager.core.proof import Measured, Parity
from edgepack_packager.core.recipe import Variant

__all__ = ["BuildResult", "Built", "Failed", "Score", "build_document", "report_document"]

FAR = 0.95
"""Cosine below which an answer is no longer about the same as the source's."""


@dataclass(frozen=True, slots=True)
class Score:
    """The metric of the source and of this artefact on the same samples."""

    name: str
    reference: float
    this: float
    samples: int

    @property
    def drop(self) -> float:
        """How much was lost; negative: gained."""
        return self.reference - self.this


@dataclass(frozen=True, slots=True)
class Built:
    """One bundle that was written."""

    variant: Variant
    path: str
    digest: str
    size_bytes: int
    parity: Parity
    measured: Measured
    fp32: Measured
    score: Score | None
    effective: dict[str, Any] = field(default_factory=dict)
    applied: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    paired: Paired | None = None
    search: dict[str, Any] = field(default_factory=dict)
    """Every attempt of `--auto`; empty without it."""

    @property
    def warnings(self) -> list[str]:
        """What got worse than fp32, or may have and was not measured: said in red."""
        told = []
        if self.score is None and self.parity.cosine < FAR:
            told.append(
                f"far from the source on some sample (cosine {self.parity.cosine:.3f}): "
                "measure what it costs with --evaluate"
            )
        if self.measured.p50 > 1.05 * self.fp32.p50 and self.variant.precision != "fp32":
            told.append(f"slower than fp32 here ({self.measured.p50 / self.fp32.p50:.2f} x)")
        if self.measured.model_bytes > self.fp32.model_bytes:
            told.append("bigger than fp32")
        return told


@dataclass(frozen=True, slots=True)
class Failed:
    """One variant that was not built, and why."""

    variant: Variant
    error: EdgepackError


@dataclass(frozen=True, slots=True)
class BuildResult:
    """All variants of one build."""

    built: tuple[Built, ...]
    failed: tuple[Failed, ...]
    steps_run: int = 0
    """Workers that were started."""
    steps_kept: int = 0
    """Steps that were taken from the cache instead."""


def build_document(result: BuildResult) -> dict[str, Any]:
    """Return RESULT in schema `edgepack.build/v1`; what was not measured is null."""
    return {
        "schema": "edgepack.build/v1",
        "steps": {"run": result.steps_run, "cached": result.steps_kept},
        "bundles": [_bundle(built) for built in result.built],
        "failed": [
            {
                "target": failed.variant.target,
                "precision": failed.variant.precision,
                "code": failed.error.exit_code,
                "reason": failed.error.reason,
                "message": failed.error.what,
                "layers": layer_rows(getattr(failed.error, "layers", ())),
            }
            for failed in result.failed
        ],
    }


def _bundle(built: Built) -> dict[str, Any]:
    score = built.score
    return {
        "path": built.path,
        "target": built.variant.target,
        "precision": built.variant.precision,
        "size_bytes": built.size_bytes,
        "model_bytes": built.measured.model_bytes,
        "digest": built.digest,
        "metrics": {
            "reference": score.reference if score else None,
            "this": score.this if score else None,
            "drop": score.drop if score else None,
        },
        "parity": asdict(built.parity),
        "latency_ms": {"p50": built.measured.p50, "p95": built.measured.p95},
    }


def _paired(pair: Paired | None) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {"lost": pair.lost, "gained": pair.gained, "interval95": list(pair.interval)}


def report_document(built: Built, *, host: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Return the report beside a bundle: measurements, which are never inside it."""
    return _bundle(built) | {
        "schema": "edgepack.report/v1",
        "metric": built.score.name if built.score else None,
        "samples": built.score.samples if built.score else None,
        "paired": _paired(built.paired),
        "search": built.search or None,
        "fp32": {"latency_ms": built.fp32.p50, "model_bytes": built.fp32.model_bytes},
        "effective": built.effective,
        "applied": built.applied,
        "peak_rss_mb": built.measured.peak_rss_mb,
        "measured": built.extra,
        "host": host,
        "warnings": [*warnings, *built.warnings],
    }
