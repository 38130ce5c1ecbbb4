"""Reads what a benchmark measured on a device: `--profile`. Judges nothing."""

from pathlib import Path
from typing import Any, TypedDict

import msgspec

from edgepack.errors import UsageError
from edgepack_packager.core.budget import Profile
from edgepack_targets.measure import Benchmark, Latency

__all__ = ["read_profiles"]

LARGEST = 16 << 20


class _Report(TypedDict):
    """What of a `report.json` is needed here."""

    bundle: str
    digest: str
    target: str
    precision: str
    latency_ms: Latency
    peak_rss_mb: float
    host: dict[str, Any]


KINDS: dict[str, Any] = {"edgepack.benchmark/v1": Benchmark, "edgepack.report/v1": _Report}


def read_profiles(path: Path) -> tuple[Profile, ...]:
    """Return the profiles in PATH: one benchmark or report document, or a list of them.

    Raises:
        UsageError: missing, not JSON, or another kind of document.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large for a benchmark")
        said = msgspec.json.decode(path.read_bytes())
        return tuple(_profile(one) for one in (said if isinstance(said, list) else [said]))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{path} is no profile",
            why=reason,
            fix="on the device: edgepack-agent benchmark BUNDLE --json > profile.json",
            reason="bad_profile",
        ) from error


def _profile(said: Any) -> Profile:
    kind = said.get("schema") if isinstance(said, dict) else None
    if kind not in KINDS:
        raise ValueError(f"it is not of schema {' or '.join(KINDS)}")
    found = msgspec.convert(said, KINDS[kind])
    host = found["host"]
    if found["latency_ms"]["p50"] <= 0 or found["peak_rss_mb"] <= 0:
        raise ValueError("it holds a latency or memory that is not above 0")
    return Profile(
        bundle=found["bundle"],
        digest=found["digest"],
        target=found["target"],
        precision=found["precision"],
        latency_ms=found["latency_ms"]["p50"],
        peak_rss_mb=found["peak_rss_mb"],
        machine=", ".join(filter(None, (str(host.get("machine", "")), str(host.get("cpu", ""))))),
    )
