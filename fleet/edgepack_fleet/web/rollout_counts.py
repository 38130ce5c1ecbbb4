"""Rollouts in numbers for lists: counted by the database, however many devices there are.

The same numbers as `core.progress` finds member by member, but for devices in the penalty box,
which are few and count as pending here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Text, and_, cast, exists, func, select
from sqlalchemy.orm import Session

from edgepack.messages import Inventory
from edgepack_fleet import store
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core import members as of
from edgepack_fleet.core.model import TURNING_BACK, UNSTARTED, Device, Member, Rollout
from edgepack_fleet.core.overtaking import overtaken_said
from edgepack_fleet.core.progress import WaveCount
from edgepack_fleet.core.variants import resolve
from edgepack_fleet.core.waves import wave_sizes
from edgepack_fleet.membership import inside
from edgepack_fleet.web import views

__all__ = ["Brief", "briefs"]

NOBODY = Device("", "")
MEANT_FOR_ALL = UNSTARTED | TURNING_BACK | {"running", "paused", "cancelled"}
"""States in which its waves are of all that it was meant for, given or not."""


@dataclass(frozen=True, slots=True)
class Brief:
    """A rollout, as far as a list shows it."""

    id: str
    release: str
    group: str
    state: str
    reason: str
    plan: str
    waves: tuple[WaveCount, ...]
    overtaken: str
    """What is said of it if it is paused and a newer one goes before it; else empty."""


@dataclass(slots=True)
class _Counts:
    every: int = 0
    done: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    """By wave."""


def briefs(session: Session, rows: Sequence[RolloutRow]) -> list[Brief]:
    """Return the rollouts of ROWS in short."""
    serving = {row.id for row in views.serving(session).values()}
    ahead = store.overtakers(session, [row for row in rows if row.state == "paused"])
    said = {rollout: overtaken_said(first) for rollout, first in ahead.items()}
    return [_brief(session, row, said.get(row.id, ""), latest=row.id in serving) for row in rows]


def _brief(session: Session, row: RolloutRow, overtaken: str, *, latest: bool) -> Brief:
    meant = store.rollout_of(row)
    counts = _jobs(session, row, meant)
    if latest or row.state in MEANT_FOR_ALL:
        counts.every += _to_come(session, row)
    return Brief(
        row.id, row.release, row.group_id, row.state, row.reason, row.waves, _waves(meant, counts),
        overtaken,
    )  # fmt: skip


def _jobs(session: Session, row: RolloutRow, meant: Rollout) -> _Counts:
    """Count the devices that have been given it, by the newest job that gave it."""
    installs = JobRow.rollout_id == row.id, JobRow.kind == "install"
    newest = (
        select(JobRow.device_id, func.max(JobRow.attempt).label("attempt"))
        .where(*installs)
        .group_by(JobRow.device_id)
        .subquery()
    )
    columns = (JobRow.wave, JobRow.status, JobRow.reason, JobRow.attempt)
    here = and_(newest.c.device_id == JobRow.device_id, newest.c.attempt == JobRow.attempt)
    query = (
        select(*columns, func.count())
        .join(newest, here)
        .join(DeviceRow, DeviceRow.id == JobRow.device_id)
        .where(*installs, *_inside(session, row))
        .group_by(*columns)
    )
    counts = _Counts()
    for wave, status, reason, attempt, number in session.execute(query):
        facts: Any = {"status": status, "reason": reason, "attempt": attempt}
        member = Member(NOBODY, wave=wave, **facts)
        if of.eligible([member], meant, 0.0):
            counts.every += number
            counts.done[wave] += number * (status == "SUCCEEDED")
            counts.failed[wave] += number * of.failed(member, meant.policy)
    return counts


def _to_come(session: Session, row: RolloutRow) -> int:
    """Count the devices of the group that have no job of it and could run it."""
    parts = [cast(DeviceRow.inventory[name], Text) for name in ("arch", "cpu_features", "runtimes")]
    given = exists().where(JobRow.rollout_id == row.id, JobRow.device_id == DeviceRow.id)
    kinds = select(func.min(DeviceRow.id), func.count()).where(~given, *_inside(session, row))
    release, total = store.release_of(row), 0
    for example, number in session.execute(kinds.group_by(*parts)).all():
        inventory = msgspec.convert(session.get_one(DeviceRow, example).inventory, Inventory)
        total += number * (resolve(release, inventory).variant is not None)
    return total


def _inside(session: Session, row: RolloutRow) -> tuple[Any, ...]:
    return DeviceRow.revoked.is_(None), inside(session, row.group_id)


def _waves(meant: Rollout, counts: _Counts) -> tuple[WaveCount, ...]:
    sizes = wave_sizes(meant.waves, counts.every)
    found = []
    for index, size in enumerate(sizes):
        own = size - (sizes[index - 1] if index else 0)
        done, failed = counts.done[index], counts.failed[index]
        found.append(WaveCount(max(own, done + failed), done, failed))
    return tuple(found)
