"""The layer itself: what it records is what happened, and it catches who forgets to fsync."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashstates.cuts import Cut, cuts
from crashstates.disk import Disk, Entry, Image, materialise, read_image
from crashstates.trace import Op, TraceError, read_ops, settled, strace

pytestmark = pytest.mark.strace


def recorded(tree: Path, code: str, *args: object) -> list[Op]:
    """Run CODE, whose working directory is TREE, and return what it did to TREE."""
    record = tree.with_name("record")
    words = [*strace(record), sys.executable, "-c", code, str(tree), *map(str, args)]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(words, env=env)
    assert process.wait(60) == 0
    settled(record, process.pid)
    return read_ops(record, tree)


def plain(image: Image) -> Image:
    """Return IMAGE without what SQLite writes by mapping it, which it never reads back."""
    return {path: entry for path, entry in image.items() if not path.endswith("-shm")}


ANYTHING = """
import os, random, shutil, sqlite3, sys
home, dice = sys.argv[1], random.Random(int(sys.argv[2]))
def some(): return f"{home}/{dice.choice('ab')}/{dice.choice('xyz')}"
for d in "ab": os.makedirs(f"{home}/{d}", exist_ok=True)
base = sqlite3.connect(f"{home}/base.db")
base.execute("pragma journal_mode = wal"); base.execute("pragma synchronous = full")
base.execute("create table t (n)")
for n in range(60):
    deed = dice.randrange(9)
    try:
        if deed < 3:
            with open(some(), dice.choice(["wb", "r+b", "xb"])) as f:
                f.seek(dice.randrange(3000)); f.write(dice.randbytes(dice.randrange(2000)))
                if dice.random() < .5: f.flush(); os.fsync(f.fileno())
        elif deed == 3: os.replace(some(), some())
        elif deed == 4: os.unlink(some())
        elif deed == 5: os.link(some(), some())
        elif deed == 6: os.symlink("../a/x", some())
        elif deed == 7: os.truncate(some(), dice.randrange(4000))
        else:
            with base: base.execute("insert into t values (?)", (n,))
    except OSError: pass
fd = os.open(f"{home}/a/x", os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, 5000)
os.makedirs(f"{home}/c/d"); open(f"{home}/c/d/e", "w").write("e")
os.rename(f"{home}/c", f"{home}/e")
os.makedirs(f"{home}/g/h"); shutil.rmtree(f"{home}/g")
os._exit(0)
"""


@pytest.mark.parametrize("seed", range(3))
def test_the_model_of_the_disk_holds_what_the_real_one_holds(tmp_path: Path, seed: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    ops = recorded(tree, ANYTHING, seed)
    disk = Disk({})
    for op in ops:
        disk.apply(op)
    assert plain(disk.seen()) == plain(read_image(tree))
    assert plain(disk.crash(3)) == plain(disk.seen()), "all may be kept"
    copy = tmp_path / "copy"
    materialise(disk.seen(), copy)
    assert read_image(copy) == disk.seen()


WRITE_FILE = """
import sys, pathlib, os
from edgepack import durable
{change}
for version in (b"one " * 700, b"two " * 900, b"three " * 800):
    durable.write_file(pathlib.Path(sys.argv[1]) / "file", version)
