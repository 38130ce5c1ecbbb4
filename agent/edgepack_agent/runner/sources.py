"""Pictures that no one asks about: folders and cameras, and the log of what was seen in them.

Each file of a folder is shown to the model once, in the order of names, and again if it changes; of
a camera the newest frame, as often as there is time. What cannot be used is counted and skipped;
nothing here ends the watching but being told to.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from edgepack_agent.runner.cameras import Camera
from edgepack_agent.runner.framing import framed
from edgepack_agent.runner.interface import Watched
from edgepack_agent.runner.observing import Observer
from edgepack_agent.runner.protocol import RequestError
from edgepack_agent.runner.statistics import Statistics
from edgepack_agent.runner.wire import Source, kind_of

__all__ = ["Feed", "Look", "Results", "Watch"]

log = logging.getLogger(__name__)

Look = Callable[[bytes], dict[str, Any]]
"""Shows an encoded image to the model and returns what is to be written down."""
Watch = Callable[[Any], Watched]
"""Shows a frame to the model."""
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
_MAX_FILE = 64 * 2**20
_MAX_LOG = 2**20
_NEXT_S = 0.5
_REPEAT_S = 1.0
"""How often the same answer of a camera is written down."""


class Results:
    """A JSON-lines file with one predecessor (`.1`), bounded in size.

    Args:
        path: None writes nothing.
        limit: Bytes after which the file becomes the predecessor.
    """

    def __init__(self, path: Path | None, limit: int = _MAX_LOG) -> None:
        self._path, self._limit = path, limit
        self._lock = threading.Lock()

    def append(self, row: dict[str, Any]) -> None:
        """Write ROW as the last line.

        Raises:
            OSError: it could not be written.
        """
        if self._path is None:
            return
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
                full = file.tell() >= self._limit
            if full:
                self._path.replace(self._path.with_name(self._path.name + ".1"))


class Feed:
    """The sources of one runner: threads that exist while they are on."""

    def __init__(self, look: Look, watch: Watch, results: Results, statistics: Statistics) -> None:
        self._look, self._see = look, watch
        self._results, self._statistics = results, statistics
        self._folders: list[_Folder] = []
        self.cameras: list[Camera] = []
        self.halvings = 0
        """How often the frames a second of cameras are halved."""
        self.latest: dict[str, Watched] = {}
        """By name of a camera: what was seen last."""
        self._written: dict[str, tuple[tuple[str, ...], float]] = {}
        """By name of a camera: the labels that were written down last, and when."""
        self.observer: Callable[[str], Observer] | None = None
        """Makes who says what the camera of a name sees; None: nobody does."""
        self._troubles: dict[str, str] = {}
        self._stop = threading.Event()
        self._on = False
        self._threads: list[threading.Thread] = []

    def replace(self, sources: Iterable[Source]) -> None:
        """Feed from SOURCES instead; one that stays the same goes on where it was."""
        on = self._on
        self.stop()
        folders = {folder.source: folder for folder in self._folders}
        self._folders, self.cameras, self.latest = [], [], {}
        for source in sources:
            if kind_of(source.source) == "dir":
                self._folders.append(folders.get(source) or _Folder(source))
            else:
                self.cameras.append(Camera(source, self._statistics.failed))
        self.slow_down(self.halvings)
        if on:
            self.start()

    def slow_down(self, halvings: int) -> None:
        """Look at 1 / 2 ** HALVINGS of the frames of cameras, those that come later, too."""
        self.halvings = halvings
        for camera in self.cameras:
            camera.halvings = halvings

    def folders(self) -> dict[str, dict[str, Any]]:
        """Return how the folders are, by name."""
        return {folder.source.name: folder.describe() for folder in self._folders}

    def start(self) -> None:
        """Begin to look."""
        self.stop()
        self._on, self._stop = True, threading.Event()
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for folder in self._folders:
            self._spawn(self._watch, folder)
        for camera in self.cameras:
            camera.start()
            self._spawn(self._follow, camera)

    def _spawn(self, target: Callable[..., None], source: "_Folder | Camera") -> None:
        name = f"source {source.source.name}"
        args = (source, self._stop)
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """Stop looking; an image that is being looked at is finished."""
        self._on = False
        self._stop.set()
        for camera in self.cameras:
            camera.stop()

    def ended(self, within_s: float) -> None:
        """Wait, after `stop`, until the last image is counted and written down."""
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _watch(self, folder: "_Folder", stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                for path in folder.fresh():
                    if stop.is_set():
                        return
                    folder.mark(path)
                    self._show(folder, path)
            except OSError as error:
                folder.reason = "forbidden" if isinstance(error, PermissionError) else "missing"
                self._count("source_missing", folder, error)
            stop.wait(folder.source.every_s)

    def _follow(self, camera: Camera, stop: threading.Event) -> None:
        observer = self.observer(camera.source.name) if self.observer else None
        while not stop.is_set():
            frame = camera.next(_NEXT_S)
            if frame is not None and not stop.is_set():
                self._guarded(camera, partial(self._seen, camera, frame, observer))
            elif observer:
                observer.idle(time.time(), online=not camera.reason)
        if observer:
            observer.close(time.time())

    def _seen(self, camera: Camera, frame: Any, observer: Observer | None) -> None:
        start, source = time.time(), camera.source
        watched = self._see(framed(frame, source.roi, source.mask))
        self.latest[source.name] = watched
        if observer:
            self._observed(observer, camera, start, watched)
        labels = tuple(label for label, _ in watched.answer.top())
        before, at = self._written.get(source.name, (None, 0.0))
        # A line for every frame would wear a flash card out to say the same thing again.
        if labels != before or start - at >= _REPEAT_S:
            self._written[source.name] = labels, start
            self._results.append({"ts": round(start, 3), "source": source.name} | watched.said)

    def _observed(self, observer: Observer, camera: Camera, at: float, watched: Watched) -> None:
        try:
            observer.looked(at, watched)
        except OSError as error:
            self._count("snapshot_io", camera, error)

    def _show(self, folder: "_Folder", path: Path) -> None:
        start, before = time.time(), folder.pictures

        def show() -> None:
            found = self._look(_read(path))
            folder.pictures += 1
            self._results.append(
                {"ts": round(start, 3), "source": folder.source.name, "file": path.name} | found
            )

        self._guarded(folder, show)
        folder.failed += folder.pictures == before

    def _guarded(self, folder: "_Folder | Camera", show: Callable[[], None]) -> None:
        """Do SHOW; whatever is wrong with one picture does not end the watching."""
        try:
            show()
            self._troubles.pop(folder.source.name, None)
        except RequestError as error:
            self._count(error.reason, folder, error)
        except OSError as error:
            self._count("source_io", folder, error)
        except Exception as error:  # noqa: BLE001 - one image must not end the watching
            self._count("runtime_error", folder, error)

    def _count(self, reason: str, folder: "_Folder | Camera", error: Exception) -> None:
        self._statistics.failed(reason)
        # Said once, not for every frame; the statistics count them all.
        if self._troubles.get(folder.source.name) != reason:
            self._troubles[folder.source.name] = reason
            log.warning("source %s: %s: %s", folder.source.name, reason, error)


class _Folder:
    """What of a folder has been shown: name to (size, time of change)."""

    def __init__(self, source: Source) -> None:
        self.source = source
        kind, _, path = source.source.partition(":")
        self._path = Path(path if kind == "dir" else source.source)
        self._seen: dict[str, tuple[int, int]] = {}
        self.reason = "starting"
        """Why it cannot be read; empty: it can."""
        self.pictures = self.failed = 0
        """What the model was shown, and what could not be used."""

    def describe(self) -> dict[str, Any]:
        """Return how it is, with the names that cameras have for it."""
        return {
            "kind": "dir",
            "online": not self.reason,
            "reason": self.reason,
            "pictures": self.pictures,
            "failed": self.failed,
        }

    def fresh(self) -> list[Path]:
        """Return the files not yet marked, in the order of names; forget those that are gone."""
        now = {
            entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in os.scandir(self._path)
            if entry.is_file() and Path(entry.name).suffix.lower() in _SUFFIXES
        }
        self.reason = ""
        self._seen = {name: mark for name, mark in self._seen.items() if name in now}
        return [self._path / name for name in sorted(now) if self._seen.get(name) != now[name]]

    def mark(self, path: Path) -> None:
        """Take PATH for shown as it is now."""
        stat = path.stat()
        self._seen[path.name] = (stat.st_size, stat.st_mtime_ns)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise RequestError(413, f"{path.name} has more than {_MAX_FILE} bytes", "too_large")
    return data
