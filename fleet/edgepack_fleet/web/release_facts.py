"""What is known of a published release: its files, its accuracy, where it runs. Reads only."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack.errors import EdgepackError
from edgepack.manifest import Manifest, read_manifest
from edgepack.oci import MANIFEST, read_oci_manifest
from edgepack.trust import TargetInfo
from edgepack_fleet.adapters.tables import DeviceRow, JobRow
from edgepack_fleet.core.measures import metrics
from edgepack_fleet.core.model import FAILURES
from edgepack_fleet.core.variants import Release

__all__ = ["Facts", "Outcome", "Part", "by_label", "facts", "outcome", "running"]

Read = Callable[[str], bytes]
"""Returns a blob by its SHA-256."""


@dataclass(frozen=True, slots=True)
class Part:
    """One variant of a release."""

    target: TargetInfo
    bundle: Manifest | None
    """None: its manifest is not here, or cannot be read."""
    download: int
    """Bytes of all its files."""
    model: int
    """Bytes of the model itself."""

    @property
    def label(self) -> str:
        """Runtime and precision: what is compared with what."""
        return f"{self.target.model.runtime} {self.target.model.precision}"


@dataclass(frozen=True, slots=True)
class Facts:
    """A release and its variants."""

    release: Release
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a release on the devices that got it."""

    tried: int
    succeeded: int
    reasons: Counter[str]
    """Of those that failed."""
    measured: dict[str, list[float]]
    """Values of every metric, one a device, in order."""


def facts(release: Release, read: Read) -> Facts:
    """Return what is known of RELEASE, whose files READ returns."""
    return Facts(release, tuple(_part(variant, read) for variant in release.variants))


def running(session: Session) -> dict[str, int]:
    """Return how many devices run each release."""
    query = select(DeviceRow.bundle, func.count()).where(DeviceRow.revoked.is_(None))
    counts = session.execute(query.group_by(DeviceRow.bundle)).all()
    return {bundle: number for bundle, number in counts if bundle}


def outcome(session: Session, release: str) -> Outcome:
    """Return what became of RELEASE on the devices that got a job for it."""
    query = select(JobRow).where(JobRow.release == release, JobRow.kind == "install")
    newest = {job.device_id: job for job in session.scalars(query.order_by(JobRow.created))}
    ended = [job for job in newest.values() if job.status in FAILURES | {"SUCCEEDED"}]
    measured: dict[str, list[float]] = {}
    for job in ended:
        for name, value in metrics(job.measured, job.detail).items():
            measured.setdefault(name, []).append(value)
    reasons = Counter(j.reason or j.status.lower() for j in ended if j.status in FAILURES)
    return Outcome(
        len(ended),
        len(ended) - reasons.total(),
        reasons,
        {name: sorted(values) for name, values in measured.items()},
    )


def by_label(sides: Sequence[Facts]) -> list[tuple[str, list[Part | None]]]:
    """Return the variants of SIDES side by side: those of one runtime and precision in a row."""
    labels = sorted({part.label for side in sides for part in side.parts})
    return [
        (label, [next((p for p in side.parts if p.label == label), None) for side in sides])
        for label in labels
    ]


def _part(variant: TargetInfo, read: Read) -> Part:
    try:
        image = read_oci_manifest(read(variant.sha256))
        layer = image.layer(MANIFEST)
        bundle = read_manifest(read(layer.sha256)) if layer else None
    except (EdgepackError, OSError):
        return Part(variant, None, 0, 0)
    model = sum(f.size for f in bundle.files if f.role == "model") if bundle else 0
    return Part(variant, bundle, sum(found.size for found in image.layers), model)
