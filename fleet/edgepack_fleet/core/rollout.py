"""What a rollout does next: `decide` is pure, so that it can be replayed and shown.

A wave counts devices that were *reached*: an offline device that never took its job up is in
neither numerator nor denominator, and gets the release when it returns, in whatever wave runs
then. Waves are cumulative and are sized from the group as it is now.

Saves and sends nothing: the service carries the actions out.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgepack.errors import UsageError
from edgepack_fleet.core.model import FAILURES, SERVING, TERMINAL, Member, Rollout, Wave

__all__ = [
    "Action",
    "Assign",
    "Complete",
    "Decision",
    "Pause",
    "TimeOut",
    "WaveCount",
    "Withdraw",
    "count_waves",
    "decide",
    "parse_waves",
    "wave_sizes",
]


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a device its job."""

    device: str
    target: str
    wave: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take back the job of a device that went away before it took the job up."""

    device: str


@dataclass(frozen=True, slots=True)
class TimeOut:
    """End the job of a device that took it up and went silent."""

    device: str
    reason: str = "timed_out"


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop assigning until somebody resumes."""

    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    """Everybody who can be reached has finished."""

    reason: str


Action = Assign | Withdraw | TimeOut | Pause | Complete


@dataclass(frozen=True, slots=True)
class Decision:
    """The actions of one tick, and one sentence on where the rollout stands."""

    actions: tuple[Action, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class WaveCount:
    """One wave in numbers; what is neither done nor failed is pending."""

    size: int
    done: int
    failed: int

    @property
    def pending(self) -> int:
        """Devices that have not finished or were not reached yet."""
        return max(0, self.size - self.done - self.failed)


def parse_waves(text: str) -> tuple[Wave, ...]:
    """Return the waves of TEXT such as `1,10%,100%`.

    Raises:
        UsageError: a wave is not a positive number or a percentage up to 100.
    """
    waves = tuple(_parse_wave(part.strip()) for part in text.split(","))
    shares = [wave.amount for wave in waves if wave.percent]
    if shares != sorted(shares):
        raise _bad_waves(text, "the percentages go down; waves are cumulative")
    return waves


def _parse_wave(text: str) -> Wave:
    digits = text.removesuffix("%")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 7 and int(digits) > 0):
        raise _bad_waves(text, "a wave is a number of devices or a percentage, and not 0")
    wave = Wave(int(digits), text.endswith("%"))
    if wave.percent and wave.amount > 100:
        raise _bad_waves(text, "no group has more than 100%")
    return wave


def _bad_waves(text: str, why: str) -> UsageError:
    return UsageError(
        f"not a list of waves: {text!r}", why=why, fix="write e.g. --waves 1,10%,100%"
    )


def wave_sizes(waves: Sequence[Wave], total: int) -> tuple[int, ...]:
    """Return how many of TOTAL devices have the release after each wave: cumulative, rising."""
    sizes: list[int] = []
    for wave in waves:
        size = math.ceil(total * wave.amount / 100) if wave.percent else wave.amount
        sizes.append(max([min(size, total), *sizes]))
    return tuple(sizes)


def decide(rollout: Rollout, members: Sequence[Member], now: float) -> Decision:
    """Return what ROLLOUT does next for MEMBERS, its group, at NOW (Unix seconds).

    Silence is judged in every state; nothing else happens unless the rollout serves.
    """
    late = tuple(TimeOut(m.device.id) for m in members if _silent(m, rollout, now))
    silent = {action.device for action in late}
    members = [_timed_out(m) if m.device.id in silent else m for m in members]
    if rollout.state not in SERVING:
        return Decision(late, "")
    if why := _halt(rollout, members):
        return Decision((*late, Pause(why)), why)
    return _proceed(rollout, members, now, late)


def count_waves(rollout: Rollout, members: Sequence[Member]) -> tuple[WaveCount, ...]:
    """Return the numbers of every wave, each without the waves before it."""
    sizes = wave_sizes(rollout.waves, len(_eligible(members)))
    counts = []
    for index, size in enumerate(sizes):
        inside = [m for m in members if m.wave == index]
        own = size - (sizes[index - 1] if index else 0)
        done = sum(m.status == "SUCCEEDED" for m in inside)
        failed = sum(m.status in FAILURES for m in inside)
        counts.append(WaveCount(max(own, done + failed), done, failed))
    return tuple(counts)


def _silent(member: Member, rollout: Rollout, now: float) -> bool:
    return member.status == "IN_PROGRESS" and now - member.since > rollout.policy.timeout_s


def _timed_out(member: Member) -> Member:
    return replace(member, status="TIMED_OUT", reason="timed_out")


def _eligible(members: Sequence[Member]) -> list[Member]:
    """Return the members that have, or could have, a variant of the release."""
    return [m for m in members if m.wave is not None or m.target is not None]


