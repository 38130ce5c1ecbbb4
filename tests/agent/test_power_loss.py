"""SIGKILL at random moments, with real files: journal, downloads and slots stay whole."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import bundles
from edgepack.bundle import open_bundle
from edgepack.chunks import CHUNK_SIZE
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.download import DiskFullError, Downloads
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.adapters.slots import DamagedBlobError, Slots
from edgepack_agent.core.effects import Revert
from edgepack_agent.core.events import Booted, Reverted
from edgepack_agent.core.machine import transition
from edgepack_agent.core.state import Job, Model, Outcome, Slot, State
from edgepack_agent.runner.slot import open_slot

HERE = Path(__file__).parents[1]
SIZE = 6 * CHUNK_SIZE + 12345


class Blob:
    """A source that has one blob, and remembers what it was asked for."""

    def __init__(self, content: bytes, fail_after: int = 10**9) -> None:
        self.content, self.left = content, fail_after
        self.sent = 0

    @property
    def sha256(self) -> str:
        import hashlib

        return hashlib.sha256(self.content).hexdigest()

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        for index in range(start, start + count):
            if self.left == 0:
                raise UnreachableError("the cable is out")
            self.left -= 1
            block = self.content[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            self.sent += len(block)
            yield block


def content(size: int = SIZE) -> bytes:
    return random.Random(size).randbytes(size)


def downloads(directory: Path) -> Downloads:
    return Downloads(directory / "blobs", directory / "parts")


def killed_at_random(code: str, *args: object, seed: int, longest_s: float = 0.25) -> list[str]:
    """Run CODE in a new process, kill it after a random time and return the lines it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(random.Random(seed).uniform(0, longest_s))
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    # The last line may be torn; what it would say had happened all the same.
    return out.splitlines()[: -1 if not out.endswith("\n") else None]


JOURNAL = """
import sys, pathlib
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.core.state import State
journal = Journal(pathlib.Path(sys.argv[1]))
print("begun", flush=True)
for n in range(journal.state.boots + 1, 10**9):
    journal.save(State(phase="downloading", boots=n, ended="x" * (n % 700)))
    print(n, flush=True)
"""


def test_what_the_journal_has_saved_is_never_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for seed in range(5):
        said = killed_at_random(JOURNAL, path, seed=seed)
        journal = Journal(path)
        assert not journal.lost
        assert journal.state.boots >= int(said[-1] if said else 0)
        assert journal.state.ended == "x" * (journal.state.boots % 700)
        journal.close()


@pytest.mark.parametrize("damage", [b"", b"rubbish " * 2000])
def test_a_damaged_journal_is_put_aside_and_said_so(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.db"
    first = Journal(path)
    first.save(State(ended="job-1"))
    first.close()
    path.write_bytes(damage)
    for leftover in tmp_path.glob("journal.db-*"):
        leftover.unlink()
    journal = Journal(path)
    assert journal.state == State()
    assert journal.lost == bool(damage)
    journal.save(State(ended="job-2"))
    journal.close()
    assert Journal(path).state.ended == "job-2"


SLOT_A = Slot("a", Model("digits@1.0.0", "models/1", "1" * 64, 10))
SLOT_B = Slot("b", Model("digits@2.0.0", "models/2", "2" * 64, 10))


def rewritten(path: Path, change: str) -> Journal:
    """Change the body of the journal in PATH by the SQL expression CHANGE and open it again."""
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE state SET body = {change}")
    database.close()
    return Journal(path)


def test_a_phase_that_nobody_knows_is_rolled_back_and_costs_no_model(tmp_path: Path) -> None:
    path, job = tmp_path / "journal.db", Job("job-1", "digits@2.0.0", "models/2")
    journal = Journal(path)
    state = State(phase="probation", current=SLOT_A, previous=None, job=job, candidate=SLOT_B)
    journal.save(replace(state, pinned="exhibition", ended="job-0"))
    journal.close()
    found = rewritten(path, "replace(body, 'probation', 'dancing')")
    assert not found.lost
    assert (found.state.phase, found.state.current) == ("rolling_back", SLOT_A)
    assert (found.state.candidate, found.state.pinned) == (SLOT_B, "exhibition")
    after, effects = transition(found.state, Booted())
    assert Revert(SLOT_B) in effects
    after, _ = transition(after, Reverted())
    assert (after.phase, after.current, after.ended) == ("idle", SLOT_A, "job-1")
    assert after.outcome == Outcome("job-1", "FAILED", "unknown_state")
    found.close()


def test_a_journal_whose_current_model_cannot_be_read_counts_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.save(State(current=SLOT_A))
    journal.close()
    reopened = rewritten(path, "replace(body, 'sha256', 'sha-256')")
    assert reopened.lost
    assert reopened.state == State()
    reopened.close()


def test_a_journal_with_what_is_no_text_counts_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.save(State(ended="job-1"))
    journal.close()
    reopened = rewritten(path, "CAST(replace(body, 'job-1', CAST(x'ff' AS TEXT)) AS BLOB)")
    assert reopened.lost
    assert reopened.state == State()
    reopened.close()


def test_a_journal_that_cannot_be_written_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EdgepackError) as found:
        Journal(tmp_path / "file" / "journal.db")
    assert found.value.reason == "storage"


