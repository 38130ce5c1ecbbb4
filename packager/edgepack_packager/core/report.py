"""What a build came to: the documents for scripts and the report beside a bundle. Pure.

`report_page` and `pareto` turn the same facts into what people read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgepack.errors import EdgepackError
from edgepack_packager.core.budget import Verdict
from edgepack_packager.core.crosscheck import Crossed, crossed_rows
from edgepack_packager.core.holdout import Paired
from edgepack_packager.core.layers import layer_rows
from edgepack_packager.core.paired import paired_facts
from edgepack_packager.core.proof import Measured, Parity
from edgepack_packager.core.recipe import Variant
from edgepack_targets.interface import Layer

__all__ = [
    "About",
    "BuildResult",
    "Built",
    "Failed",
    "Score",
    "Source",
    "best_of",
    "budget_notes",
    "build_document",
    "measured_elsewhere",
    "report_document",
]

FAR = 0.95
"""Cosine below which an answer is no longer about the same as the source's."""
SMALL_DROP = 0.01
"""What the best variant may lose where no limit was given."""


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
    layers: tuple[Layer, ...] | None = None
    """Where the accuracy goes, worst first; None: not looked at."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the precision was reached: fields of `Quantization`."""
    arch: tuple[str, ...] = ()
    """Machines that the bundle is for; empty: any."""
    verdict: Verdict | None = None
    """Where latency and memory were judged."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Versions of what made it."""

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
    crossed: tuple[Crossed, ...] = ()
    """The variants pair by pair, the least alike first."""
    steps_run: int = 0
    """Workers that were started."""
    steps_kept: int = 0
    """Steps that were taken from the cache instead."""


@dataclass(frozen=True, slots=True)
class Source:
    """What was built: its file, its format, its content."""

    name: str
    format: str
    sha256: str


@dataclass(frozen=True, slots=True)
class About:
    """What all variants of a build have in common, for its reports."""

    name: str = ""
    version: str = ""
    source: Source | None = None
    command: tuple[str, ...] = ()
    """The words that repeat the build, `edgepack` first."""
    compression: tuple[Mapping[str, Any], ...] = ()
    """What the compress steps say they did, with the control without a teacher."""
    tools: Mapping[str, str] = field(default_factory=dict)
    max_drop: float | None = None
    calibration: int | None = None
    """Number of samples."""


def build_document(result: BuildResult) -> dict[str, Any]:
    """Return RESULT in schema `edgepack.build/v1`; what was not measured is null."""
    return {
        "schema": "edgepack.build/v1",
        "steps": {"run": result.steps_run, "cached": result.steps_kept},
        "bundles": [_bundle(built) for built in result.built],
        "crosscheck": crossed_rows(result.crossed),
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


def measured_elsewhere(built: Built, machine: str) -> str:
    """Return a warning if BUILT is for other machines than MACHINE, where it was measured."""
    if not built.arch or machine in built.arch:
        return ""
    wanted = " or ".join(built.arch)
    return f"measured on {machine}, but made for {wanted}: latency and memory differ there"


def best_of(result: BuildResult, max_drop: float | None = None, machine: str = "") -> Built | None:
    """Return the fastest variant that loses no more than allowed; None if nothing was scored.

    Args:
        result: Of a build.
        max_drop: What was allowed; None: 0.01.
        machine: Where it was measured; what is made for others is left out.
    """
    allowed = SMALL_DROP if max_drop is None else max_drop
    good = [
        b
        for b in result.built
        if b.score
        and b.score.drop <= allowed + 1e-9
        and not (machine and measured_elsewhere(b, machine))
    ]
    return min(good, key=lambda b: (b.measured.p50, b.measured.model_bytes), default=None)


def budget_notes(result: BuildResult) -> list[str]:
    """Return where latency and memory were judged, once for all variants that share it."""
    found: dict[str, list[str]] = {}
    for built in result.built:
        if built.verdict and built.verdict.limited:
            same = "" if built.verdict.of(built.digest) else ", which is not this very file"
            found.setdefault(built.verdict.note + same, []).append(str(built.variant))
    return [f"{', '.join(names)}: {note}" for note, names in found.items()]


def report_document(
    built: Built, *, host: Mapping[str, Any], warnings: list[str], about: About | None = None
) -> dict[str, Any]:
    """Return the report beside a bundle: measurements, which are never inside it."""
    told = about or About()
    elsewhere = measured_elsewhere(built, str(host.get("machine", "")))
    return _bundle(built) | _proof(built) | {
        "schema": "edgepack.report/v1",
        "bundle": f"{told.name}@{told.version}",
        "source": asdict(told.source) if told.source else None,
        "settings": built.settings,
        "compression": list(told.compression),
        "effective": built.effective,
        "applied": built.applied,
        "budget": _budget(built),
        "measured_on": {
            "machine": str(host.get("machine", "")),
            "native": not elsewhere,
            "note": elsewhere,
        },
        "peak_rss_mb": built.measured.peak_rss_mb,
        "measured": built.extra,
        "host": dict(host),
        "tools": {**told.tools, **built.tools},
        "command": list(told.command),
        "warnings": [*warnings, *built.warnings, *([elsewhere] if elsewhere else [])],
    }  # fmt: skip


def _proof(built: Built) -> dict[str, Any]:
    score = built.score
    return {
        "metric": score.name if score else None,
        "samples": score.samples if score else None,
        "evaluation": {"samples": score.samples, "one_is": 1 / score.samples} if score else None,
        "paired": paired_facts(built.paired),
        "search": built.search or None,
        "fp32": {"latency_ms": built.fp32.p50, "model_bytes": built.fp32.model_bytes},
        "layers": None if built.layers is None else layer_rows(built.layers),
    }


def _budget(built: Built) -> dict[str, Any] | None:
    verdict = built.verdict
    if verdict is None or not verdict.limited:
        return None
    return {
        "judged_on": verdict.judged_on,
        "machine": verdict.machine,
        "same_bundle": verdict.of(built.digest),
        "latency_ms": verdict.latency_ms,
        "peak_rss_mb": verdict.peak_rss_mb,
        "note": verdict.note,
    }
