"""Blobs that are made of what is here and a patch: fewer bytes, and never a wrong one."""

import json
import lzma
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from backports import zstd

from delta_rig import model
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.offers import Offer, Offers, offers_name, read_offers, write_offers
from edgepack.patch import (
    CODECS,
    FRAME_BASE,
    FRAME_TARGET,
    LZMA_DICTIONARY,
    RECORD,
    WINDOW_LOG,
    Codec,
)
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters import patching
from edgepack_agent.adapters.download import Downloads
from edgepack_agent.adapters.patching import Patching, PatchRules
from edgepack_agent.core.delta import MAX_GOES, Report, choose
from patch_rig import NEW, OLD, SIZE, digest, make_patch, offer_of


def _cheap(codec: Codec, old: bytes, new: bytes) -> bytes:
    """Return a payload for NEW, of which the first half is that of OLD, in no time."""
    if codec == "zstd":
        options = {
            zstd.CompressionParameter.compression_level: 1,
            zstd.CompressionParameter.enable_long_distance_matching: 1,
            zstd.CompressionParameter.window_log: WINDOW_LOG,
        }
        prefix = zstd.ZstdDict(old, is_raw=True).as_prefix
        return zstd.compress(new, options=options, zstd_dict=prefix)
    half = len(new) // 2
    plain = RECORD.pack(0, half, half) + bytes(half) + new[half:]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": LZMA_DICTIONARY}]
    return lzma.compress(plain, format=lzma.FORMAT_RAW, filters=filters)


def large() -> tuple[bytes, bytes, bytes]:
    """Return a base and a target of 4 MiB, and a patch of a bit more than 2 MiB."""
    half = 2 * 2**20
    old = random.Random(7).randbytes(2 * half)
    new = old[:half] + random.Random(8).randbytes(half)
    return old, new, make_patch(old, new, payload=_cheap("bsdiff", old, new))


@dataclass
class Fleet:
    """What a fleet has. Counts every byte that leaves it."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: Callable[[], None] = lambda: None

    def put(self, content: bytes) -> str:
        self.blobs[digest(content)] = content
        return digest(content)

    def offer(self, old: bytes, new: bytes, patch: bytes, codec: str = "bsdiff") -> Offer:
        offer = offer_of(old, patch, codec)
        self.put(patch)
        name = offers_name(digest(new))
        known = Offers(target=digest(new), target_size=len(new))
        if name in self.files:
            known = read_offers(self.files[name], digest(new))
        offers = (*known.offers, offer)
        self.files[name] = write_offers(
            Offers(target=digest(new), target_size=len(new), offers=offers)
        )
        return offer

    def ask(self, name: str, limit: int) -> bytes | None:
        self.asked.append(name)
        return self.files.get(name)

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        if sha256 not in self.blobs:
            raise IntegrityError("none", reason="blob_missing")
        for index in range(start, start + count):
            self.cut()
            block = self.blobs[sha256][index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            self.sent[sha256] = self.sent.get(sha256, 0) + len(block)
            yield block


@dataclass
class Box:
    """A device's store, with the old model in it."""

    home: Path
    fleet: Fleet
    rules: PatchRules = field(default_factory=PatchRules)
    metered: bool = False
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.downloads = Downloads(self.home / "blobs", self.home / "parts")

    @property
    def patching(self) -> Patching:
        return Patching(
            self.downloads, self.home / "parts", self.fleet.ask, self.rules,
            whole=self.whole, tell=self.reports.append,
        )  # fmt: skip

    def whole(self) -> None:
        if self.metered:
            raise EdgepackError("costs money", reason="metered")

    def hold(self, content: bytes) -> None:
        self.downloads.put(digest(content), [content])

    def fetch(self, content: bytes, **more: object) -> None:
        self.fleet.put(content)
        self.patching.fetch(digest(content), len(content), self.fleet, **more)  # type: ignore[arg-type]
        assert self.downloads.path(digest(content)).read_bytes() == content

    def refusal(self, content: bytes) -> str:
        with pytest.raises(EdgepackError) as caught:
            self.fetch(content)
        assert not self.downloads.path(digest(content)).exists()
        return caught.value.reason

    @property
    def litter(self) -> list[str]:
        return [path.name for path in (self.home / "parts").iterdir()]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    box = Box(tmp_path, Fleet())
    box.hold(OLD)
    return box


