"""A power cut at every moment of applying a patch: no blob is ever there that is not right."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashstates.cuts import Cut, cuts
from crashstates.disk import Disk, Image, materialise, read_image
from crashstates.trace import Op, read_ops, settled, strace
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.download import Downloads
from edgepack_agent.adapters.patching import Patching, PatchRules
from patch_rig import NEW, OLD, digest, make_patch, offers_of

pytestmark = pytest.mark.strace

PATCH = make_patch(OLD, NEW)
SCRIPT = """
import sys
from pathlib import Path
from edgepack_agent.adapters.download import Downloads
from edgepack_agent.adapters.patching import Patching, PatchRules
home, name, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
class Source:
    def blocks(self, sha256, size, start, count):
        data = (home / "fleet" / sha256).read_bytes()
        for index in range(start, start + count):
            yield data[index * 65536 : (index + 1) * 65536]
downloads = Downloads(home / "data" / "blobs", home / "data" / "parts")
offers = (home / "fleet" / "offers").read_bytes()
patching = Patching(downloads, home / "data" / "parts", lambda *_: offers, PatchRules())
patching.fetch(name, size, Source())
"""


class Source:
    """The fleet, after the cut. It has the patch and not the whole."""

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        assert sha256 == digest(PATCH), "the whole blob was asked for"
        for index in range(start, start + count):
            yield PATCH[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, list[Op]]:
    """Apply a patch while every operation on the disk is recorded."""
    home = tmp_path_factory.mktemp("patched")
    fleet, data = home / "fleet", home / "data"
    fleet.mkdir()
    (fleet / digest(PATCH)).write_bytes(PATCH)
    (fleet / "offers").write_bytes(offers_of(OLD, NEW, PATCH))
    downloads = Downloads(data / "blobs", data / "parts")
    downloads.put(digest(OLD), [OLD])
    before = read_image(data)
    command = [sys.executable, "-c", SCRIPT, str(home), digest(NEW), str(len(NEW))]
    process = subprocess.Popen([*strace(home / "record"), *command])
    assert process.wait(60) == 0
    settled(home / "record", process.pid)
    ops = read_ops(home / "record", data)
    disk = Disk(before)
    for op in ops:
        disk.apply(op)
    assert disk.seen() == read_image(data)
    assert downloads.path(digest(NEW)).read_bytes() == NEW
    return before, ops


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "posix"])
def test_a_blob_is_right_or_not_there(
    record: tuple[Image, list[Op]], tmp_path: Path, ordered: bool
) -> None:
    before, ops = record
    states: dict[int, Cut] = {}
    for cut in cuts(before, ops, ordered=ordered, seeds=1):
        states.setdefault(cut.mark, cut)
    assert len(states) > 20
    for number, cut in enumerate(states.values()):
        place = tmp_path / str(number)
        materialise(cut.image, place)
        for path in (place / "blobs").glob("[0-9a-f]*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, cut
        assert (place / "blobs" / digest(OLD)).read_bytes() == OLD, cut
    # And from a few of them, the next try ends well, without the whole blob.
    some = list(range(0, len(states), max(1, len(states) // 5)))
    for number in some:
        parts = tmp_path / str(number) / "parts"
        parts.mkdir(exist_ok=True)
        downloads = Downloads(tmp_path / str(number) / "blobs", parts)
        offers = offers_of(OLD, NEW, PATCH)
        patching = Patching(downloads, parts, lambda *_, o=offers: o, PatchRules())
        patching.fetch(digest(NEW), len(NEW), Source())
        assert downloads.path(digest(NEW)).read_bytes() == NEW
        downloads.keep_only({digest(OLD), digest(NEW)})
        assert not list(parts.iterdir())
