"""How many frames a hot device looks at: half as many, and again, until it cools. Pure.

Between the two temperatures nothing changes, so that a device does not swing to and fro.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["FLOOR_FPS", "HeatRule", "allowed", "deepest", "halvings"]

FLOOR_FPS = 1.0
"""Frames a second that a camera is never slowed down below; one that wants fewer keeps them."""
_ALL_FPS = 16.0
"""What a camera without `fps` is taken to have."""


@dataclass(frozen=True, slots=True)
class HeatRule:
    """From LIMIT_C degrees on a device is hot, below RESUME_C it is cool."""

    limit_c: float
    resume_c: float


def allowed(fps: float | None, steps: int) -> float | None:
    """Return the frames a second of a camera that wants FPS after STEPS halvings; None: any."""
    if steps == 0:
        return fps
    wanted = _ALL_FPS if fps is None else fps
    return max(min(wanted, FLOOR_FPS), wanted / float(1 << steps))


def deepest(wanted: Iterable[float | None]) -> int:
    """Return the halvings after which every camera of WANTED is at its floor."""
    fastest = max((_ALL_FPS if fps is None else fps for fps in wanted), default=FLOOR_FPS)
    return max(0, math.ceil(math.log2(fastest / FLOOR_FPS)))


def halvings(
    steps: int, most: int, rule: HeatRule, temperature_c: float | None, *, throttled: bool = False
) -> int:
    """Return the halvings from now on.

    Args:
        steps: The halvings until now.
        most: See `deepest`.
        rule: What is hot.
        temperature_c: None: nobody says; what is held is held.
        throttled: Whether the machine slows itself down, which is hot whatever it says.
    """
    if throttled or (temperature_c is not None and temperature_c >= rule.limit_c):
        return min(steps + 1, most)
    if temperature_c is not None and temperature_c < rule.resume_c:
        return max(0, min(steps, most) - 1)
    return min(steps, most)
