"""Driver of measurements: lets devices measure a release, returns what they have measured.

A measurement is a request of the kind `measure`; what comes of it is kept by `measured`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.errors import UsageError
from edgepack.trust import TargetInfo
from edgepack_fleet import store
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.request_tables import MeasurementRow, RequestRow
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow, JobRow
from edgepack_fleet.asking import Requests
from edgepack_fleet.core.asking import OPEN
from edgepack_fleet.core.benchmarks import Candidate, choose
from edgepack_fleet.core.variants import Release, resolve
from edgepack_fleet.jobrows import OPEN as OPEN_JOBS
from edgepack_fleet.membership import inside

__all__ = ["Asked", "Benchmarks"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for a release, and of whom it was not, with the reason."""

    release: str
    requests: tuple[RequestRow, ...]
    left_out: tuple[tuple[str, str], ...]


class Benchmarks:
    """Measurements of releases on devices.

    Args:
        database: Where they are kept.
        requests: Asks devices.
        release: Returns a published release; raises `UsageError` if there is none.
    """

    def __init__(
        self, database: Database, requests: Requests, release: Callable[[str], Release]
    ) -> None:
        self._database, self._requests, self._release = database, requests, release

    def ask(
        self,
        release: str,
        *,
        group: str | None,
        device: str | None,
        each: int,
        within_s: float,
        by: str = "",
    ) -> Asked:
        """Let devices of GROUP, EACH of every class, or just DEVICE measure RELEASE.

        Raises:
            UsageError: there is no such release, group or device, or it fits none of them.
        """
        found = self._release(release)
        with self._database.write() as session:
            devices = _devices(session, group, device)
            candidates, left_out = _sorted_out(session, found, devices)
            asked = []
            for chosen in choose(candidates, each):
                variant = next(v for v in found.variants if v.path == chosen.variant)
                try:
                    row = self._requests.add(
                        session, chosen.device, "measure", _args(release, variant), within_s, by
                    )
                except UsageError as error:
                    left_out.append((chosen.device, error.what))
                    continue
                asked.append(row)
        if not asked:
            why = "; ".join(dict.fromkeys(reason for _, reason in left_out))
            raise UsageError(f"no device can measure {release}", why=why, reason="no_device_fits")
        return Asked(release, tuple(asked), tuple(left_out))

    def of(self, release: str) -> Sequence[MeasurementRow]:
        """Return what was measured of RELEASE, newest first.

        Raises:
            UsageError: there is no such release.
        """
        self._release(release)
        query = select(MeasurementRow).where(MeasurementRow.release == release)
        with self._database.read() as session:
            return session.scalars(query.order_by(MeasurementRow.id.desc())).all()


def _args(release: str, variant: TargetInfo) -> dict[str, Any]:
    target = {"path": variant.path, "sha256": variant.sha256, "size": variant.size}
    return {"release": release, "target": target | {"custom": dict(variant.custom)}}


def _devices(session: Session, group: str | None, device: str | None) -> Sequence[DeviceRow]:
    kind, name = (GroupRow, group) if device is None else (DeviceRow, device)
    if session.get(kind, name or "") is None:
        word = "group" if device is None else "device"
        fix = f"edgepack fleet {word}s list"
        raise UsageError(f"no {word} {name!r}", fix=fix, reason=f"unknown_{word}")
    of = inside(session, group or "") if device is None else DeviceRow.id == device
    return session.scalars(select(DeviceRow).where(of, DeviceRow.revoked.is_(None))).all()


def _sorted_out(
    session: Session, release: Release, devices: Sequence[DeviceRow]
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return those of DEVICES that can measure RELEASE, and the others with the reason."""
    updating = set(session.scalars(select(JobRow.device_id).where(JobRow.status.in_(OPEN_JOBS))))
    asked = select(RequestRow.device_id).where(
        RequestRow.kind == "measure", RequestRow.status.in_(OPEN)
    )
    measuring = set(session.scalars(asked))
    candidates, left_out = [], []
    for row in devices:
        device = store.device_of(row)
        found = resolve(release, device.inventory)
        if found.variant is None:
            left_out.append((row.id, found.reason))
        elif row.id in measuring:
            left_out.append((row.id, "it is measuring already"))
        else:
            path, busy = found.variant.path, row.id in updating
            candidates.append(Candidate(row.id, path, device.inventory, row.online, busy, row.seen))
    return candidates, left_out