@pytest.mark.parametrize("codec", ["zstd", "bsdiff"])
def test_a_patch_is_fetched_instead_of_the_blob(box: Box, codec: Codec) -> None:
    patch = make_patch(OLD, NEW, codec)
    box.fleet.offer(OLD, NEW, patch, codec)
    counted: list[int] = []
    box.fetch(NEW, progress=counted.append)
    assert box.fleet.sent == {digest(patch): len(patch)}
    assert sum(counted) == len(patch)
    assert box.reports == [Report(digest(NEW), codec, len(patch), len(NEW))]
    assert not box.litter
    assert not box.downloads.has(digest(patch), len(patch))
    box.fetch(NEW)
    assert sum(box.fleet.sent.values()) == len(patch), "what is here was fetched again"


def test_the_smallest_patch_from_what_is_here_is_taken(box: Box) -> None:
    other = model(3, size=SIZE)
    box.fleet.offer(other, NEW, make_patch(other, NEW))
    large, small = make_patch(OLD, NEW, "zstd"), make_patch(OLD, NEW)
    assert len(small) < len(large)
    box.fleet.offer(OLD, NEW, large, "zstd")
    box.fleet.offer(OLD, NEW, small)
    box.fleet.offer(OLD, NEW, b"tiny", "codec-of-tomorrow")
    box.fetch(NEW)
    assert box.fleet.sent.keys() == {digest(small)}


def test_without_a_base_or_an_offer_it_comes_whole(tmp_path: Path, box: Box) -> None:
    box.fetch(NEW)
    assert box.fleet.sent == {digest(NEW): len(NEW)}
    assert not box.reports
    empty = Box(tmp_path / "empty", Fleet())
    empty.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    empty.fetch(NEW)
    assert not empty.fleet.asked, "a device without any base asked for patches"


def test_what_is_there_in_part_is_completed_if_that_costs_less(box: Box) -> None:
    old, new, patch = large()
    box.hold(old)
    box.fleet.offer(old, new, patch)
    box.fleet.put(new)
    whole = Downloads(box.home / "blobs", box.home / "parts")
    blocks = iter(range(3 * 16 + 1))

    def cut() -> None:
        if next(blocks, None) is None:
            raise UnreachableError("cut")

    box.fleet.cut = cut
    with pytest.raises(UnreachableError):
        whole.fetch(digest(new), len(new), box.fleet)
    box.fleet.cut = lambda: None
    box.fetch(new)
    assert digest(patch) not in box.fleet.sent


@cache
def bad_patches() -> dict[str, tuple[bytes, str]]:
    """Return patches that do not make NEW, by what is wrong, and how that is called."""
    good = make_patch(OLD, NEW)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    other = model(801, size=SIZE)
    wrong = bytearray(make_patch(OLD, other))
    wrong[53:93] = good[53:93]  # it says that it makes NEW
    bomb = make_patch(OLD, NEW, "zstd", payload=_bomb())
    return {
        "cut": (good[:-5], "bad_patch"),
        "flipped": (bytes(flipped), "bad_patch"),
        "other": (bytes(wrong), "patch_wrong_result"),
        "noise": (random.Random(1).randbytes(5000), "bad_patch"),
        "bomb": (bomb, "bad_patch"),
    }


def _bomb() -> bytes:
    return zstd.compress(bytes(200 * 2**20))


@pytest.mark.parametrize("wrong", ["cut", "flipped", "other", "noise", "bomb"])
def test_a_bad_patch_is_thrown_away_and_the_blob_comes_whole(box: Box, wrong: str) -> None:
    patch, reason = bad_patches()[wrong]
    box.fleet.offer(OLD, NEW, patch)
    box.fetch(NEW)
    (report,) = box.reports
    assert report.reason in {reason, "patch_wrong_result"}, report
    assert report.why
    assert box.fleet.sent[digest(NEW)] == len(NEW)
    assert not box.litter
    assert not box.downloads.path(digest(patch)).exists()


def test_a_patch_that_did_not_work_is_not_fetched_again(box: Box) -> None:
    patch, _ = bad_patches()["other"]
    box.fleet.offer(OLD, NEW, patch)
    box.metered = True
    assert box.refusal(NEW) == "metered"
    assert box.refusal(NEW) == "metered"
    assert box.fleet.sent == {digest(patch): len(patch)}
    box.metered = False
    box.fetch(NEW)
    assert box.fleet.sent == {digest(patch): len(patch), digest(NEW): len(NEW)}


