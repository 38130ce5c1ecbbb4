"""Chunks are checked as they arrive, and nothing on disk is believed after an interruption."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.test_power_loss import Blob, content, downloads
from edgepack.chunks import CHUNK_SIZE
from edgepack.errors import IntegrityError, UnreachableError
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.partial import TRIES

SIZE = 5 * CHUNK_SIZE + 12345
CONTENT = content(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHUNKS = tuple(
    hashlib.sha256(CONTENT[at : at + CHUNK_SIZE]).hexdigest() for at in range(0, SIZE, CHUNK_SIZE)
)
PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE


class Corrupting(Blob):
    """A source that flips a bit in the first answers for some blocks."""

    def __init__(self, times: dict[int, int]) -> None:
        super().__init__(CONTENT)
        self.times = Counter(times)
        self.asked: Counter[int] = Counter()

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        for index, block in enumerate(super().blocks(sha256, size, start, count), start):
            self.asked[index // PER_CHUNK] += len(block)
            if self.times[index] > 0:
                self.times[index] -= 1
                yield bytes([block[0] ^ 1]) + block[1:]
            else:
                yield block


def interrupted(directory: Path, after_blocks: int, chunks: tuple[str, ...] = CHUNKS) -> None:
    store = downloads(directory)
    with pytest.raises(UnreachableError):
        store.fetch(SHA256, SIZE, Blob(CONTENT, fail_after=after_blocks), chunks=chunks)


def resumed(directory: Path, chunks: tuple[str, ...] = CHUNKS) -> int:
    """Complete the blob and return the bytes that it took."""
    store, source = downloads(directory), Blob(CONTENT)
    store.fetch(SHA256, SIZE, source, chunks=chunks)
    assert store.path(SHA256).read_bytes() == CONTENT
    assert not list((directory / "parts").iterdir())
    return source.sent


def test_a_corrupt_chunk_is_asked_for_again_alone(tmp_path: Path) -> None:
    source = Corrupting({PER_CHUNK + 3: 1, 4 * PER_CHUNK: 2})
    downloads(tmp_path).fetch(SHA256, SIZE, source, chunks=CHUNKS)
    assert downloads(tmp_path).path(SHA256).read_bytes() == CONTENT
    times = {1: 2, 4: 3}
    assert source.asked == {
        chunk: times.get(chunk, 1) * min(CHUNK_SIZE, SIZE - chunk * CHUNK_SIZE)
        for chunk in range(len(CHUNKS))
    }


def test_a_chunk_that_is_always_corrupt_is_given_up_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    source = Corrupting({2 * PER_CHUNK: 10**6})
    with pytest.raises(IntegrityError) as found:
        downloads(tmp_path).fetch(SHA256, SIZE, source, chunks=CHUNKS)
    assert found.value.reason == "digest_mismatch"
    assert source.asked[2] == TRIES * CHUNK_SIZE
    assert downloads(tmp_path).missing(SHA256, SIZE) == CHUNK_SIZE
    assert resumed(tmp_path) == CHUNK_SIZE


def test_a_list_that_does_not_fit_its_blob_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as found:
        downloads(tmp_path).fetch(SHA256, SIZE, Blob(CONTENT), chunks=CHUNKS[:-1])
    assert found.value.reason == "bad_chunks"


def test_chunks_that_fit_a_list_but_not_the_name_never_get_the_name(tmp_path: Path) -> None:
    store, other = downloads(tmp_path), hashlib.sha256(b"another").hexdigest()
    with pytest.raises(IntegrityError) as found:
        store.fetch(other, SIZE, Blob(CONTENT), chunks=CHUNKS)
    assert found.value.reason == "digest_mismatch"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("chunks", [CHUNKS, ()])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_whatever_a_power_cut_does_to_both_files_costs_no_more_than_what_it_hit(
    tmp_path_factory: pytest.TempPathFactory, chunks: tuple[str, ...], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    whole = data.draw(st.integers(1, 4), label="chunks that had arrived")
    interrupted(directory, whole * PER_CHUNK + 3, chunks)
    part, marks = (directory / "parts" / f"{SHA256}.{end}" for end in ("part", "map"))
    hit = data.draw(st.sets(st.integers(0, whole - 1)), label="chunks whose pages were lost")
    raw = bytearray(part.read_bytes())
    for chunk in hit:
        raw[chunk * CHUNK_SIZE + 70_000 : chunk * CHUNK_SIZE + 74_096] = bytes(4096)
    part.write_bytes(raw)
    torn = data.draw(st.integers(0, whole), label="chunks that the torn map still names")
    rubbish = data.draw(st.binary(max_size=40), label="rubbish at the end of the map")
    marks.write_bytes(marks.read_bytes()[: torn * 32] + rubbish)
    lost = hit | set(range(torn, len(CHUNKS)))
    cost = sum(min(CHUNK_SIZE, SIZE - chunk * CHUNK_SIZE) for chunk in lost)
    assert resumed(directory, chunks) == cost


def test_a_map_without_its_part_is_not_believed(tmp_path: Path) -> None:
    interrupted(tmp_path, 3 * PER_CHUNK)
    (tmp_path / "parts" / f"{SHA256}.part").unlink()
    assert resumed(tmp_path) == SIZE


def test_what_an_older_list_called_right_is_not_believed(tmp_path: Path) -> None:
    """The map says what is there; only the signed list says what is right."""
    random_chunks = tuple(hashlib.sha256(random.randbytes(9)).hexdigest() for _ in CHUNKS)
    interrupted(tmp_path, 3 * PER_CHUNK, chunks=())
    with pytest.raises(IntegrityError):
        downloads(tmp_path).fetch(SHA256, SIZE, Blob(CONTENT), chunks=random_chunks)
    assert downloads(tmp_path).missing(SHA256, SIZE) == SIZE
