"""The runner's end of its control channel: lines and descriptors come, lines go. Reads none.

asyncio's own streams lose the descriptors that come with the bytes.
"""

import asyncio
import socket

__all__ = ["Channel"]

_MOST = 65536
_DESCRIPTORS = 8
"""That may come at once; a command brings one."""


class Channel:
    """A stream socket, one end of a pair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._going = bytearray()
        self._gone = asyncio.Event()

    async def receive(self) -> tuple[bytes, list[int]]:
        """Return what came, and the descriptors that came with it; no bytes: the other is gone."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, _MOST, _DESCRIPTORS)
            except BlockingIOError:
                await self._readable()
            except ConnectionError:
                return b"", []
            else:
                return data, descriptors

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._sock, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._sock)

    def send(self, data: bytes) -> None:
        """Send DATA as soon as it can be taken; never blocks."""
        self._going += data
        self._gone.clear()
        self._flush()

    @property
    def waiting(self) -> int:
        """Bytes that the other has not taken yet."""
        return len(self._going)

    async def sent(self) -> None:
        """Wait until everything has been taken, or nobody is there to take it."""
        if self._going:
            await self._gone.wait()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            del self._going[: self._sock.send(self._going, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self._going.clear()
        if self._going:
            loop.add_writer(self._sock, self._flush)
        else:
            loop.remove_writer(self._sock)
            self._gone.set()
