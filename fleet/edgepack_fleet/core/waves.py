"""Waves as they are written, and how many devices they mean: cumulative, rising."""

import math
from collections.abc import Sequence

from edgepack.errors import UsageError
from edgepack_fleet.core.model import Wave

__all__ = ["parse_waves", "wave_sizes"]


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
