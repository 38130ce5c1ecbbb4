"""What a hostile broker or a confused person may send to an agent. Fuzzed."""

import json
import math
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgepack import topics
from edgepack.errors import EdgepackError
from edgepack.messages import BlobRequest, Head, MetaRequest, decode, encode
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.control import Asked, ControlServer
from edgepack_agent.adapters.mqtt import Link
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.adapters.transfer import WINDOW, Transfers
from edgepack_agent.core.pace import Limits
from fleet_rig import wait
from fuzz import damaged, examples, json_values

SIZE = 5 * BLOCK_SIZE + 77
CONTENT = random.Random(3).randbytes(SIZE)
INDICES = (
    st.integers(-2, 9).map(str)
    | st.sampled_from(["head", "", "007", "9" * 11, "9" * 5000, "-1", "+1", "1_0", "\u0663", "1e3"])
    | st.text(max_size=8)
)
HEADS = st.builds(
    lambda status, size: encode(Head(status=status, size=size)),
    st.sampled_from([200, 200, 404, 500, -1]),
    st.sampled_from([0, 1, SIZE, BLOCK_SIZE, 2**63 - 1]),
)
JUNK = (
    st.binary(max_size=60)
    | HEADS.flatmap(damaged)
    | st.sampled_from(
        [b"", bytes(BLOCK_SIZE - 1), bytes(BLOCK_SIZE), bytes(BLOCK_SIZE + 1), bytes(200_000)]
    )
)
STORM = st.lists(st.tuples(INDICES, JUNK | HEADS), max_size=12)


def payload_of(index: int) -> bytes:
    return CONTENT[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]


class Answers:
    """Answers requests at once, as an honest fleet does, with what a test puts in between."""

    def __init__(self, storm: list[tuple[str, bytes]], order: random.Random, copies: int) -> None:
        self.storm, self.order, self.copies = storm, order, copies
        self.transfers = Transfers(self.say, patience_s=0.01)
        self.most = 0

    def say(self, kind: str, payload: bytes) -> bool:
        if kind == "blob":
            asked = decode(payload, BlobRequest)
            numbers = range(asked.start, asked.start + asked.n)
            honest = [(str(index), payload_of(index)) for index in numbers]
            xfer = asked.xfer
        else:
            honest, xfer = [], decode(payload, MetaRequest).xfer
        words = honest * self.copies + self.storm
        self.order.shuffle(words)
        for index, block in words:
            self.transfers.feed(xfer, index, block)
            self.transfers.feed("nobody", index, block)
        held = self.transfers._open[xfer].blocks
        self.most = max(self.most, sum(map(len, held.values())))
        return True


def wrong(word: tuple[str, bytes]) -> bool:
    """Say whether WORD is none that could be taken for a block or a refusal."""
    index, payload = word
    return index != "head" and len(payload) not in {BLOCK_SIZE, SIZE % BLOCK_SIZE}


quick = examples(50)


@quick
@given(STORM, st.randoms(use_true_random=False), st.integers(1, 3))
def test_blocks_in_any_order_twice_and_among_rubbish_are_the_content(
    storm: list[tuple[str, bytes]], order: random.Random, copies: int
) -> None:
    answers = Answers([word for word in storm if wrong(word)], order, copies)
    assert b"".join(answers.transfers.blocks("a" * 64, SIZE, 0, 6)) == CONTENT
    assert answers.most <= WINDOW * BLOCK_SIZE
    assert not answers.transfers._open


@quick
@given(STORM, st.randoms(use_true_random=False))
def test_a_hostile_fleet_is_an_error_or_blocks_of_the_right_length(
    storm: list[tuple[str, bytes]], order: random.Random
) -> None:
    answers = Answers(storm, order, copies=0)
    pacer = Pacer(Limits(0.0, math.inf, 0.02), Cap(None))
    try:
        found = list(answers.transfers.blocks("a" * 64, SIZE, 0, 6, pacer))
        assert [len(block) for block in found] == [BLOCK_SIZE] * 5 + [77]
    except EdgepackError:
        pass
    assert answers.most <= WINDOW * BLOCK_SIZE
    assert not answers.transfers._open


