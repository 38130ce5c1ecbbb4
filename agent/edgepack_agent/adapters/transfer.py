"""Metadata and blobs over messages: ask, wait, collect. Knows topics' tails, no broker.

The device paces: a window of blocks is asked for, and more only as they come. Whatever was not
asked for, comes twice or has a wrong length is dropped; what is lost is asked for again. No answer
is an `UnreachableError`, after the link is lost at once; the caller keeps what it has and asks
again for the rest.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from edgepack.errors import IntegrityError, UnreachableError
from edgepack.messages import BlobRequest, Head, MetaRequest, decode, encode
from edgepack.topics import BLOCK_SIZE
from edgepack.trust import TrustError
from edgepack_agent.adapters.pacing import LOOK_S, Cap, Pacer
from edgepack_agent.core.pace import Limits, Window

__all__ = ["Say", "Transfers"]

Say = Callable[[str, bytes], bool]
"""Sends a payload about a kind (`meta`, `blob`); False: the link is down."""

WINDOW = 32
"""Blocks that are on their way at most: 2 MiB, also in memory."""
FIRST_WINDOW = 4
STEP = 8
"""Blocks asked for with one request, at most half of the window."""
TOGETHER = 4
"""Blocks that are handed over at once, if more than that are on their way."""
PATIENCE_S = 5.0
TRIES = 3
PATIENCE_TURNS = 3
"""Times that the last block took after which the next one counts as lost."""


class _Transfer:
    """One answer that is being collected. WANTED says how long each block has to be, at most."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.wanted: dict[int, int] = {}
        self.exact = False
        """Whether a block must have the whole length that is wanted."""
        self.blocks: dict[int, bytes] = {}
        self.came: dict[int, float] = {}
        self.awaited: int | None = None
        """The block without which nobody needs to be woken up; None: wake up for any."""
        self.head: Head | None = None
        self.aborted = False

    def feed(self, index: str, payload: bytes) -> None:
        with self.changed:
            if index == "head":
                self.head = decode(payload, Head)
            elif not _is_number(index) or not self._take(int(index), payload):
                return
            self.changed.notify_all()

    def _take(self, index: int, payload: bytes) -> bool:
        """Keep a block; return whether somebody waits for it."""
        longest = self.wanted.get(index)
        if longest is None or len(payload) > longest or (self.exact and len(payload) < longest):
            return False
        del self.wanted[index]
        self.blocks[index], self.came[index] = payload, time.monotonic()
        if self.awaited is None:
            return True
        # Woken up for each block, a reader would spend more on waking up than on reading.
        return self.awaited in self.blocks and (len(self.blocks) >= TOGETHER or not self.wanted)

    def expect(self, size: int) -> None:
        """Want SIZE bytes, now that it is known, and of what came before only what fits."""
        lengths = {
            index: min(BLOCK_SIZE, size - index * BLOCK_SIZE)
            for index in range(-(-size // BLOCK_SIZE))
        }
        with self.changed:
            self.blocks = {i: b for i, b in self.blocks.items() if len(b) == lengths.get(i)}
            self.wanted = {i: n for i, n in lengths.items() if i not in self.blocks}
            self.exact = True

    def abort(self) -> None:
        with self.changed:
            self.aborted = True
            self.changed.notify_all()

    @property
    def refused(self) -> bool:
        return self.head is not None and self.head.status != 200


class Transfers:
    """All transfers of one link.

    Args:
        say: Sends a request.
        patience_s: Seconds without a block before it is asked for again.
    """

    def __init__(self, say: Say, patience_s: float = PATIENCE_S) -> None:
        self._say, self._patience_s = say, patience_s
        self._open: dict[str, _Transfer] = {}
        self._window = Window(FIRST_WINDOW, WINDOW)
        self.dropped = 0
        """Messages that belong to no transfer."""

    def feed(self, xfer: str, index: str, payload: bytes) -> None:
        """Take one message of the transfer XFER; called from the network thread."""
        transfer = self._open.get(xfer)
        if transfer is None:
            self.dropped += 1
            return
        try:
            transfer.feed(index, payload)
        except IntegrityError:
            transfer.abort()

    def abort(self) -> None:
        """End every transfer: the link is down."""
        for transfer in list(self._open.values()):
            transfer.abort()

    def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
        """Return the metadata file NAME of REPO; None if there is none.

        Raises:
            UnreachableError: no answer.
            TrustError: it is longer than MAX_LENGTH (reason `endless_data`).
        """
        kind: Literal["image", "director"] = "image" if repo == "image" else "director"
        with self._transfer() as (xfer, transfer):
            blocks = range(-(-max_length // BLOCK_SIZE) + 1)
            transfer.wanted.update(dict.fromkeys(blocks, BLOCK_SIZE))

            def ask() -> None:
                self._send("meta", encode(MetaRequest(xfer=xfer, repo=kind, name=name)))

            ask()
            self._wait(transfer, lambda: transfer.head is not None, ask)
            head = transfer.head
            if head is None or head.status == 404:
                return None
            _check_length(head, name, max_length)
            transfer.expect(head.size)
            self._wait(transfer, lambda: not transfer.wanted, ask)
            return b"".join(block for _, block in sorted(transfer.blocks.items()))

    def blocks(
        self, sha256: str, size: int, start: int, count: int, pacer: Pacer | None = None
    ) -> Iterator[bytes]:
        """Yield COUNT blocks of a blob from block START, in order.

        Raises:
            UnreachableError: no answer, or none any more (reasons `unreachable`, `stalled`,
                `too_slow`).
            IntegrityError: the fleet does not have the blob (reason `blob_missing`).
            EdgepackError: PACER does not let it go on.
        """
        if pacer is None:
            # Every time it takes twice as long until it is asked again.
            stall_s = self._patience_s * 2**TRIES
            pacer = Pacer(Limits(0.0, math.inf, stall_s), Cap(None))
        pacer.begin()
        with self._transfer() as (xfer, transfer):

            def ask(first: int, n: int) -> None:
                request = BlobRequest(xfer=xfer, sha256=sha256, size=size, start=first, n=n)
                self._send("blob", encode(request))

            flow = _Flow(transfer, ask, pacer, self._window, self._patience_s)
            try:
                yield from flow.blocks(size, start, start + count)
            finally:
                self._window = flow.window

    @contextmanager
    def _transfer(self) -> Iterator[tuple[str, _Transfer]]:
        xfer, transfer = secrets.token_hex(8), _Transfer()
        self._open[xfer] = transfer
        try:
            yield xfer, transfer
        finally:
            del self._open[xfer]

    def _send(self, kind: str, payload: bytes) -> None:
        if not self._say(kind, payload):
            raise UnreachableError("the fleet cannot be reached", why="there is no link")

    def _wait(
        self, transfer: _Transfer, done: Callable[[], bool], again: Callable[[], None]
    ) -> None:
        """Wait until DONE; a broker may drop a message, so ask AGAIN before giving up."""
        for attempt in range(TRIES):
            if attempt:
                again()
            deadline = time.monotonic() + self._patience_s
            with transfer.changed:
                while not done():
                    if transfer.aborted:
                        raise UnreachableError("the link was lost in the middle of a transfer")
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    transfer.changed.wait(left)
                else:
                    return
        raise UnreachableError("the fleet does not answer", why="a transfer stands still")


def _is_number(index: str) -> bool:
    return index.isascii() and index.isdigit() and len(index) < 12


def _check_length(head: Head, name: str, max_length: int) -> None:
    if head.status != 200:
        raise UnreachableError("the fleet cannot answer now", why=f"status {head.status}")
    if head.size > max_length:
        raise TrustError("endless_data", f"{name} has {head.size} bytes, {max_length} are allowed")


class _Flow:
    """The blocks of one run, asked for in a window that follows the link."""

    def __init__(
        self,
        transfer: _Transfer,
        ask: Callable[[int, int], None],
        pacer: Pacer,
        window: Window,
        patience_s: float,
    ) -> None:
        self._transfer, self._ask, self._pacer = transfer, ask, pacer
        self._patience_s = patience_s
        self._asked_at: dict[int, float] = {}
        self.window = window
        transfer.exact = True

    def blocks(self, size: int, start: int, end: int) -> Iterator[bytes]:
        """Yield the blocks from START to END of a blob of SIZE bytes."""
        asked = start
        for index in range(start, end):
            while asked < end and asked < index + self.window.size:
                step = min(self._step(), end - asked)
                if asked > index and asked + step > index + self.window.size:
                    break
                self._request(asked, step, size)
                asked += step
            block = self._await(index)
            self._pacer.arrived(len(block))
            yield block

    def _step(self) -> int:
        return max(1, min(STEP, self.window.size // 2))

    def _request(self, first: int, count: int, size: int) -> None:
        blocks = {i: min(BLOCK_SIZE, size - i * BLOCK_SIZE) for i in range(first, first + count)}
        self._pacer.ask(sum(blocks.values()))
        with self._transfer.changed:
            self._transfer.wanted.update(blocks)
        self._ask(first, count)
        self._asked_at.update(dict.fromkeys(blocks, time.monotonic()))

    def _await(self, index: int) -> bytes:
        transfer, patience_s = self._transfer, self._patience_s
        again_at = time.monotonic() + patience_s
        while (block := self._look(index)) is None:
            self._pacer.look()
            if time.monotonic() >= again_at:
                self._ask_again()
                patience_s *= 2
                again_at = time.monotonic() + patience_s
        took_s = transfer.came.pop(index) - self._asked_at.pop(index)
        self.window = self.window.after(took_s)
        # On a link that needs long for a block, one that is under way must not be taken for lost.
        self._patience_s = max(self._patience_s, PATIENCE_TURNS * took_s)
        return block

    def _look(self, index: int) -> bytes | None:
        """Return the block INDEX, after a short wait at most; None if it is not here."""
        transfer = self._transfer
        with transfer.changed:
            transfer.awaited = index
            if index not in transfer.blocks and not (transfer.aborted or transfer.refused):
                transfer.changed.wait(min(LOOK_S, self._patience_s))
            block = transfer.blocks.pop(index, None)
            if block is None and transfer.aborted:
                raise UnreachableError("the link was lost in the middle of a transfer")
            if block is None and transfer.head is not None and transfer.refused:
                raise IntegrityError(
                    "the fleet does not have the blob",
                    why=f"status {transfer.head.status}",
                    reason="blob_missing",
                )
            return block

    def _ask_again(self) -> None:
        with self._transfer.changed:
            missing = sorted(self._transfer.wanted)
        for first, count in _runs(missing):
            self._ask(first, count)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield first and length of every run in the sorted NUMBERS, STEP long at most."""
    first = count = 0
    for number in numbers:
        if count and number == first + count and count < STEP:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
