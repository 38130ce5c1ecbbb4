"""What a part of the runner adds to `/metrics`: plain numbers, written by nobody yet.

So that the parts need no library for what may never be asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Families", "Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its samples."""

    name: str
    """By Prometheus' rules: a base unit last; without `_total`, which counters get."""
    told: str
    samples: Mapping[Any, float]
    """A number by the values of `labels`, a tuple of texts."""
    labels: tuple[str, ...] = ()
    counter: bool = False
    """Whether it only rises; else it is a gauge."""


Families = Callable[[], Iterable[Family]]
"""Gives what there is to tell now; called for each scrape."""