def test_a_good_patch_is_found_behind_a_bad_one(box: Box) -> None:
    bad, _ = bad_patches()["cut"]
    good = make_patch(OLD, NEW, "zstd")
    box.fleet.offer(OLD, NEW, bad)
    box.fleet.offer(OLD, NEW, good, "zstd")
    box.fetch(NEW)
    assert [r.reason for r in box.reports] == ["bad_patch", ""]
    assert digest(NEW) not in box.fleet.sent


def test_patches_never_cost_more_than_the_blob(box: Box) -> None:
    """Many wrong patches, each almost as large as the blob: one is tried, then it comes whole."""
    for seed in range(5):
        noise = random.Random(seed).randbytes(len(NEW) - 1000 * (seed + 1))
        box.fleet.offer(OLD, NEW, noise)
    box.fetch(NEW)
    assert sum(box.fleet.sent.values()) < 2 * len(NEW)
    assert len(box.reports) == 1


@pytest.mark.parametrize(
    ("fallback", "metered", "patch", "ends"),
    [
        ("full", False, "good", "patched"),
        ("full", False, "bad", "whole"),
        ("full", False, "none", "whole"),
        ("full", True, "good", "patched"),
        ("full", True, "bad", "metered"),
        ("full", True, "none", "metered"),
        ("never", False, "good", "patched"),
        ("never", False, "bad", "delta_failed"),
        ("never", False, "none", "whole"),
        ("never", True, "good", "patched"),
        ("never", True, "bad", "delta_failed"),
        ("never", True, "none", "metered"),
    ],
)
def test_the_whole_blob_is_never_fetched_where_that_is_not_allowed(
    box: Box, fallback: str, metered: bool, patch: str, ends: str
) -> None:
    box.rules, box.metered = PatchRules(fallback=fallback), metered  # type: ignore[arg-type]
    if patch != "none":
        box.fleet.offer(OLD, NEW, make_patch(OLD, NEW if patch == "good" else model(9, size=SIZE)))
    if ends in {"patched", "whole"}:
        box.fetch(NEW)
    else:
        assert box.refusal(NEW) == ends
    assert (digest(NEW) in box.fleet.sent) == (ends == "whole")


def test_small_blobs_come_whole_even_over_a_metered_link(box: Box) -> None:
    box.metered = True
    box.fetch(b"a small one" * 100)
    assert not box.fleet.asked


def test_patches_can_be_turned_off(box: Box) -> None:
    box.rules = PatchRules(use=False)
    box.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    box.fetch(NEW)
    assert box.fleet.sent.keys() == {digest(NEW)}


def test_a_link_that_becomes_metered_ends_a_whole_download(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patching, "WATCH_S", 0.0)
    blocks = iter([0, 1])

    def cut() -> None:
        box.metered = next(blocks, None) is None

    box.fleet.cut = cut
    _, new, _ = large()
    assert box.refusal(new) == "metered"
    assert 0 < box.fleet.sent[digest(new)] < len(new)


def test_a_damaged_base_is_noticed_before_the_patch_costs_anything(box: Box) -> None:
    patch = make_patch(OLD, NEW)
    box.fleet.offer(OLD, NEW, patch)
    path = box.downloads.path(digest(OLD))
    path.write_bytes(bytes([OLD[0] ^ 1]) + OLD[1:])
    box.fetch(NEW)
    assert [r.reason for r in box.reports] == ["damaged_base"]
    assert digest(patch) not in box.fleet.sent


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"schema":"edgepack.offers/v1"}'])
def test_offers_that_cannot_be_read_are_none(box: Box, garbage: bytes) -> None:
    box.fleet.files[offers_name(digest(NEW))] = garbage
    box.fetch(NEW)
    assert box.fleet.sent.keys() == {digest(NEW)}


def test_a_patch_that_the_fleet_lost_is_no_reason_to_fail(box: Box) -> None:
    offer = box.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    del box.fleet.blobs[offer.patch]
    box.fetch(NEW)
    assert [r.reason for r in box.reports] == ["blob_missing"]


