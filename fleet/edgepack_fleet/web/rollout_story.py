"""A rollout for people: its waves as a track, its gates in numbers, what an action would do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from edgepack_fleet import store
from edgepack_fleet.adapters.tables import RolloutRow
from edgepack_fleet.core import members as of
from edgepack_fleet.core.gates import Reading, gauge, waiver
from edgepack_fleet.core.model import FAILURES, TERMINAL, TO_COME, JobKind, Member, Rollout
from edgepack_fleet.core.progress import count_waves
from edgepack_fleet.core.rollout import current_wave
from edgepack_fleet.core.standing import Standing, standing
from edgepack_fleet.core.variants import Release, resolve

__all__ = ["Gauge", "Part", "Stage", "Track", "consequence", "track"]

MISSING = 8


@dataclass(frozen=True, slots=True)
class Gauge:
    """What one gate would say of a wave now."""

    reading: Reading
    missing: tuple[str, ...]
    """Some devices that have not been measured."""
    unmeasured: int
    waived: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """One wave."""

    label: str
    """As it was written: `1`, `10%`."""
    size: int
    done: int
    failed: int
    busy: int
    standing: Standing
    soaks_until: float | None
    """Unix seconds; None: it does not soak now."""
    gates: tuple[Gauge, ...]

    @property
    def pending(self) -> int:
        """Devices that were not reached yet."""
        return max(0, self.size - self.done - self.failed - self.busy)


@dataclass(frozen=True, slots=True)
class Part:
    """One device's part in it."""

    id: str
    status: str
    """Of its job; `QUEUED`: not reached yet, `SKIPPED`: no variant fits it."""
    reason: str
    wave: int | None
    state: str
    progress: float = 0.0
    way: JobKind = "install"

    @property
    def where(self) -> str:
        """How far it has come, in words; empty: its status says it all."""
        if self.way == "install":
            return self.state.replace("_", " ") if self.status == "IN_PROGRESS" else ""
        if self.status == "SUCCEEDED":
            return "back on the release before"
        return "could not go back" if self.status in FAILURES else "on its way back"


@dataclass(frozen=True, slots=True)
class Track:
    """A rollout from its first wave to its last."""

    rollout: Rollout
    stages: tuple[Stage, ...]
    parts: tuple[Part, ...]
    failures: tuple[tuple[str, tuple[str, ...]], ...]
    """Reasons and the devices that failed for each, the most frequent first."""


def track(session: Session, row: RolloutRow, now: float) -> Track:
    """Return where the rollout of ROW is at NOW (Unix seconds)."""
    meant = store.rollout_of(row)
    members = _members(session, row, now)
    # The waves tell how the release did on its devices, not how the way back did.
    back = any(m.kind == "revert" for m in members)
    tried = _members(session, row, now, installs=True) if back else members
    counting = of.eligible(tried, meant, now)
    current = current_wave(meant, counting, now)
    stages = tuple(
        _stage(meant, counting, index, current, now, back=back) for index in range(len(meant.waves))
    )
    shown = [m for m in members if m.wave is not None or row.state in TO_COME]
    progress = store.progress_of(session, row.id)
    release = store.release_of(row)
    parts = tuple(_part(m, release, progress.get(m.device.id, 0.0)) for m in shown)
    return Track(meant, stages, parts, _failures(shown))


def _members(
    session: Session, row: RolloutRow, now: float, *, installs: bool = False
) -> list[Member]:
    # What did not complete is shown as it was, even after a newer one has taken its devices on.
    everybody = row.state != "completed"
    return store.members_of(session, row, 0.0, now=now, everybody=everybody, installs=installs)


def consequence(action: str, found: Track, *, overtaken: bool) -> str:
    """Return what ACTION would do to the devices of the rollout FOUND, in plain words."""
    release = found.rollout.release
    busy = sum(stage.busy for stage in found.stages)
    done = sum(stage.done for stage in found.stages)
    failed = sum(stage.failed for stage in found.stages)
    left = sum(stage.pending for stage in found.stages)
    texts = {
        "start": f"{_devices(left)} get {release}, wave by wave.",
        "approve": f"It begins at once: {_devices(left)} get {release}, wave by wave.",
        "pause": f"No further device gets {release}. {_devices(busy)} under way may finish; "
        f"{_devices(done)} that have it keep it.",
        "resume": f"It goes on with {_devices(left)}. {_devices(failed)} that failed and every "
        "gate that does not hold now are accepted and count no more.",
        "revert": f"{_devices(done)} go back to the release they had before. Under way: "
        f"{_devices(busy)}, which are told to stop. A device out of reach goes back on its return.",
        "cancel": f"It ends for good. Under way: {_devices(busy)}, which are told to stop. "
        f"{_devices(done)} that have {release} keep it"
        + ("." if overtaken else "; to take it back, revert instead."),
    }
    if action == "cancel" and found.rollout.state == "reverting":
        return _left_half_way(found)
    return texts[action]


def _left_half_way(found: Track) -> str:
    ways = [part for part in found.parts if part.way == "revert"]
    back = sum(part.status == "SUCCEEDED" for part in ways)
    busy = sum(part.status not in TERMINAL for part in ways)
    return (
        f"It ends for good. On the way back: {_devices(busy)}, to be told to stop. "
        f"Back: {_devices(back)}. Whoever still has {found.rollout.release} keeps it."
    )


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


def _stage(
    rollout: Rollout,
    counting: Sequence[Member],
    index: int,
    current: int,
    now: float,
    *,
    back: bool,
) -> Stage:
    number = count_waves(rollout, counting, math.inf)[index]
    inside = [m for m in counting if m.wave == index]
    ended = of.ended(rollout, of.counted(rollout, counting, index))
    until = None if ended is None else ended + rollout.policy.soak_s
    stands = standing(
        rollout.state, passed=index < current, current=index == current, size=number.size,
        done=number.done, failed=number.failed, begun=len(inside), back=back,
    )  # fmt: skip
    return Stage(
        label=str(rollout.waves[index]),
        size=number.size,
        done=number.done,
        failed=number.failed,
        busy=sum(m.status == "IN_PROGRESS" for m in inside),
        standing=stands,
        soaks_until=until if until is not None and until > now and stands == "now" else None,
        gates=tuple(_gauges(rollout, counting, index, now)) if inside or stands == "now" else (),
    )


def _gauges(rollout: Rollout, counting: Sequence[Member], wave: int, now: float) -> list[Gauge]:
    inside = of.counted(rollout, counting, wave)
    found = []
    for reading in gauge(rollout, counting, wave, now):
        metric = reading.gate.metric
        away = [m.device.id for m in inside if metric != "install" and metric not in m.measured]
        shown = tuple(sorted(away)[:MISSING])
        found.append(Gauge(reading, shown, len(away), waiver(reading) in rollout.waived))
    return found


def _part(member: Member, release: Release, progress: float) -> Part:
    if member.wave is None:
        if member.target is not None:
            return Part(member.device.id, "QUEUED", "", None, "")
        reason = resolve(release, member.device.inventory).reason
        return Part(member.device.id, "SKIPPED", reason, None, "")
    return Part(
        member.device.id, member.status, member.reason, member.wave, member.state, progress,
        member.kind,
    )  # fmt: skip


def _failures(members: Sequence[Member]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: dict[str, list[str]] = {}
    for member in members:
        if member.status in FAILURES:
            found.setdefault(member.reason or member.status.lower(), []).append(member.device.id)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple((reason, tuple(sorted(devices))) for reason, devices in ordered)
