"""Annotated pictures of what cameras see: for each camera a ring of files, bounded twice.

The file's number, not the clock, says which is the oldest: a clock that was set back must not
make the newest go first. Draws when told to; decides nothing about what is worth a picture.
"""

import io
import re
import time
from pathlib import Path

from PIL import Image

from edgepack.durable import sweep, write_file
from edgepack_agent.core.announcement import plain
from edgepack_agent.runner.interface import Watched
from edgepack_agent.runner.wire import Snapshots
from edgepack_targets.pipeline.annotate import annotate

__all__ = ["Album"]

QUALITY, MAX_SIDE = 80, 1280
_NAME = re.compile(r"(\d+)-[A-Za-z0-9_-]+\.jpg")
_MODE = 0o640


class Album:
    """The pictures of one camera.

    Args:
        camera: Its name.
        snapshots: How many are kept, and where.
    """

    def __init__(self, camera: str, snapshots: Snapshots) -> None:
        self._directory = Path(snapshots.directory) / plain(camera)
        self._snapshots = snapshots

    def wants(self, label: str) -> bool:
        """Say whether LABEL is worth a picture."""
        labels = self._snapshots.labels
        return labels is None or label in labels

    def add(self, label: str, at: float, watched: Watched) -> str:
        """Keep what was WATCHED, with the answer drawn on it; return the file's name.

        Args:
            label: Why.
            at: Unix seconds.
            watched: The frame, as the model saw it, and the answer.

        Raises:
            OSError: it could not be written, or is larger than all may be together.
        """
        data = _drawn(watched)
        limit = int(self._snapshots.max_mb * 2**20)
        if len(data) > limit:
            raise OSError(f"a picture of {len(data)} bytes is above max_mb")
        there = self._files()
        number = there[-1][0] + 1 if there else 1
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
        name = f"{number:08d}-{when}-{plain(label)[:40]}.jpg"
        # Room is made first, so that the bounds hold at every moment.
        self._make_room([path for _, path in there], self._snapshots.keep - 1, limit - len(data))
        self._directory.mkdir(parents=True, exist_ok=True)
        sweep(self._directory)
        write_file(self._directory / name, data, _MODE)
        return name

    def _files(self) -> list[tuple[int, Path]]:
        """Return the pictures with their numbers, the oldest first."""
        if not self._directory.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self._directory.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)

    def _make_room(self, paths: list[Path], keep: int, limit: int) -> None:
        """Remove the oldest of PATHS until KEEP files of LIMIT bytes together are left."""
        sizes = [path.stat().st_size for path in paths]
        while paths and (len(paths) > keep or sum(sizes) > limit):
            paths.pop(0).unlink(missing_ok=True)
            sizes.pop(0)


def _drawn(watched: Watched) -> bytes:
    picture = annotate(Image.fromarray(watched.frame), watched.answer)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=QUALITY)
    return file.getvalue()
