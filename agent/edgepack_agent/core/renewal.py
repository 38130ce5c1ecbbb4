"""When a certificate is renewed. Reads no clock and no file."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Life", "Phase", "phase"]

Phase = Literal["fresh", "due", "expired"]
DUE, SPREAD = 2 / 3, 1 / 10
"""Renewal begins at two thirds of a life; devices spread over the tenth after that."""


@dataclass(frozen=True, slots=True)
class Life:
    """How long a certificate is good, in Unix seconds."""

    begin: float
    end: float
    place: float = 0.0
    """Where this device is in the crowd, from 0 to 1: drawn once per certificate."""


def phase(life: Life, now: float) -> Phase:
    """Return what LIFE is at NOW. A clock that is behind makes nothing due."""
    if now >= life.end:
        return "expired"
    due = life.begin + (life.end - life.begin) * (DUE + SPREAD * life.place)
    return "due" if now >= due else "fresh"
