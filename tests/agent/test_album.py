"""However many pictures are taken, as many are kept as was said: the newest, and whole ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgepack_agent.runner.album import MAX_SIDE, Album
from edgepack_agent.runner.interface import Watched
from edgepack_agent.runner.wire import Snapshots
from edgepack_targets.pipeline.answer import Classification, Guess


def watched(side: int, noise: int = 0) -> Watched:
    """Return a frame whose picture is larger the more NOISE is in it."""
    frame = np.random.default_rng(side).integers(0, noise + 1, (side, side, 3), np.uint8)
    return Watched(frame, Classification((Guess(0, "a", 0.9),)), {})


def kept(place: Path) -> list[Path]:
    return sorted((place / "door").iterdir())


@settings(max_examples=25, deadline=None)
@given(
    keep=st.integers(1, 4),
    sides=st.lists(st.sampled_from([8, 300, 500]), min_size=1, max_size=12),
    times=st.lists(st.floats(0, 4e9), min_size=12, max_size=12),
)
def test_the_newest_are_kept_within_both_bounds_whatever_the_clock_says(
    tmp_path_factory: pytest.TempPathFactory, keep: int, sides: list[int], times: list[float]
) -> None:
    place = tmp_path_factory.mktemp("album")
    snapshots = Snapshots(directory=str(place), keep=keep, max_mb=0.3)
    names = []
    for side, at in zip(sides, times, strict=False):
        # Each time as after a restart.
        names.append(Album("door", snapshots).add("a", at, watched(side, 255)))
        there = kept(place)
        assert [path.name for path in there] == names[-len(there) :]
        assert 1 <= len(there) <= keep
        assert sum(path.stat().st_size for path in there) <= 0.3 * 2**20
    assert len(set(names)) == len(names)


def test_a_picture_that_is_too_large_costs_no_other(tmp_path: Path) -> None:
    album = Album("door", Snapshots(directory=str(tmp_path), keep=3, max_mb=0.05))
    album.add("a", 0.0, watched(64))
    before = kept(tmp_path)
    with pytest.raises(OSError, match="max_mb"):
        album.add("a", 0.0, watched(900, 255))
    assert kept(tmp_path) == before


def test_names_are_safe_and_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "door").mkdir()
    for other in ("notes.txt", "holiday.jpg", ".part-old"):
        (tmp_path / "door" / other).write_text("x")
    album = Album("door", Snapshots(directory=str(tmp_path), keep=1, max_mb=1))
    for label in ("../../etc/passwd", "\n", "ö" * 300, "a/b"):
        album.add(label, 1e9, watched(16))
    found = [path.name for path in kept(tmp_path)]
    assert found == ["00000004-20010909T014640Z-a_b.jpg", "holiday.jpg", "notes.txt"]
    Album("..", Snapshots(directory=str(tmp_path), keep=1, max_mb=1)).add("a", 0, watched(16))
    assert {path.name for path in tmp_path.iterdir()} == {"door", "__"}


def test_a_large_frame_becomes_a_picture_of_moderate_size(tmp_path: Path) -> None:
    album = Album("door", Snapshots(directory=str(tmp_path), keep=1, max_mb=1))
    with Image.open(tmp_path / "door" / album.add("a", 0.0, watched(2000))) as picture:
        assert picture.size == (MAX_SIDE, MAX_SIDE)
