"""Takes connections on inherited sockets and gives them to uvicorn's HTTP protocol.

Binds nothing, knows no route. uvicorn's own `Server` is left aside: closing its listeners can
drop a connection that the kernel has already accepted, and it closes idle keep-alive
connections under the client's hands. Here taking connections is switched on and off without
touching the shared listening sockets, so that two runners can hand over without losing a
request: the new one takes connections before the old one stops.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

__all__ = ["MAX_CONNECTIONS", "App", "Server"]

App = Callable[..., Coroutine[Any, Any, None]]
_KEEP_ALIVE_S = 75
_LINGER_S = 1.0
"""How long a drained connection may be idle: a busy client has asked again by then, was told
`Connection: close` in the answer, and has gone to the next runner."""
_POLL_S = 0.02
MAX_CONNECTIONS = 128
"""Then whoever asks for nothing has to go: descriptors and memory end somewhere."""


class Server:
    """A set of listening sockets that can be taken from, or not."""

    def __init__(self, app: App, listeners: Iterable[socket.socket]) -> None:
        self._config = Config(
            app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S, server_header=False, date_header=False,
            proxy_headers=False,
        )  # fmt: skip
        self._state = ServerState()
        self._listeners = list(listeners)
        self._arriving: set[asyncio.Task[Any]] = set()
        self.accepting = False

    def accept(self) -> None:
        """Take connections from now on."""
        self.accepting = True
        for listener in self._listeners:
            listener.setblocking(False)
            asyncio.get_running_loop().add_reader(listener, self._take, listener)

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
        loop = asyncio.get_running_loop()
        start = loop.time()
        while (self._arriving or self._state.connections) and not self.accepting:
            waited = loop.time() - start
            if waited > _LINGER_S:
                self._close_idle()
            if waited > within_s:
                self._cut_off()
            await asyncio.sleep(_POLL_S)
        return not self.accepting

    def _close_idle(self) -> None:
        for connection in list(self._state.connections):
            connection.shutdown()

    def _cut_off(self) -> None:
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _take(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # another runner was quicker, or the client has gone
        if len(self._state.connections) + len(self._arriving) >= MAX_CONNECTIONS:
            self._close_idle()
            connection.close()
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def _protocol(self) -> HttpToolsProtocol:
        return HttpToolsProtocol(self._config, self._state, {})