DOWNLOAD = """
import sys, pathlib
from agent.test_power_loss import Blob, content, downloads
class Slow(Blob):
    def blocks(self, *a):
        import time
        for block in super().blocks(*a):
            time.sleep(0.002)
            print(len(block), flush=True)
            yield block
blob = Slow(content())
store = downloads(pathlib.Path(sys.argv[1]))
print("begun", flush=True)
store.fetch(blob.sha256, len(blob.content), blob)
print("done", flush=True)
"""


def test_a_download_that_is_killed_again_and_again_goes_on_where_it_was(tmp_path: Path) -> None:
    blob, store, fetched, kills = Blob(content()), downloads(tmp_path), 0, 0
    while not store.has(blob.sha256, SIZE):
        said = killed_at_random(DOWNLOAD, tmp_path, seed=kills, longest_s=0.15)
        fetched += sum(int(line) for line in said if line.isdecimal())
        kills += 1
        assert kills < 40
    assert store.path(blob.sha256).read_bytes() == blob.content
    assert kills > 1
    assert fetched <= SIZE + kills * CHUNK_SIZE, "a kill costs one chunk at most"
    assert not list((tmp_path / "parts").iterdir())


def test_a_cut_link_keeps_what_is_durable(tmp_path: Path) -> None:
    store = downloads(tmp_path)
    first = Blob(content(), fail_after=40)
    with pytest.raises(UnreachableError):
        store.fetch(first.sha256, SIZE, first)
    assert store.missing(first.sha256, SIZE) == SIZE - 2 * CHUNK_SIZE
    second = Blob(content())
    store.fetch(second.sha256, SIZE, second)
    assert second.sent == SIZE - 2 * CHUNK_SIZE
    third = Blob(content())
    store.fetch(third.sha256, SIZE, third)
    assert third.sent == 0


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, CHUNK_SIZE, CHUNK_SIZE + 1])
def test_blobs_of_every_odd_size(tmp_path: Path, size: int) -> None:
    blob, store = Blob(content(size)), downloads(tmp_path)
    store.fetch(blob.sha256, size, blob)
    assert store.path(blob.sha256).read_bytes() == blob.content


def test_wrong_content_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store, blob = downloads(tmp_path), Blob(content(CHUNK_SIZE))
    for wrong in (content(CHUNK_SIZE)[:-1] + b"?", content(CHUNK_SIZE)[:-1], content(100)):
        with pytest.raises(IntegrityError):
            store.fetch(blob.sha256, CHUNK_SIZE, Blob(wrong))
        assert not list(tmp_path.rglob("*.*"))
        assert not store.has(blob.sha256, CHUNK_SIZE)


def test_a_download_can_be_cancelled_between_two_blocks(tmp_path: Path) -> None:
    store, blob = downloads(tmp_path), Blob(content())
    with pytest.raises(EdgepackError) as found:
        store.fetch(blob.sha256, SIZE, blob, cancelled=lambda: blob.sent > CHUNK_SIZE)
    assert found.value.reason == "cancelled"
    assert blob.sent <= CHUNK_SIZE + 2 * BLOCK_SIZE


FULL = """
import sys, pathlib, resource
from agent.test_power_loss import Blob, content, downloads
from edgepack_agent.adapters.download import DiskFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
blob, store = Blob(content()), downloads(pathlib.Path(sys.argv[1]))
try:
    store.fetch(blob.sha256, len(blob.content), blob)
except DiskFullError as error:
    print(error.reason, blob.sent)
"""


