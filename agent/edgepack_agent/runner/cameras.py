"""Pictures that come by themselves: a stream, a device, a file, a test pattern. Judges none.

A thread of its own reads and decodes, and leaves the newest frame in a slot of one: what the model
has no time for is dropped, because a late answer about a door is no answer. A stream that ends or
fails is opened again after growing pauses.

    rtsp://USER:PASSWORD@HOST/PATH   v4l2:/dev/video0   file:CLIP.mp4   test:pattern
"""

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.redact import redact
from edgepack_agent.core.heat import allowed
from edgepack_agent.runner.families import Family
from edgepack_agent.runner.wire import Source, kind_of

__all__ = ["Camera", "camera_families"]

log = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
OPEN_S, READ_S = 10.0, 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
PATTERN_FPS, PATTERN_SIZE = 10.0, (240, 320)
MAX_SIDE = 8192


class _SourceError(Exception):
    """A source that gives no frames (now).

    Args:
        reason: Code for status and counts.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class Camera:
    """One source of frames; nothing is opened before `start`.

    Args:
        source: Where from, and how many a second at most.
        failed: Counts a reason.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: Source,
        failed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._failed, self._clock = failed, clock
        self._stop = threading.Event()
        self._fresh = threading.Condition()
        self._frame: Frame | None = None
        self._seen_at: float | None = None
        self._arrivals: list[float] = []
        self._counts: Counter[str] = Counter()
        self.reason = "starting"
        """Why there are no frames; empty: there are."""
        self.halvings = 0
        """How often the frames a second that are wanted are halved, because it is hot."""

    def start(self) -> None:
        """Begin to read."""
        self._stop = threading.Event()
        name = f"camera {self.source.name}"
        threading.Thread(target=self._live, args=(self._stop,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Read no more; a read under way ends by its own deadline."""
        self._stop.set()
        with self._fresh:
            self._frame = None
            self._fresh.notify_all()

    def next(self, within_s: float) -> Frame | None:
        """Return the newest frame that nobody has taken, (height, width, 3) of uint8, red first.

        None: none came within WITHIN_S seconds.
        """
        with self._fresh:
            self._fresh.wait_for(lambda: self._frame is not None or self._stop.is_set(), within_s)
            frame, self._frame = self._frame, None
        return frame

    def describe(self) -> dict[str, Any]:
        """Return how it is, without its address: that may hold a password."""
        now, at = self._clock(), self._seen_at
        recent = [each for each in self._arrivals if now - each <= 5]
        return {
            "kind": kind_of(self.source.source),
            "online": not self.reason,
            "reason": self.reason,
            "fps": round(len(recent) / 5, 1),
            "fps_limit": allowed(self.source.fps, self.halvings),
            "slowed_down": self.halvings > 0,
            "last_frame_age_s": None if at is None else round(now - at, 1),
            "frames": self._counts["frames"],
            "dropped": self._counts["dropped"],
            "skipped": self._counts["skipped"],
            "reconnects": self._counts["reconnects"],
        }

    def _live(self, stop: threading.Event) -> None:
        pause = FIRST_PAUSE_S
        while not stop.is_set():
            before = self._counts["frames"]
            reason = self._read(stop)
            if stop.is_set():
                return
            if reason != self.reason:
                log.warning("camera %s: %s", self.source.name, reason)
            self.reason = reason
            self._failed(f"camera_{reason}")
            if reason == "ended":
                return
            self._counts["reconnects"] += 1
            pause = FIRST_PAUSE_S if self._counts["frames"] > before else pause
            stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  no secret
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _read(self, stop: threading.Event) -> str:
        """Take frames until there are no more; return why."""
        try:
            with contextlib.closing(_frames(self.source.source, self._wanted)) as frames:
                for frame in frames:
                    if stop.is_set():
                        return ""
                    self._arrived(frame)
        except _SourceError as error:
            log.debug("camera %s: %s", self.source.name, redact(str(error)))
            return error.reason
        return "ended" if kind_of(self.source.source) == "file" else "closed"

    def _wanted(self) -> bool:
        """Say whether the frame that comes now is due, by the frames a second that are wanted."""
        now, fps = self._clock(), allowed(self.source.fps, self.halvings)
        due = fps is None or self._seen_at is None or now - self._seen_at >= 0.9 / fps
        if not due:
            self._counts["skipped"] += 1
        return due

    def _arrived(self, frame: Frame) -> None:
        now = self._clock()
        with self._fresh:
            self._counts["dropped"] += self._frame is not None
            self._frame = frame
            self._fresh.notify()
        self.reason = ""
        self._counts["frames"] += 1
        self._seen_at = now
        self._arrivals = [*(each for each in self._arrivals if now - each <= 5), now]


def camera_families(cameras: Iterable[Camera]) -> Iterator[Family]:
    """Yield what `/metrics` tells of CAMERAS."""
    told = {camera.source.name: camera.describe() for camera in cameras}

    def family(name: str, text: str, key: str, *, counter: bool = False) -> Family:
        samples = {(each,): float(how[key]) for each, how in told.items() if how[key] is not None}
        return Family(f"edgepack_camera_{name}", text, samples, ("camera",), counter=counter)

    yield family("online", "Whether frames come.", "online")
    yield family("fps", "Frames a second, of the last 5 s.", "fps")
    yield family("slowed_down", "Whether it is too hot for all frames.", "slowed_down")
    yield family("last_frame_age_seconds", "Since the last frame.", "last_frame_age_s")
    yield family("frames", "Frames that were decoded.", "frames", counter=True)
    yield family("reconnects", "Streams opened again.", "reconnects", counter=True)
    # Not looked at: the model had no time, or `fps` says that they are not wanted.
    why = {"busy": "dropped", "fps": "skipped"}
    dropped = {
        (name, reason): float(how[key]) for name, how in told.items() for reason, key in why.items()
    }
    yield Family(
        "edgepack_camera_dropped", "Not looked at.", dropped, ("camera", "reason"), counter=True
    )


def _frames(source: str, wanted: Callable[[], bool]) -> Generator[Frame]:
    """Yield the frames of SOURCE for which WANTED says yes.

    Raises:
        _SourceError: it cannot be opened, or fails.
    """
    kind, _, rest = source.partition(":")
    if kind == "test":
        yield from _pattern(wanted)
    elif kind == "v4l2":
        yield from _video(rest, wanted, format="v4l2")
    elif kind == "file":
        yield from _video(rest, wanted, paced=True)
    else:
        yield from _video(source, wanted, options={"rtsp_transport": "tcp"})


def _pattern(wanted: Callable[[], bool]) -> Generator[Frame]:
    """Yield a bright square that goes round on a gradient, for ever."""
    height, width = PATTERN_SIZE
    ramp = np.linspace(0, 96, width, dtype=np.uint8)
    ground = np.broadcast_to(ramp[None, :, None], (height, width, 3))
    for number in range(1 << 62):
        if wanted():
            frame = ground.copy()
            left, top = (number * 8) % (width - 48), (number * 5) % (height - 48)
            frame[top : top + 48, left : left + 48] = (250, 250, 250)
            yield frame
        time.sleep(1 / PATTERN_FPS)


def _video(
    place: str,
    wanted: Callable[[], bool],
    *,
    format: str | None = None,  # noqa: A002  what PyAV calls it
    options: dict[str, str] | None = None,
    paced: bool = False,
) -> Generator[Frame]:
    """Yield frames that FFmpeg decodes from PLACE; PACED: not faster than they were taken."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise _SourceError("no_decoder", 'pip install "edgepack[camera]"') from error
    av.logging.set_level(av.logging.PANIC)  # its own words would hold the address
    if not place.startswith(("rtsp:", "rtsps:")) and not Path(place).exists():
        raise _SourceError("missing", place)
    try:
        with av.open(place, format=format, options=options or {}, timeout=(OPEN_S, READ_S)) as box:
            if not box.streams.video:
                raise _SourceError("no_video")
            begun, first = time.monotonic(), None
            for picture in box.decode(box.streams.video[0]):
                if paced and picture.time is not None:
                    first = picture.time if first is None else first
                    time.sleep(max(0.0, begun + picture.time - first - time.monotonic()))
                if max(picture.width, picture.height) > MAX_SIDE:
                    raise _SourceError("too_large")
                if wanted():
                    yield picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except av.error.FFmpegError as error:
        raise _SourceError(_reason(error), str(error)) from error


def _reason(error: Exception) -> str:
    name = type(error).__name__
    known = {
        "HTTPUnauthorizedError": "unauthorized", "HTTPNotFoundError": "missing",
        "FileNotFoundError": "missing", "PermissionError": "forbidden",
        "InvalidDataError": "no_video", "ConnectionRefusedError": "unreachable",
        "ExitError": "timeout", "TimeoutError": "timeout", "EOFError": "closed",
    }  # fmt: skip
    return known.get(name, "failed")
