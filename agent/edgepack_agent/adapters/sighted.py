"""Tells the broker of a site when cameras begin and end to see something. Judges nothing.

For the supervisor's thread alone. What a runner says is kept as its newest word for each life of a
camera; what is new in it is told when the broker can take it. A runner that ends takes what its
cameras saw along.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgepack_agent.core.announcement import Names, sighting
from edgepack_agent.core.sightings import Seen, close
from edgepack_agent.core.tidings import Told, next_tiding

__all__ = ["Sighted"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Life:
    runner: object
    seen: Seen
    told: Told


class Sighted:
    """What the cameras of a device see.

    Args:
        names: Topics.
        publish: Takes topic and payload; False: not now.
        wall: Unix seconds.
    """

    def __init__(
        self,
        names: Names,
        publish: Callable[[str, str], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._names, self._publish, self._wall = names, publish, wall
        self._lives: dict[str, _Life] = {}
        self.objects: Mapping[str, Mapping[str, int]] = {}
        """By name of a camera, by label: how many are there. Never changed, only replaced."""
        self._newest: dict[str, str] = {}
        """By name of a camera: its newest life."""

    def heard(self, runner: object, event: Mapping[str, Any]) -> None:
        """Take a word of RUNNER; most are about something else."""
        if event["evt"] == "exited":
            for life in [each for each in self._lives.values() if each.runner is runner]:
                self._take(runner, close(life.seen, self._wall()))
        elif event["evt"] == "seen":
            try:
                self._take(runner, msgspec.convert(event.get("seen"), Seen))
            except msgspec.ValidationError as error:
                log.warning("a runner says nonsense of a camera: %s", error)

    def flush(self) -> None:
        """Tell what is new, until the broker takes no more."""
        for name, life in list(self._lives.items()):
            while tiding := next_tiding(life.told, life.seen):
                payload = sighting(self._names, life.seen, tiding)
                topic = self._names.camera(life.seen.camera, "events")
                if not self._publish(topic, json.dumps(payload)):
                    return
                life.told = tiding.told
            if life.seen.closed:
                del self._lives[name]

    def _take(self, runner: object, seen: Seen) -> None:
        known = self._lives.get(seen.life)
        if known is None:
            self._end_others(runner, seen)
            self._newest[seen.camera] = seen.life
            known = self._lives[seen.life] = _Life(runner, seen, Told())
        known.seen = seen
        if self._newest[seen.camera] == seen.life:
            self.objects = {**self.objects, seen.camera: seen.objects}

    def _end_others(self, runner: object, seen: Seen) -> None:
        """Close the life that the camera had with this runner: a lost word may have done so."""
        for life in self._lives.values():
            if life.runner is runner and life.seen.camera == seen.camera:
                life.seen = close(life.seen, seen.at)
