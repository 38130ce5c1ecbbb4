"""Takes connections on inherited sockets and gives each a thread. Binds nothing, knows no route.

Taking connections is switched on and off without touching the shared listening sockets, so that
two runners can hand over without losing a request: the new one takes connections before the old
one stops.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterable

from edgepack_agent.runner.connection import App, Connection

__all__ = ["MAX_CONNECTIONS", "Server"]

_LINGER_S = 1.0
"""How long a drained connection may be idle: a busy client has asked again by then, was told
`Connection: close` in the answer, and has gone to the next runner."""
_POLL_S = 0.02
_SWEEP_S = 0.1
MAX_CONNECTIONS = 128
"""Then who has asked for nothing longest has to go: threads and memory end somewhere."""


class Server:
    """A set of listening sockets that can be taken from, or not."""

    def __init__(self, app: App, listeners: Iterable[socket.socket]) -> None:
        self._app, self._listeners = app, list(listeners)
        self._connections: set[Connection] = set()
        self._leaving = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sweeping: asyncio.Task[None] | None = None
        self.accepting = False

    def accept(self) -> None:
        """Take connections from now on."""
        self.accepting = True
        self._let_stay()
        loop = asyncio.get_running_loop()
        self._sweeping = self._sweeping or loop.create_task(self._sweep())
        for listener in self._listeners:
            listener.setblocking(False)
            loop.add_reader(listener, self._take, listener)

    def refuse(self) -> None:
        """Take no more connections; whoever waits in the queues is left to the next runner."""
        self.accepting = False
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)

    async def drained(self, within_s: float) -> bool:
        """Wait until the last connection is answered and closed.

        What is not finished within WITHIN_S seconds is cut off. False: connections are taken
        again, so there is no last one.
        """
        start, told = time.monotonic(), False
        while self._connections and not self.accepting:
            waited = time.monotonic() - start
            if waited > _LINGER_S and not told:
                told = True
                os.eventfd_write(self._leaving, 1)
            if waited > within_s:
                for connection in list(self._connections):
                    connection.cut_off()
                return not self.accepting
            await asyncio.sleep(_POLL_S)
        return not self.accepting

    def _let_stay(self) -> None:
        try:
            os.eventfd_read(self._leaving)
        except BlockingIOError:
            return  # nobody was told to leave

    async def _sweep(self) -> None:
        """Refuse what is late, for as long as there is anything to answer."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in list(self._connections):
                connection.expire(now)
                if connection.over:  # a drain waits for answers, not for a model that hangs
                    self._connections.discard(connection)

    def _take(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # another runner was quicker, or the client has gone
        if len(self._connections) >= MAX_CONNECTIONS and not self._made_room():
            sock.close()
            return
        sock.setblocking(True)
        connection = Connection(sock, self._app, self._leaving, lambda: not self.accepting)
        self._connections.add(connection)
        try:
            threading.Thread(
                target=self._serve, args=(connection,), name="connection", daemon=True
            ).start()
        except RuntimeError:  # there are as many threads as there may be
            self._connections.discard(connection)
            sock.close()

    def _made_room(self) -> bool:
        """Have one connection end that asks for nothing; return whether there was one."""
        free = {
            connection: since
            for connection in list(self._connections)
            if (since := connection.free_since) is not None
        }
        if not free:
            return False
        min(free, key=free.__getitem__).let_go()
        return True

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            self._connections.discard(connection)
