"""Where patches are made: files in a directory of its own, and workers. Offers nothing.

Each frame is made by a worker process of its own, several at a time, so that all cores work and
a crash of a library is an error message. Memory does not grow with the model.
"""

import hashlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from edgepack.errors import EdgepackError
from edgepack.patch import Codec, Frame, Header, apply_patch, write_frame, write_header
from edgepack_packager.adapters.worker import host_interpreter, run_step
from edgepack_packager.core.deltas import Pair, Window, hopeless, sample, windows
from edgepack_packager.workers.patches import PAYLOAD

__all__ = ["Made", "Progress", "Workshop"]

MAX_JOBS = 4
"""Workers at a time; each takes up to 300 MB."""
FRAME_S = 900.0
"""Seconds that one frame may take."""
Progress = Callable[[Pair, Codec, int, int], None]
"""Told of every frame: pair, codec, frames done, frames in all."""


@dataclass(frozen=True, slots=True)
class Made:
    """A patch on disk, and its bytes."""

    codec: Codec
    path: Path
    size: int


class Workshop:
    """A temporary directory and the workers that fill it; all end with the context.

    Args:
        progress: Told how it goes.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._temporary = tempfile.TemporaryDirectory(prefix="edgepack-patches-")
        self._directory = Path(self._temporary.name)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(min(MAX_JOBS, os.cpu_count() or 1), "patches")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._temporary.cleanup()

    def file(self, sha256: str) -> Path:
        """Return where the blob SHA256 is, or is to be put."""
        return self._directory / sha256

    def make(self, pair: Pair, codec: Codec) -> Made | None:
        """Return PAIR's patch of CODEC; None if a sample shows that it is not worth its time.

        Raises:
            WorkerError: a worker crashed, or took too long.
        """
        frames = windows(pair.base_size, pair.target_size)
        encode = partial(self._encode, codec, pair)
        probe = sample(frames)
        if probe is not None and hopeless(len(self._first(encode, probe)), probe):
            return None
        path = self._directory / f"{codec}.patch"
        with path.open("wb") as file:
            write_header(file, _header(pair, codec, len(frames)))
            for number, payload in enumerate(self._in_order(encode, frames)):
                write_frame(file, _frame(frames[number], payload), payload)
                self._progress(pair, codec, number + 1, len(frames))
        return Made(codec, path, path.stat().st_size)

    def prove(self, pair: Pair, made: Made) -> str:
        """Apply the patch MADE, compare the result, and return the patch's SHA-256 in hex.

        Raises:
            EdgepackError: it does not make PAIR's target (reason `patch_failed`).
        """
        result = self._directory / "result"
        with (
            made.path.open("rb") as patch,
            self.file(pair.base).open("rb") as base,
            result.open("wb") as out,
        ):
            apply_patch(patch, base, out)
        if _digest(result) != pair.target:
            raise _failed(f"the patch to {pair.path} does not make what it should")
        result.unlink()
        return _digest(made.path)

    def _first(self, encode: Callable[[Window], bytes], frame: Window) -> bytes:
        return next(iter(self._in_order(encode, [frame])))

    def _in_order(
        self, encode: Callable[[Window], bytes], frames: Iterable[Window]
    ) -> Iterator[bytes]:
        """Yield what ENCODE makes of FRAMES; only so many are begun that memory stays bounded."""
        waiting: deque[Future[bytes]] = deque()
        for frame in frames:
            waiting.append(self._pool.submit(encode, frame))
            if len(waiting) > MAX_JOBS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, codec: Codec, pair: Pair, frame: Window) -> bytes:
        files = {"base": str(self.file(pair.base)), "target": str(self.file(pair.target))}
        with tempfile.TemporaryDirectory(dir=self._directory) as name:
            run_step(
                host_interpreter(),
                "patches.frame",
                {"codec": codec} | files | asdict(frame),
                Path(name),
                timeout_s=FRAME_S,
                stopped=self._stopped,
            )
            return (Path(name) / PAYLOAD).read_bytes()


def _header(pair: Pair, codec: Codec, frames: int) -> Header:
    return Header(codec, pair.base, pair.base_size, pair.target, pair.target_size, frames)


def _frame(window: Window, payload: bytes) -> Frame:
    return Frame(window.base_offset, window.base_length, window.target_length, len(payload))


def _failed(why: str) -> EdgepackError:
    return EdgepackError(
        "no patches could be made",
        why=why,
        fix="publish with --delta-from none; devices will fetch whole files",
        reason="patch_failed",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
