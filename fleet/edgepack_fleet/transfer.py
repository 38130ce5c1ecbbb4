"""Answers requests for metadata and content in blocks. Reads only; keeps nothing about devices.

The device sets the pace: it asks for a window of blocks and asks again for what did not arrive,
so that blocks need no acknowledgement and nothing is remembered here.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgepack import messages, topics
from edgepack.errors import IntegrityError
from edgepack.topics import BLOCK_SIZE
from edgepack_fleet.adapters.content import Content
from edgepack_fleet.adapters.mqtt import Incoming

__all__ = ["KINDS", "Piece", "Transfer"]

KINDS = frozenset({"meta", "blob"})
XFER = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A transfer's name becomes a level of a topic: nothing that means something there."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """A message of an answer. Blocks of content go out with QoS 0: the device asks again."""

    topic: str
    payload: bytes
    qos: int


class Transfer:
    """Reads metadata and content for devices.

    Args:
        image: Returns a file of the image repository by its name.
        director: Returns a file of a device's own repository, by device and name.
        content: The blobs.
    """

    def __init__(
        self,
        image: Callable[[str], bytes | None],
        director: Callable[[str, str], bytes | None],
        content: Content,
    ) -> None:
        self._image, self._director, self._content = image, director, content
        self.refused: Counter[str] = Counter()
        """Requests that were not answered, by cause."""

    def answer(self, message: Incoming) -> Iterator[Piece]:
        """Yield the answer to the request in MESSAGE; nothing if it cannot be read."""
        uplink = topics.parse_up(message.topic)
        if uplink is None:
            return
        try:
            if uplink.kind == "meta":
                request = messages.decode(message.payload, messages.MetaRequest)
                yield from self._metadata(uplink.device, request)
            else:
                wanted = messages.decode(message.payload, messages.BlobRequest)
                yield from self._content_blocks(uplink.device, wanted)
        except IntegrityError as error:
            self.refused[error.reason] += 1

    def _metadata(self, device: str, request: messages.MetaRequest) -> Iterator[Piece]:
        base = _base(device, "meta", request.xfer)
        data = (
            self._image(request.name)
            if request.repo == "image"
            else self._director(device, request.name)
        )
        if data is None:
            yield _head(base, 404)
            return
        yield _head(base, 200, len(data))
        for index in range(0, len(data), BLOCK_SIZE):
            yield Piece(f"{base}/{index // BLOCK_SIZE}", data[index : index + BLOCK_SIZE], 1)

    def _content_blocks(self, device: str, request: messages.BlobRequest) -> Iterator[Piece]:
        base = _base(device, "blob", request.xfer)
        size = self._content.size(request.sha256)
        if size is None:
            yield _head(base, 404)
        elif size != request.size or request.start * BLOCK_SIZE >= size:
            yield _head(base, 416, size)
        else:
            first, end = request.start * BLOCK_SIZE, (request.start + request.n) * BLOCK_SIZE
            blocks = self._content.pieces(request.sha256, first, min(end, size), BLOCK_SIZE)
            for index, block in enumerate(blocks, request.start):
                yield Piece(f"{base}/{index}", block, 0)


def _base(device: str, kind: str, xfer: str) -> str:
    if not XFER.fullmatch(xfer):
        raise IntegrityError("not a name for a transfer", reason="bad_message")
    return topics.down(device, f"{kind}/{xfer}")


def _head(base: str, status: int, size: int = 0) -> Piece:
    return Piece(f"{base}/head", messages.encode(messages.Head(status=status, size=size)), 1)