def test_a_patch_goes_on_where_the_link_was_cut(box: Box) -> None:
    old, new, patch = large()
    box.hold(old)
    box.fleet.offer(old, new, patch)
    blocks = iter(range(17))

    def cut() -> None:
        if next(blocks, None) is None:
            raise UnreachableError("cut")

    box.fleet.cut = cut
    assert box.refusal(new) == "unreachable"
    assert box.litter
    box.fleet.cut = lambda: None
    box.fetch(new)
    assert box.fleet.sent[digest(patch)] < len(patch) + 2 * BLOCK_SIZE
    assert digest(new) not in box.fleet.sent
    assert not box.litter


def test_cancelling_ends_the_process_at_once(box: Box) -> None:
    """The patch asks for far more time than the test has."""
    patch = make_patch(OLD, NEW, payload=_slow())
    box.fleet.offer(OLD, NEW, patch)
    started = time.monotonic()
    box.fleet.put(NEW)
    children: list[int] = []

    def cancelled() -> bool:
        children.extend(_patchers())
        return bool(children)

    with pytest.raises(EdgepackError) as caught:
        box.patching.fetch(digest(NEW), len(NEW), box.fleet, cancelled=cancelled)
    assert caught.value.reason == "cancelled"
    assert not _patchers()
    assert time.monotonic() - started < 30
    # Its bytes are kept: the next try may go on.
    assert box.downloads.has(digest(patch), len(patch))


def _slow() -> bytes:
    """Return a payload whose records make one byte each, and one too many at the end."""
    records = b"".join(RECORD.pack(0, 0, 1) + b"x" for _ in range(len(NEW) + 1))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": LZMA_DICTIONARY}]
    return lzma.compress(records, format=lzma.FORMAT_RAW, filters=filters)


def _patchers() -> list[int]:
    """Return the processes that apply a patch for us."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"edgepack_agent.patcher" in words and parent == os.getpid():
            found.append(int(path.name))
    return found


def test_a_process_that_is_killed_is_a_patch_that_failed(box: Box) -> None:
    box.fleet.offer(OLD, NEW, make_patch(OLD, NEW, payload=_slow()))
    killed: list[int] = []

    def cancelled() -> bool:
        for pid in _patchers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return False

    box.fetch(NEW, cancelled=cancelled)
    assert killed
    (report,) = box.reports
    assert (report.reason, report.why) == ("patch_crashed", "killed by signal 9")
    assert digest(NEW) in box.fleet.sent
    assert not box.litter


def test_a_process_without_enough_memory_is_a_patch_that_failed(box: Box) -> None:
    box.rules = PatchRules(memory=24 * 2**20)
    box.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    box.fetch(NEW)
    assert box.reports[0].reason in {"patch_out_of_memory", "patch_crashed"}
    assert not box.litter


def test_the_largest_frames_fit_into_the_memory_that_is_allowed(box: Box) -> None:
    old = random.Random(1).randbytes(FRAME_BASE)
    new = old[: FRAME_TARGET // 2] + random.Random(2).randbytes(FRAME_TARGET // 2)
    box.hold(old)
    for codec in CODECS:
        payload = _cheap(codec, old, new)
        box.fleet.files.clear()
        box.fleet.offer(old, new, make_patch(old, new, codec, payload), codec)
        box.fetch(new)
        assert box.reports[-1].reason == "", box.reports
        box.downloads.drop(digest(new))


def test_a_full_disk_is_a_patch_that_failed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    monkeypatch.setattr(patching, "SPARE_BYTES", 2**60)
    box.fetch(NEW)
    assert [r.reason for r in box.reports] == ["disk_full"]


def test_killed_while_a_patch_is_applied_the_next_try_ends_well(tmp_path: Path) -> None:
    """The agent dies by SIGKILL: the process that applies goes with it, and nothing is lost."""
    box = Box(tmp_path, Fleet())
    box.hold(OLD)
    patch = make_patch(OLD, NEW, payload=_slow())
    offer = box.fleet.offer(OLD, NEW, patch)
    (tmp_path / "patch").write_bytes(patch)
    (tmp_path / "offers").write_bytes(box.fleet.files[offers_name(digest(NEW))])
    box.downloads.put(offer.patch, [patch])
    script = f"""
import sys
from pathlib import Path
from edgepack_agent.adapters.download import Downloads
from edgepack_agent.adapters.patching import Patching, PatchRules
home = Path({str(tmp_path)!r})
offers = (home / "offers").read_bytes()
downloads = Downloads(home / "blobs", home / "parts")
Patching(downloads, home / "parts", lambda *_: offers, PatchRules()).fetch(
    {digest(NEW)!r}, {len(NEW)}, None)
