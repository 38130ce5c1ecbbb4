"""Metadata and blobs over a wire that loses, repeats, mixes and lies."""

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from edgepack.errors import IntegrityError, UnreachableError
from edgepack.messages import BlobRequest, Head, MetaRequest, decode, encode
from edgepack.topics import BLOCK_SIZE
from edgepack.trust import TrustError
from edgepack_agent.adapters.transfer import WINDOW, Transfers

CONTENT = random.Random(1).randbytes(40 * BLOCK_SIZE + 77)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COUNT = 41
Send = Callable[[str, str, bytes], None]


class Wire:
    """A fleet at the other end of a wire; `mangle` may change what goes over it."""

    def __init__(self, mangle: Callable[[list[tuple[str, bytes]]], None] = lambda _: None) -> None:
        self.transfers = Transfers(self.say, patience_s=0.3)
        self.mangle, self.up = mangle, True
        self.requests: list[BlobRequest | MetaRequest] = []
        self.metadata: dict[tuple[str, str], bytes] = {}
        self.blobs = {SHA256: CONTENT}

    def say(self, kind: str, payload: bytes) -> bool:
        if self.up:
            request = decode(payload, MetaRequest if kind == "meta" else BlobRequest)
            self.requests.append(request)
            threading.Thread(target=self.answer, args=(request,)).start()
        return self.up

    def answer(self, request: MetaRequest | BlobRequest) -> None:
        messages = self.pieces(request)
        self.mangle(messages)
        for index, payload in messages:
            self.transfers.feed(request.xfer, index, payload)

    def pieces(self, request: MetaRequest | BlobRequest) -> list[tuple[str, bytes]]:
        if isinstance(request, MetaRequest):
            data = self.metadata.get((request.repo, request.name))
            if data is None:
                return [("head", encode(Head(status=404)))]
            blocks = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
            head = ("head", encode(Head(status=200, size=len(data))))
            return [head, *((str(i), block) for i, block in enumerate(blocks))]
        data = self.blobs.get(request.sha256)
        if data is None:
            return [("head", encode(Head(status=404)))]
        wanted = range(request.start, request.start + request.n)
        return [(str(i), data[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE]) for i in wanted]

    def fetch(self, start: int = 0, count: int = COUNT) -> bytes:
        return b"".join(self.transfers.blocks(SHA256, len(CONTENT), start, count))


def test_a_blob_comes_in_order_and_in_a_window() -> None:
    wire = Wire()
    assert wire.fetch() == CONTENT
    assert wire.fetch(5, 3) == CONTENT[5 * BLOCK_SIZE : 8 * BLOCK_SIZE]
    assert all(r.n <= WINDOW for r in wire.requests if isinstance(r, BlobRequest))


def test_no_more_is_asked_for_than_the_window() -> None:
    wire = Wire()
    blocks = wire.transfers.blocks(SHA256, len(CONTENT), 0, COUNT)
    for index in range(10):
        next(blocks)
        asked = sum(r.n for r in wire.requests if isinstance(r, BlobRequest))
        assert asked <= index + WINDOW
    blocks.close()


def test_blocks_may_be_shuffled_repeated_and_unasked_for() -> None:
    def mangle(messages: list[tuple[str, bytes]]) -> None:
        messages += messages
        messages += [("999", b"unasked"), ("-1", b"x"), ("x", b"x"), ("0", b"y" * BLOCK_SIZE * 2)]
        random.Random(2).shuffle(messages)

    def no_giant(messages: list[tuple[str, bytes]]) -> None:
        mangle(messages)

    wire = Wire(no_giant)
    assert wire.fetch() == CONTENT
    wire.transfers.feed("nobody", "0", b"late")
    assert wire.transfers.dropped > 0


def test_lost_blocks_are_asked_for_again() -> None:
    chance = random.Random(3)

    def mangle(messages: list[tuple[str, bytes]]) -> None:
        messages[:] = [message for message in messages if chance.random() > 0.1]

    assert Wire(mangle).fetch() == CONTENT


def test_silence_is_unreachable() -> None:
    def nothing(messages: list[tuple[str, bytes]]) -> None:
        messages.clear()

    wire = Wire(nothing)
    with pytest.raises(UnreachableError):
        wire.fetch()
    with pytest.raises(UnreachableError):
        wire.transfers.metadata("image", "timestamp.json", 1000)
    wire.up = False
    with pytest.raises(UnreachableError):
        wire.fetch()


def test_a_lost_link_ends_a_transfer_at_once() -> None:
    wire = Wire(lambda messages: messages.clear())
    wire.transfers = Transfers(wire.say, patience_s=60)
    threading.Timer(0.1, wire.transfers.abort).start()
    with pytest.raises(UnreachableError, match="lost"):
        wire.fetch()


def test_a_blob_that_the_fleet_does_not_have() -> None:
    wire = Wire()
    wire.blobs.clear()
    with pytest.raises(IntegrityError) as found:
        wire.fetch()
    assert found.value.reason == "blob_missing"


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
def test_metadata_of_any_size(size: int) -> None:
    wire = Wire()
    wire.metadata["director", "targets.json"] = CONTENT[:size]
    found = wire.transfers.metadata("director", "targets.json", 5 * BLOCK_SIZE)
    assert found == CONTENT[:size]


def test_metadata_that_is_not_there_or_too_long() -> None:
    wire = Wire()
    assert wire.transfers.metadata("image", "9.root.json", 1000) is None
    wire.metadata["image", "timestamp.json"] = b"x" * 1001
    with pytest.raises(TrustError) as found:
        wire.transfers.metadata("image", "timestamp.json", 1000)
    assert found.value.reason == "endless_data"


def test_a_head_that_is_rubbish_ends_the_transfer() -> None:
    def mangle(messages: list[tuple[str, bytes]]) -> None:
        messages[:] = [("head", b"{")]

    with pytest.raises(UnreachableError):
        Wire(mangle).transfers.metadata("image", "timestamp.json", 1000)
