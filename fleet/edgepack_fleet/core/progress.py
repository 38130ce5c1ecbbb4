"""Waves in numbers, for people: how far each one has come."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgepack_fleet.core import members as of
from edgepack_fleet.core.model import Member, Rollout
from edgepack_fleet.core.waves import wave_sizes

__all__ = ["WaveCount", "count_waves"]


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


def count_waves(
    rollout: Rollout, members: Sequence[Member], now: float = math.inf
) -> tuple[WaveCount, ...]:
    """Return the numbers of every wave, each without the waves before it."""
    sizes = wave_sizes(rollout.waves, len(of.eligible(members, rollout, now)))
    counts = []
    for index, size in enumerate(sizes):
        inside = [m for m in members if m.wave == index and m.kind == "install"]
        own = size - (sizes[index - 1] if index else 0)
        done = sum(m.status == "SUCCEEDED" for m in inside)
        failed = sum(of.failed(m, rollout.policy) for m in inside)
        counts.append(WaveCount(max(own, done + failed), done, failed))
    return tuple(counts)
