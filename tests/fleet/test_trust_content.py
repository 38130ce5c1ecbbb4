"""The content store: a blob is there whole and right, or not at all."""

import hashlib
import io
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.errors import BudgetError, IntegrityError, UsageError
from edgepack_fleet.adapters.content import ContentStore

DATA = bytes(range(256)) * 9000  # about 2.3 MB: more than one piece
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def everything(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A full disk, as the kernel tells it: a write past SIZE bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_goes_in_comes_out(store: ContentStore) -> None:
    assert not store.has(SHA)
    assert store.size(SHA) is None
    assert store.put(SHA, io.BytesIO(DATA)) == len(DATA)
    assert store.has(SHA)
    assert store.size(SHA) == len(DATA)
    assert store.read(SHA) == DATA
    assert store.read(SHA, 1000, 64) == DATA[1000:1064]
    assert store.read(SHA, len(DATA) - 3, 64) == DATA[-3:]
    assert store.read(SHA, len(DATA) + 5, 64) == b""


def test_pieces_are_as_good_as_a_file(store: ContentStore) -> None:
    assert store.put(SHA, (DATA[at : at + 1000] for at in range(0, len(DATA), 1000))) == len(DATA)
    assert store.read(SHA) == DATA


def test_putting_again_is_harmless(store: ContentStore) -> None:
    store.put(SHA, io.BytesIO(DATA))
    with pytest.raises(IntegrityError):
        store.put(SHA, io.BytesIO(DATA[:-1]))
    assert store.read(SHA) == DATA
    assert store.put(SHA, io.BytesIO(DATA)) == len(DATA)


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x", DATA[:-1] + b"x"])
def test_other_content_is_refused_and_gone(
    store: ContentStore, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(IntegrityError) as caught:
        store.put(SHA, io.BytesIO(data))
    assert caught.value.reason == "digest_mismatch"
    assert everything(tmp_path) == []


def test_endless_content_is_cut_off(store: ContentStore, tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1000

    with pytest.raises(IntegrityError) as caught:
        store.put(SHA, endless(), limit=50_000)
    assert caught.value.reason == "too_long"
    assert everything(tmp_path) == []


def test_a_full_disk_leaves_nothing(store: ContentStore, tmp_path: Path) -> None:
    with no_file_larger_than(1_000_000), pytest.raises(BudgetError) as caught:
        store.put(SHA, io.BytesIO(DATA))
    assert caught.value.reason == "disk_full"
    assert everything(tmp_path) == []
    assert store.put(SHA, io.BytesIO(DATA)) == len(DATA)


def test_a_sender_that_breaks_off_leaves_nothing(store: ContentStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield DATA[:1000]
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        store.put(SHA, broken())
    assert everything(tmp_path) == []


def test_a_killed_fleet_starts_clean(store: ContentStore, tmp_path: Path) -> None:
    store.put(SHA, io.BytesIO(DATA))
    (tmp_path / "sha256" / ".part-x").write_bytes(b"half")
    ContentStore(tmp_path)
    assert everything(tmp_path) == [SHA]


def test_two_senders_of_one_blob(store: ContentStore, tmp_path: Path) -> None:
    threads = [threading.Thread(target=store.put, args=(SHA, io.BytesIO(DATA))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(SHA) == DATA
    assert everything(tmp_path) == [SHA]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=70))
def test_only_digests_name_blobs(store: ContentStore, name: str) -> None:
    for bad in (name, f"../{name}", SHA.upper(), SHA + "\n", SHA[:-1]):
        with pytest.raises(UsageError):
            store.has(bad)


def test_a_blob_that_is_not_here(store: ContentStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.read(SHA)