def test_no_room_is_noticed_before_a_byte_is_fetched(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert done.stdout == "disk_full 0\n", done.stderr
    assert not list(tmp_path.rglob("*.*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs CAP_SYS_ADMIN)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_gives_its_space_back(small_disk: Path) -> None:
    store, blob = downloads(small_disk), Blob(content(4 * CHUNK_SIZE))
    with pytest.raises(DiskFullError):
        store.fetch(blob.sha256, 4 * CHUNK_SIZE, blob)
    with pytest.raises(DiskFullError):
        store.put(blob.sha256, [blob.content])
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    small = Blob(content(CHUNK_SIZE))
    store.fetch(small.sha256, CHUNK_SIZE, small)


# -- slots


def stocked(directory: Path, version: str, model_bytes: int = 200_000) -> tuple[Slots, Slot]:
    """Return slots whose store holds the blobs of VERSION, and slot b for it."""
    store = downloads(directory)
    made = bundles.write(directory / version, version=version, model_bytes=model_bytes)
    with open_bundle(made.path) as bundle:
        for sha256 in bundle.blobs():
            with bundle.open_blob(sha256) as file:
                store.put(sha256, iter(lambda: file.read(2**20), b""))
        size = len(bundle.oci_manifest)
    model = Model(f"digits@{version}", "path", made.digest.removeprefix("sha256:"), size)
    return Slots(directory / "slots", store), Slot("b", model)


STAGE = """
import sys, pathlib
from agent.test_power_loss import stocked, downloads
from edgepack_agent.adapters.slots import Slots
from edgepack_agent.core.state import Slot, Model
home = pathlib.Path(sys.argv[1])
slots = Slots(home / "slots", downloads(home))
print("begun", flush=True)
while True:
    for words in sys.argv[2:]:
        release, digest, size = words.split(",")
        slots.stage(Slot("b", Model(release, "path", digest, int(size))))
        print(release, flush=True)
"""


def test_a_slot_is_the_old_model_or_the_new_or_not_there(tmp_path: Path) -> None:
    _, one = stocked(tmp_path, "1.0.0")
    slots, two = stocked(tmp_path, "2.0.0")
    words = [f"{s.model.release},{s.model.sha256},{s.model.size}" for s in (one, two)]
    slots.stage(Slot("a", one.model))
    for seed in range(6):
        killed_at_random(STAGE, tmp_path, *words, seed=seed, longest_s=0.1)
        slots = Slots(tmp_path / "slots", downloads(tmp_path))
        assert slots.holds(Slot("a", one.model)), "the other slot is never touched"
        if slots.path("b").exists():
            assert open_slot(slots.path("b")).digest in {one.model.digest, two.model.digest}
        assert sorted(p.name for p in (tmp_path / "slots").iterdir()) in (["a"], ["a", "b"])


def test_a_damaged_blob_is_found_and_removed_when_a_slot_is_built(tmp_path: Path) -> None:
    slots, slot = stocked(tmp_path, "1.0.0")
    victim = max((tmp_path / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DamagedBlobError):
        slots.stage(slot)
    assert not victim.exists()
    assert not slots.path(slot).exists()
    stocked(tmp_path, "1.0.0")
    slots.stage(slot)
    assert slots.holds(slot)


def test_a_slot_that_was_changed_on_disk_does_not_hold_its_model(tmp_path: Path) -> None:
    slots, slot = stocked(tmp_path, "1.0.0")
    slots.stage(slot)
    (slots.path(slot) / "model" / "extra").write_text("x")
    assert not slots.holds(slot)


def test_links_follow_the_journal_and_lead_back_without_it(tmp_path: Path) -> None:
    slots, slot = stocked(tmp_path, "1.0.0")
    slots.stage(slot)
    assert slots.recover() is None, "nothing has ever been committed"
    slots.link(State(current=slot))
    found = Slots(tmp_path / "slots", downloads(tmp_path)).recover()
    assert found is not None
    assert (found.name, found.model.digest) == ("b", slot.model.digest)
    slots.link(State())
    assert not (tmp_path / "slots" / "current").is_symlink()


def test_a_map_that_a_cut_left_beside_a_complete_blob_goes(tmp_path: Path) -> None:
    store, blob = downloads(tmp_path), Blob(content(1000))
    store.put(blob.sha256, [blob.content])
    (tmp_path / "parts" / f"{blob.sha256}.map").write_bytes(bytes(32))
    store.keep_only([blob.sha256])
    assert not list((tmp_path / "parts").iterdir())
    assert store.has(blob.sha256, 1000)


def test_a_download_under_way_has_its_room_already(small_disk: Path) -> None:
    store, blob = downloads(small_disk), Blob(content(2 * CHUNK_SIZE), fail_after=20)
    assert store.room(blob.sha256, 2 * CHUNK_SIZE) == 2 * CHUNK_SIZE
    with pytest.raises(UnreachableError):
        store.fetch(blob.sha256, 2 * CHUNK_SIZE, blob)
    assert store.missing(blob.sha256, 2 * CHUNK_SIZE) == CHUNK_SIZE
    assert store.room(blob.sha256, 2 * CHUNK_SIZE) == 0


def test_what_came_of_a_model_that_was_only_tried_is_kept_for_the_next(tmp_path: Path) -> None:
    _, one = stocked(tmp_path, "1.0.0")
    slots, two = stocked(tmp_path, "2.0.0")
    store = downloads(tmp_path)
    store.path(two.model.sha256).unlink()
    before = len(list((tmp_path / "blobs").iterdir()))
    slots.collect(one, None, two)
    assert len(list((tmp_path / "blobs").iterdir())) < before, "its list of files is not here"
    _, two = stocked(tmp_path, "2.0.0")
    before = len(list((tmp_path / "blobs").iterdir()))
    slots.collect(one, None, two)
    assert len(list((tmp_path / "blobs").iterdir())) == before


def test_only_the_blobs_of_models_in_use_are_kept(tmp_path: Path) -> None:
    _, one = stocked(tmp_path, "1.0.0")
    slots, two = stocked(tmp_path, "2.0.0")
    slots.stage(Slot("a", one.model))
    slots.stage(two)
    slots.collect(Slot("a", one.model), two)
    both = len(list((tmp_path / "blobs").iterdir()))
    slots.discard(two)
    slots.collect(Slot("a", one.model))
    assert 0 < len(list((tmp_path / "blobs").iterdir())) < both
    slots.stage(Slot("b", one.model))
    assert slots.holds(Slot("b", one.model))