"""
    for go in range(MAX_GOES):
        process = subprocess.Popen([sys.executable, "-c", script])
        child = _wait_for(lambda process=process: _child_of(process.pid))
        assert json.loads((tmp_path / "parts" / f"{digest(NEW)}.goes").read_bytes()) == {
            offer.patch: go + 1
        }
        process.kill()
        process.wait()
        _wait_for(lambda child=child: not Path(f"/proc/{child}").exists())
        assert not box.downloads.path(digest(NEW)).exists()
    # It took the device down three times: it is not begun a fourth time.
    box.fetch(NEW)
    assert box.fleet.sent == {digest(NEW): len(NEW)}
    assert not box.litter


def _child_of(parent: int) -> int | None:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            if b"edgepack_agent.patcher" not in words:
                continue
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                return int(path.name)
        except (OSError, ValueError, IndexError):
            continue
    return None


def _wait_for(probe: Callable[[], object]) -> object:
    deadline = time.monotonic() + 20
    while not (found := probe()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_patch_whose_application_was_cut_short_is_applied_later(box: Box) -> None:
    offer = box.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    parts = box.home / "parts"
    (parts / f"{digest(NEW)}.goes").write_text(json.dumps({offer.patch: MAX_GOES - 1}))
    (parts / f"{digest(NEW)}.made").write_bytes(b"torn")
    box.fetch(NEW)
    assert digest(NEW) not in box.fleet.sent
    assert not box.litter


@pytest.mark.parametrize("garbage", [b"", b"[1]", b'{"a": "x"}', b'{"a": null}', b"\xff"])
def test_a_torn_record_of_goes_is_none(box: Box, garbage: bytes) -> None:
    box.fleet.offer(OLD, NEW, make_patch(OLD, NEW))
    (box.home / "parts" / f"{digest(NEW)}.goes").write_bytes(garbage)
    box.fetch(NEW)
    assert digest(NEW) not in box.fleet.sent


def test_what_is_no_longer_wanted_goes(box: Box) -> None:
    patch, _ = bad_patches()["other"]
    box.fleet.offer(OLD, NEW, patch)
    box.metered = True
    assert box.refusal(NEW) == "metered"
    assert box.litter
    box.downloads.keep_only({digest(OLD)})
    assert not box.litter
    assert box.downloads.has(digest(OLD), len(OLD))


def test_the_agent_imports_no_decoder() -> None:
    code = (
        "import sys, edgepack_agent.adapters.patching as p; p._codecs();"
        "print([m for m in ('backports.zstd', 'bsdiff4', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_choosing_is_by_bytes_alone() -> None:
    def offer(base: int, size: int, codec: str = "zstd") -> Offer:
        return Offer(
            base=digest(bytes([base])), base_size=9, codec=codec,
            patch=digest(bytes([base, size])), size=size,
        )  # fmt: skip

    a, b, c = offer(1, 50), offer(2, 40), offer(3, 30)
    held = {a.base, b.base}

    def chosen(missing: int = 100, **goes: int) -> Offer | None:
        named = {o.patch: goes[n] for n, o in (("a", a), ("b", b)) if n in goes}
        return choose(
            [a, b, c], 100, missing, held=held, codecs={"zstd"}, goes=named
        )  # fmt: skip

    assert chosen() == b
    assert chosen(b=1) == b
    assert chosen(b=MAX_GOES) == a
    assert chosen(b=MAX_GOES, a=MAX_GOES) is None
    assert chosen(missing=45) == b
    assert chosen(missing=40) is None
    assert choose([a, b], 89, 89, held=held, codecs={"zstd"}, goes={b.patch: MAX_GOES}) is None
    assert choose([b], 100, 100, held=held, codecs={"bsdiff"}, goes={}) is None


def test_a_disk_that_fills_up_while_a_patch_is_applied_is_called_by_its_name(box: Box) -> None:
    """The kernel refuses to write past a limit on the size of files, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    box.downloads.put(box.fleet.offer(OLD, NEW, make_patch(OLD, NEW)).patch, [make_patch(OLD, NEW)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        box.fleet.put(NEW)
        with pytest.raises(EdgepackError):
            box.patching.fetch(digest(NEW), len(NEW), box.fleet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r.reason for r in box.reports] == ["disk_full"]
    box.fetch(NEW)
    assert not box.litter
