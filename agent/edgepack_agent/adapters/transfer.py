"""Metadata and blobs over messages: ask, wait, collect. Knows topics' tails, no broker.

The device paces: a window of blocks is asked for, and more only as they come. Whatever was not
asked for, comes twice or is too long is dropped. No answer is an `UnreachableError`, soon after
the link is lost at once; the caller keeps what it has and asks again for the rest.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

from edgepack.errors import IntegrityError, UnreachableError
from edgepack.messages import BlobRequest, Head, MetaRequest, decode, encode
from edgepack.topics import BLOCK_SIZE
from edgepack.trust import TrustError

__all__ = ["Say", "Transfers"]

Say = Callable[[str, bytes], bool]
"""Sends a payload about a kind (`meta`, `blob`); False: the link is down."""

WINDOW = 16
STEP = 8
"""Blocks asked for with one request."""
PATIENCE_S = 5.0
TRIES = 3


class _Transfer:
    """One answer that is being collected."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.wanted: set[int] = set()
        self.blocks: dict[int, bytes] = {}
        self.head: Head | None = None
        self.aborted = False

    def feed(self, index: str, payload: bytes) -> None:
        with self.changed:
            if index == "head":
                self.head = decode(payload, Head)
            elif _is_number(index) and len(payload) <= BLOCK_SIZE and int(index) in self.wanted:
                self.wanted.discard(int(index))
                self.blocks[int(index)] = payload
            self.changed.notify_all()

    def abort(self) -> None:
        with self.changed:
            self.aborted = True
            self.changed.notify_all()

    def here(self, index: int) -> bool:
        """Say whether the block INDEX is here, or will never be."""
        refused = self.head is not None and self.head.status != 200
        return refused or index in self.blocks


class Transfers:
    """All transfers of one link.

    Args:
        say: Sends a request.
        patience_s: Seconds without a block before it is asked for again.
    """

    def __init__(self, say: Say, patience_s: float = PATIENCE_S) -> None:
        self._say, self._patience_s = say, patience_s
        self._open: dict[str, _Transfer] = {}
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
            transfer.wanted.update(blocks)

            def ask() -> None:
                self._send("meta", encode(MetaRequest(xfer=xfer, repo=kind, name=name)))

            ask()
            self._wait(transfer, lambda: transfer.head is not None, ask)
            head = transfer.head
            if head is None or head.status == 404:
                return None
            _check_length(head, name, max_length)
            count = -(-head.size // BLOCK_SIZE)
            self._wait(transfer, lambda: len(transfer.blocks) >= count, ask)
            return b"".join(transfer.blocks[index] for index in range(count))

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        """Yield COUNT blocks of a blob from block START, in order.

        Raises:
            UnreachableError: no answer, or none any more.
            IntegrityError: the fleet does not have the blob (reason `blob_missing`).
        """
        with self._transfer() as (xfer, transfer):

            def ask(first: int, n: int) -> None:
                request = BlobRequest(xfer=xfer, sha256=sha256, size=size, start=first, n=n)
                self._send("blob", encode(request))

            asked, end = start, start + count
            for index in range(start, end):
                while asked < end and asked + STEP <= index + WINDOW:
                    step = min(STEP, end - asked)
                    with transfer.changed:
                        transfer.wanted.update(range(asked, asked + step))
                    ask(asked, step)
                    asked += step
                here = partial(transfer.here, index)
                self._wait(transfer, here, partial(ask, index, asked - index))
                yield _block(transfer, index, sha256)

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


def _block(transfer: _Transfer, index: int, sha256: str) -> bytes:
    with transfer.changed:
        block = transfer.blocks.pop(index, None)
    if block is None:
        raise IntegrityError(
            f"the fleet does not have the blob {sha256[:12]}", reason="blob_missing"
        )
    return block
