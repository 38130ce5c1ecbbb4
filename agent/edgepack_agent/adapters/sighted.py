"""Tells the broker of a site when cameras begin and end to see something. Judges nothing.

For the supervisor's thread alone. What a runner says is kept as its newest word for each life of a
camera; what is new in it is told when the broker can take it. A runner that ends takes what its
cameras saw along.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgepack_agent.core.announcement import Names, plain, sighting
from edgepack_agent.core.sightings import Seen, Sighting, close
from edgepack_agent.core.tidings import Told, next_tiding

__all__ = ["Sighted"]

MAX_PICTURE = 2 * 2**20
"""Bytes."""
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
        show: Takes topic and picture, or drops it.
        album: Directory of the pictures; None: they are not shown.
        wall: Unix seconds.
    """

    def __init__(
        self,
        names: Names,
        publish: Callable[[str, str], bool],
        show: Callable[[str, bytes], None] = lambda _topic, _picture: None,
        album: Path | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._names, self._publish, self._wall = names, publish, wall
        self._show, self._album = show, album
        self._shown: dict[str, str] = {}
        """By name of a camera: the picture that was shown last."""
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
                if tiding.kind == "new":
                    self._picture(life.seen, tiding.sighting)
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

    def _picture(self, seen: Seen, sighting: Sighting) -> None:
        """Show the picture of SIGHTING, if there is one that was not shown yet."""
        name = sighting.snapshot
        if self._album is None or not name or self._shown.get(seen.camera) == name:
            return
        self._shown[seen.camera] = name
        try:
            picture = _read(self._album / plain(seen.camera) / Path(name).name)
        except OSError as error:
            log.info("a picture of %s is gone: %s", seen.camera, error)
            return
        if len(picture) <= MAX_PICTURE:
            self._show(self._names.camera(seen.camera, "snapshot"), picture)

    def _end_others(self, runner: object, seen: Seen) -> None:
        """Close the life that the camera had with this runner: a lost word may have done so."""
        for life in self._lives.values():
            if life.runner is runner and life.seen.camera == seen.camera:
                life.seen = close(life.seen, seen.at)


def _read(path: Path) -> bytes:
    """Return what is in PATH and no more than can be shown; a link is not followed.

    The runner names the file, and must not choose what is read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read(MAX_PICTURE + 1)
