"""A fleet service as a process that can be killed, and that counts what it sends.

`python -m crashstates.fleet DATA HOST PORT COUNTS` serves until it is killed. Every block of a
blob that goes out adds a line `DEVICE SHA256 BYTES` to the file COUNTS: what a power cut costs is
counted where the bytes come from.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgepack import messages, topics
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.transfer import Piece, Transfer

__all__ = ["main"]


def main() -> None:
    """Serve."""
    data, host, port, counts = sys.argv[1:]
    out = os.open(counts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    answer = Transfer.answer

    def counted(self: Transfer, message: Incoming) -> Iterator[Piece]:
        uplink = topics.parse_up(message.topic)
        for piece in answer(self, message):
            if uplink and uplink.kind == "blob" and not piece.topic.endswith("/head"):
                sha256 = messages.decode(message.payload, messages.BlobRequest).sha256
                os.write(out, f"{uplink.device} {sha256} {len(piece.payload)}\n".encode())
            yield piece

    Transfer.answer = counted  # type: ignore[method-assign]
    service = Service(Settings(Path(data), Address(host, int(port))))
    service.start()
    print("ready", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