@quick
@given(STORM, st.randoms(use_true_random=False), st.sampled_from([0, 10, 3 * BLOCK_SIZE]))
def test_hostile_metadata_is_an_error_or_within_its_length(
    storm: list[tuple[str, bytes]], order: random.Random, longest: int
) -> None:
    answers = Answers(storm, order, copies=0)
    try:
        found = answers.transfers.metadata("image", "timestamp.json", longest)
        assert found is None or len(found) <= longest
    except EdgepackError:
        pass
    assert answers.most <= longest + 2 * BLOCK_SIZE
    assert not answers.transfers._open


@pytest.mark.parametrize("index", ["1", "2"])
def test_the_second_block_of_metadata_is_not_taken_for_the_first(index: str) -> None:
    head = ("head", encode(Head(status=200, size=10)))
    answers = Answers([head, (index, bytes(10))], random.Random(0), copies=0)
    with pytest.raises(EdgepackError):
        answers.transfers.metadata("image", "timestamp.json", 3 * BLOCK_SIZE)


def test_a_block_of_metadata_is_no_longer_than_the_head_says() -> None:
    head = ("head", encode(Head(status=200, size=10)))
    answers = Answers([head, ("0", bytes(BLOCK_SIZE))], random.Random(0), copies=0)
    with pytest.raises(EdgepackError):
        answers.transfers.metadata("image", "timestamp.json", 10)


LEVELS = st.sampled_from(
    ["ep", "1", "d", "g", "cam-1", "cam-2", "dn", "up", "meta", "blob", "head", "0", "", "+", "\0"]
) | st.text(max_size=5)


@given(st.lists(LEVELS, max_size=10).map("/".join), st.binary(max_size=50))
def test_any_topic_is_parsed_or_not_ours(topic: str, payload: bytes) -> None:
    heard: list[Any] = []
    known = SimpleNamespace(device="cam-1", group="lab", has_newer=False)
    link = Link(known, ("127.0.0.1", 1), dict, heard.append)  # type: ignore[arg-type]
    message: Any = SimpleNamespace(topic=topic, payload=payload)
    link._received(None, None, message)  # type: ignore[arg-type]
    block, said = topics.parse_block(topic), topics.parse_up(topic)
    assert len(heard) == (block is None)
    assert said is None or topics.up(said.device, said.kind) == topic


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("control") / "s"

    def carry_out(asked: Asked) -> None:
        if asked.file is not None:
            os.close(asked.file)
        asked.reply.set_result({"heard": asked.command})

    server = ControlServer(path, carry_out)
    yield path
    server.close()


REQUEST = json.dumps({"cmd": "status", "args": {"a": [1, None]}}).encode() + b"\n"
LINES = damaged(REQUEST) | json_values.map(lambda value: json.dumps(value).encode())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_any_request_over_the_control_socket_is_answered(control: Path) -> None:
    failed: list[Any] = []

    @quick
    @given(LINES.filter(bool), st.booleans())
    @example(b"[" * 60_000, True)
    def ask(line: bytes, with_file: bool) -> None:
        with socket.socket(socket.AF_UNIX) as peer, Path(os.devnull).open("rb") as file:
            peer.settimeout(20)
            peer.connect(str(control))
            socket.send_fds(peer, [line], [file.fileno()] if with_file else [])
            answer = json.loads(peer.makefile("rb").readline())
        assert "heard" in answer or answer["error"]["reason"] == "bad_command"

    before, hook = descriptors(), threading.excepthook
    threading.excepthook = failed.append
    try:
        ask()
    finally:
        threading.excepthook = hook
    assert not failed
    wait("its threads to end", lambda: descriptors() <= before)