def _halt(rollout: Rollout, members: Sequence[Member]) -> str:
    """Return why the rollout must pause; empty if it need not."""
    policy = rollout.policy
    counted = [m for m in members if m.device.id not in rollout.forgiven and _reached(m)]
    finished = [m for m in counted if m.status in TERMINAL - {"CANCELED"}]
    failed = [m for m in finished if m.status in FAILURES]
    if not failed:
        return ""
    said = f"{len(failed)} of {len(finished)} finished devices failed ({_reasons(failed)})"
    if len(failed) >= policy.max_failures:
        return f"Paused: {said}; the limit is {policy.max_failures}."
    share = 100 * len(failed) / len(finished)
    if len(finished) >= policy.min_sample and share > policy.max_failure_percent:
        return f"Paused: {said}, {share:.0f}%; the limit is {policy.max_failure_percent:g}%."
    for index in range(len(rollout.waves)):
        inside = [m for m in counted if m.wave == index]
        if inside and all(m.status in FAILURES for m in inside):
            return f"Paused: no device of wave {index + 1} succeeded ({_reasons(inside)})."
    return ""


def _reasons(failed: Sequence[Member]) -> str:
    counts = Counter(m.reason or m.status.lower() for m in failed)
    return ", ".join(
        f"{count} x {reason}" if len(counts) > 1 else reason
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _reached(member: Member) -> bool:
    return member.wave is not None and member.status != "QUEUED"


def _gone(member: Member, rollout: Rollout, now: float) -> bool:
    """Return whether a device left with its job untouched, for longer than we wait."""
    return (
        member.wave is not None
        and member.status == "QUEUED"
        and not member.device.online
        and now - max(member.device.seen, member.since) > rollout.policy.patience_s
    )


def _proceed(
    rollout: Rollout, members: Sequence[Member], now: float, late: tuple[TimeOut, ...]
) -> Decision:
    gone = tuple(Withdraw(m.device.id) for m in members if _gone(m, rollout, now))
    away = {action.device for action in gone}
    members = [replace(m, wave=None) if m.device.id in away else m for m in members]
    eligible = _eligible(members)
    sizes = wave_sizes(rollout.waves, len(eligible))
    occupied = sum(m.wave is not None for m in eligible)
    current = _current_wave(rollout, eligible, sizes, now)
    waiting = sorted((m for m in eligible if m.wave is None), key=lambda m: m.device.id)
    online = [m for m in waiting if m.device.online]
    room = max(0, sizes[current] - occupied)
    assigned = tuple(_assign(m, current) for m in online[:room])
    last = current == len(sizes) - 1
    reason = _stand(eligible, sizes, current, now, rollout)
    if last and not assigned and _all_finished(eligible) and rollout.state == "running":
        return Decision((*late, *gone, Complete(reason)), reason)
    return Decision((*late, *gone, *assigned), reason)


def _assign(member: Member, wave: int) -> Assign:
    assert member.target is not None, "only eligible devices are assigned"
    return Assign(member.device.id, member.target, wave)


def _all_finished(members: Sequence[Member]) -> bool:
    assigned = [m for m in members if m.wave is not None]
    return bool(assigned) and all(m.status in TERMINAL for m in assigned)


def _current_wave(
    rollout: Rollout, members: Sequence[Member], sizes: Sequence[int], now: float
) -> int:
    """Return the index of the first wave that is not done; the last one if all are."""
    occupied = sum(m.wave is not None for m in members)
    for index, size in enumerate(sizes[:-1]):
        inside = [m for m in members if m.wave == index]
        if occupied < size or not _wave_done(rollout, inside, now):
            return index
    return len(sizes) - 1


def _wave_done(rollout: Rollout, inside: Sequence[Member], now: float) -> bool:
    """Return whether a wave that is full has finished and soaked."""
    counted = [m for m in inside if m.device.id not in rollout.forgiven]
    if not counted:
        return True
    reached = [m for m in counted if _reached(m)]
    finished = [m for m in reached if m.status in TERMINAL]
    if not reached or len(finished) < math.ceil(rollout.policy.quorum * len(reached)):
        return False
    return now >= max(m.since for m in finished) + rollout.policy.soak_s


def _stand(
    members: Sequence[Member], sizes: Sequence[int], current: int, now: float, rollout: Rollout
) -> str:
    """Return one sentence on where the rollout stands."""
    done = sum(m.status == "SUCCEEDED" for m in members)
    head = f"{done} of {len(members)} devices run {rollout.release}"
    if not members:
        return f"Waiting: no device of group {rollout.group} can run {rollout.release} yet."
    busy = sum(m.wave is not None and m.status not in TERMINAL for m in members)
    unreached = sum(m.wave is None for m in members)
    if busy:
        return f"Wave {current + 1} of {len(sizes)}: {head}, {busy} under way."
    if unreached and not any(m.wave is None and m.device.online for m in members):
        return f"{head}; {_returning(unreached)}."
    if not unreached:
        return f"{head}."
    if current < len(sizes) - 1 and _soaking(members, current, now, rollout):
        return f"Wave {current + 1} of {len(sizes)} soaks: {head}."
    return f"Wave {current + 1} of {len(sizes)}: {head}."


def _returning(count: int) -> str:
    if count == 1:
        return "1 has not been reached yet and gets it when it returns"
    return f"{count} have not been reached yet and get it when they return"


def _soaking(members: Sequence[Member], current: int, now: float, rollout: Rollout) -> bool:
    ends = [m.since for m in members if m.wave == current and m.status in TERMINAL]
    return bool(ends) and now < max(ends) + rollout.policy.soak_s
