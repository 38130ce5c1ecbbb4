"""What a rollout would do: who would get which variant in which wave, and why others would not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack_fleet.core import members as of
from edgepack_fleet.core.model import Member, Rollout
from edgepack_fleet.core.waves import wave_sizes

__all__ = ["Part", "rehearse"]


@dataclass(frozen=True, slots=True)
class Part:
    """One device's part in a rollout that has not begun."""

    device: str
    target: str | None
    wave: int | None
    """Index; None: it would not get it as things are."""
    why: str
    """Why not, or what it depends on; empty: it would get it."""


def rehearse(
    rollout: Rollout, members: Sequence[Member], misfits: Mapping[str, str], now: float
) -> tuple[Part, ...]:
    """Return the part of every member, by device id, if all goes well and NOW stays.

    Args:
        rollout: The rollout.
        members: Its group, without jobs.
        misfits: Device id to why no variant fits.
        now: Unix seconds.
    """
    counting = sorted(of.eligible(members, rollout, now), key=_turn)
    sizes = wave_sizes(rollout.waves, len(counting))
    wave_of = {m.device.id: _wave(place, sizes) for place, m in enumerate(counting)}
    return tuple(
        _part(rollout, m, wave_of.get(m.device.id), misfits, now)
        for m in sorted(members, key=lambda m: m.device.id)
    )


def _turn(member: Member) -> tuple[bool, str]:
    return not member.device.online, member.device.id


def _wave(place: int, sizes: Sequence[int]) -> int | None:
    return next((index for index, size in enumerate(sizes) if place < size), None)


def _part(
    rollout: Rollout, member: Member, wave: int | None, misfits: Mapping[str, str], now: float
) -> Part:
    name, policy = member.device.id, rollout.policy
    if member.target is None:
        return Part(name, None, None, misfits.get(name, "no variant fits it"))
    if member.taken_by:
        return Part(name, member.target, None, f"{member.taken_by} goes before it")
    if member.boxed_until > now:
        return Part(name, member.target, None, "it has failed too often lately")
    if member.override and policy.overrides == "accept":
        return Part(name, member.target, None, "it keeps what a person installed")
    if wave is None:
        return Part(name, member.target, None, "the waves end before it")
    if not member.device.online:
        return Part(name, member.target, wave, "it is offline and gets it when it returns")
    return Part(name, member.target, wave, "it runs this release already" if member.has_it else "")