"""
VERSIONS = [b"one " * 700, b"two " * 900, b"three " * 800]
FORGETS = {
    "the data": "os.fsync = lambda fd: None",
    "the names": "durable.sync_directory = lambda directory: None",
}


def left(ops: list[Op], before: Image | None = None, seeds: int = 6) -> Iterator[Cut]:
    for ordered in (True, False):
        yield from cuts(before or {}, ops, ordered=ordered, seeds=seeds)


def test_a_file_written_right_is_one_version_or_the_other(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    ops = recorded(tree, WRITE_FILE.format(change=""))
    seen = set()
    for cut in left(ops, seeds=20):
        content = cut.image.get("file", Entry(b"")).content or b""
        assert content in {b"", *VERSIONS}, cut
        assert cut.moment < len(ops) or content == VERSIONS[-1], cut
        seen.add(content)
    assert seen == {b"", *VERSIONS}, "every moment was met"


def test_it_is_noticed_when_the_data_are_not_synced(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    ops = recorded(tree, WRITE_FILE.format(change=FORGETS["the data"]))
    found = {cut.image["file"].content for cut in left(ops) if "file" in cut.image}
    assert b"" in found, "an empty file under the final name"
    assert any(each not in VERSIONS for each in found if each), "a torn one too"


def test_it_is_noticed_when_the_name_is_not_synced(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    ops = recorded(tree, WRITE_FILE.format(change=FORGETS["the names"]))
    at_the_end = [cut.image.get("file") for cut in left(ops) if cut.moment == len(ops)]
    assert any(each is None or each.content != VERSIONS[-1] for each in at_the_end)


ROWS = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1] + "/base.db", isolation_level=None)
base.execute("pragma journal_mode = wal")
base.execute("pragma synchronous = " + sys.argv[2])
base.execute("create table t (n)")
for n in range(12):
    base.execute("insert into t values (?)", (n,))
import os; os._exit(0)
"""


def rows(image: Image, place: Path) -> int:
    """Return how many rows a database that was left behind holds; -1 if it is broken."""
    import sqlite3

    materialise(image, place)
    base = sqlite3.connect(place / "base.db")
    try:
        found = [n for (n,) in base.execute("select n from t order by n")]
        return len(found) if found == list(range(len(found))) else -1
    except sqlite3.Error:
        return -1
    finally:
        base.close()


def counts(tmp_path: Path, synchronous: str) -> list[int]:
    """Return the rows that are left of twelve acknowledged ones after every kind of cut."""
    tree = tmp_path / "tree"
    tree.mkdir()
    ops = recorded(tree, ROWS, synchronous)
    ends = [cut for cut in left(ops, seeds=12) if cut.moment == len(ops)]
    return [rows(cut.image, tmp_path / f"left-{n}") for n, cut in enumerate(ends)]


def test_sqlite_with_full_sync_loses_no_row(tmp_path: Path) -> None:
    assert set(counts(tmp_path, "full")) == {12}


def test_it_is_noticed_when_sqlite_does_not_sync(tmp_path: Path) -> None:
    assert min(counts(tmp_path, "off")) < 12


def test_a_lost_moment_can_be_made_again() -> None:
    ops = [Op("create", "f"), Op("write", "f", data=random.Random(1).randbytes(5000))]
    first = [(str(c), c.image) for c in cuts({}, ops, ordered=True, seeds=5)]
    assert first == [(str(c), c.image) for c in cuts({}, ops, ordered=True, seeds=5)]
    assert len({name for name, _ in first}) == len(first)


def test_tearing_keeps_whole_sectors(tmp_path: Path) -> None:
    ops = [Op("create", "f"), Op("write", "f", data=bytes(range(1, 201)) * 20)]
    whole = ops[1].data
    torn = set()
    for cut in cuts({}, ops, ordered=True, seeds=60):
        content = cut.image["f"].content if "f" in cut.image else b""
        assert content is not None
        for start in range(0, len(content), 512):
            sector = content[start : start + 512]
            assert sector in (whole[start : start + len(sector)], bytes(len(sector))), cut
        torn.add(content)
    assert len(torn) > 10


def test_what_is_not_understood_is_an_error(tmp_path: Path) -> None:
    record = tmp_path / "record"
    place = "".join(f"\\x{byte:02x}" for byte in b"/tree/f")
    record.write_text(f"7 sendfile(3<{place}>, 4<{place}>, NULL, 9) = 9\n")
    with pytest.raises(TraceError, match="sendfile"):
        read_ops(record, Path("/tree"))
    record.write_text("rubbish\n")
    with pytest.raises(TraceError, match="not a line"):
        read_ops(record, Path("/tree"))
