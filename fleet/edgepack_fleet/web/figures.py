"""The fleet in numbers: counted by the database, however many devices there are. Reads only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack_fleet import store
from edgepack_fleet.adapters.tables import ChangeRow, DeviceRow, RolloutRow
from edgepack_fleet.core.happenings import UNDER_WAY, Happening, grouped, of_change
from edgepack_fleet.core.model import LIVE, UNSTARTED
from edgepack_fleet.web import conditions, schemas, views

__all__ = ["SHOWN", "Figures", "Share", "busy", "count", "failing", "offline", "recent", "rollouts"]

SHOWN = 5
"""Rows of one kind on the overview."""
RECENT = 10
READ = 200
"""Changes that are looked at for the recent ones."""
QUIET = frozenset({"edgepack.rollout.progress", "edgepack.device.bundle"})
"""Changes that say little by themselves."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many devices run one release; None: nothing yet."""

    release: str | None
    devices: int
    wanted: int
    """Of them, those that shall run another one."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Devices that are not revoked, in numbers."""

    devices: int
    online: int
    wanted: int
    """Devices that shall run a release."""
    on_target: int
    """Of them, those that run it."""
    failing: int
    """Devices whose newest update has failed."""
    releases: tuple[Share, ...]


def count(session: Session) -> Figures:
    """Return the fleet in numbers."""
    wishes = conditions.wishes(session)
    every, late = Counter(w.bundle for w in wishes), Counter(w.bundle for w in wishes if w.behind)
    online = sum(w.online for w in wishes)
    meant = sum(w.desired is not None for w in wishes)
    failed = session.scalar(
        select(func.count()).select_from(DeviceRow).where(conditions.attention())
    )
    shares = [Share(release, number, late[release]) for release, number in every.items()]
    shares.sort(key=lambda share: (-share.devices, share.release or ""))
    right = meant - late.total()
    return Figures(every.total(), online, meant, right, failed or 0, tuple(shares))


def failing(session: Session, limit: int = SHOWN) -> list[schemas.Device]:
    """Return the first devices whose newest update has failed."""
    rows = session.scalars(select(DeviceRow).where(conditions.attention()).order_by(DeviceRow.id))
    return views.devices(session, rows.fetchmany(limit))


def offline(session: Session, limit: int = SHOWN) -> list[schemas.Device]:
    """Return the devices that have been away longest."""
    away = select(DeviceRow).where(DeviceRow.revoked.is_(None), DeviceRow.online.is_(False))
    rows = session.scalars(away.order_by(DeviceRow.seen, DeviceRow.id).limit(limit))
    return views.devices(session, rows.all())


def busy(session: Session) -> list[RolloutRow]:
    """Return the rollouts that have not ended, newest first.

    One that was overtaken needs nothing, whatever its state.
    """
    unfinished = RolloutRow.state.in_((LIVE | UNSTARTED) - {"completed", "reverted"})
    newest = select(RolloutRow).where(unfinished).order_by(RolloutRow.number.desc())
    found = session.scalars(newest).all()
    over = store.overtakers(session, [row for row in found if row.state == "paused"])
    return [row for row in found if row.id not in over]


def rollouts(
    session: Session, first: Sequence[RolloutRow], limit: int = SHOWN
) -> Sequence[RolloutRow]:
    """Return those that are busy FIRST, then the newest others."""
    others = select(RolloutRow).where(RolloutRow.id.not_in([row.id for row in first]))
    newest = session.scalars(others.order_by(RolloutRow.number.desc()).limit(limit))
    return [*first, *newest][:limit]


def recent(session: Session, limit: int = RECENT) -> list[Happening]:
    """Return what has happened in the fleet last."""
    query = select(ChangeRow).where(ChangeRow.type.not_in(QUIET)).order_by(ChangeRow.id.desc())
    told = [
        (row.subject, of_change(row.time, row.type, row.subject, row.data))
        for row in session.scalars(query.limit(READ))
        if row.data.get("status") not in UNDER_WAY
    ]
    return grouped(told)[:limit]
