"""Thousands of MQTT connections and timers in one thread, on one selector.

The library's own loop is a thread for each client; here its reading and writing is called when a
socket is ready. What it costs was measured, see the decision on simulation.
"""

import contextlib
import heapq
import itertools
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

__all__ = ["Connection", "Endpoint", "Hub", "Listener", "Opening"]

KEEPALIVE_S = 240
CARE_S = 20.0
"""Seconds in which every connection is looked after once: pings, and pings that had no answer."""
LONGEST_WAIT_S = 0.5
READS = 64


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the broker is: a socket in the file system, or an address that wants certificates."""

    host: str
    port: int = 0

    @property
    def local(self) -> bool:
        """Whether it is a socket of this machine."""
        return self.port == 0


class Listener(Protocol):
    """What is told of a connection."""

    def up(self) -> None:
        """Say that the broker has accepted it and its subscription."""

    def heard(self, topic: str, payload: bytes) -> None:
        """Take a message."""

    def down(self) -> None:
        """Say that it is gone, or was refused."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a connection begins with."""

    name: str
    subscribe: str
    will: tuple[str, bytes]
    tls: ssl.SSLContext | None = None


class Hub:
    """Turns the selector and the clock.

    Args:
        endpoint: The broker of all connections.
        clock: Monotonic seconds.
    """

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoint, self.clock = endpoint, clock
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._open: dict[Connection, None] = {}
        self._care: list[Connection] = []
        self._cared = clock()
        self._inbox, self._bell = socket.socketpair()
        self._inbox.setblocking(False)
        self._posted: list[Callable[[], None]] = []
        self._selector.register(self._inbox, selectors.EVENT_READ, None)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call CALL in SECONDS."""
        heapq.heappush(self._timers, (self.clock() + seconds, next(self._count), call))

    def post(self, call: Callable[[], None]) -> None:
        """Call CALL soon in the hub's thread; from any thread."""
        self._posted.append(call)
        with contextlib.suppress(BlockingIOError):
            self._bell.send(b"!")

    def open(self, opening: Opening, listener: Listener) -> "Connection":
        """Connect.

        Raises:
            OSError: the broker cannot be reached, or refuses the handshake.
        """
        connection = Connection(self, opening, listener)
        self._open[connection] = None
        self._selector.register(connection.socket(), selectors.EVENT_READ, connection)
        return connection

    def turn(self) -> None:
        """Do what is due, or wait a moment for it."""
        for key, events in self._selector.select(self._pause()):
            if key.data is None:
                self._deliver()
            else:
                key.data.ready(events)
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        self._look_after(now)

    def close(self) -> None:
        """End all connections as if the cable was pulled."""
        for connection in list(self._open):
            connection.drop()
        self._selector.close()
        self._inbox.close()
        self._bell.close()

    def watch(self, connection: "Connection", *, writing: bool) -> None:
        """Wait for CONNECTION to be readable, and writable too if WRITING."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        self._selector.modify(connection.socket(), events, connection)

    def forget(self, connection: "Connection", sock: socket.socket) -> None:
        """Watch CONNECTION over SOCK no longer."""
        self._open.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def _pause(self) -> float:
        if not self._timers:
            return LONGEST_WAIT_S
        return min(LONGEST_WAIT_S, max(0.0, self._timers[0][0] - self.clock()))

    def _deliver(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._inbox.recv(4096)
        calls, self._posted = self._posted, []
        for call in calls:
            call()

    def _look_after(self, now: float) -> None:
        share = int(len(self._open) * (now - self._cared) / CARE_S)
        if not share:
            return
        self._cared = now
        if not self._care:
            self._care = list(self._open)
        batch, self._care = self._care[:share], self._care[share:]
        for connection in batch:
            connection.look_after()


@dataclass(eq=False, slots=True)
class Connection:
    """One connection: open from its making to its end, and never again."""

    hub: Hub
    opening: Opening
    listener: Listener
    accepted: bool = False
    _client: paho.Client = field(init=False)
    _socket: Any = field(init=False)
    _writing: bool = False

    def __post_init__(self) -> None:
        self._client = self._make_client()
        where = self.hub.endpoint
        self._client.connect(where.host, where.port or 1883, KEEPALIVE_S)
        self._socket = self._client.socket()
        if self._socket is None:
            raise ConnectionError("the broker ended the connection")

    def socket(self) -> Any:
        """Return the socket."""
        return self._socket

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send PAYLOAD to TOPIC; return whether it is on its way."""
        if not self.accepted:
            return False
        sent = self._client.publish(topic, payload, 1, retain)
        self._flush()
        return sent.rc == paho.MQTT_ERR_SUCCESS

    def ready(self, events: int) -> None:
        """Read or write as far as the socket goes."""
        if events & selectors.EVENT_READ:
            self._client.loop_read()
            # What TLS has decrypted already does not make a socket readable again.
            for _ in range(READS if self.opening.tls else 0):
                if self._client.socket() is None or not self._socket.pending():
                    break
                self._client.loop_read()
        if self._client.socket() is not None:
            self._flush()

    def look_after(self) -> None:
        """Ping if it is time to, and notice that an answer is missing."""
        self._client.loop_misc()
        if self._client.socket() is not None:
            self._flush()

    def drop(self) -> None:
        """End it without a goodbye; the broker tells the will. The listener is not told."""
        self.accepted = False
        self.hub.forget(self, self._socket)
        self._client.on_disconnect = None
        with contextlib.suppress(OSError):
            self._socket.close()

    def leave(self) -> None:
        """End it with a goodbye; the listener is not told."""
        self._client.on_disconnect = None
        self._client.disconnect()
        self._flush()
        self.drop()

    def _flush(self) -> None:
        if self._client.want_write():
            self._client.loop_write()
        if self._client.socket() is None:
            return
        if self._writing != self._client.want_write():
            self._writing = not self._writing
            self.hub.watch(self, writing=self._writing)

    def _make_client(self) -> paho.Client:
        local = self.hub.endpoint.local
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.opening.name,
            transport="unix" if local else "tcp",
            reconnect_on_failure=False,
        )
        if self.opening.tls is not None:
            client.tls_set_context(self.opening.tls)
        else:
            client.username_pw_set(self.opening.name)
        topic, payload = self.opening.will
        client.will_set(topic, payload, 1, retain=True)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_disconnect = self._lost
        return client

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _more: Any
    ) -> None:
        if not reason.is_failure:
            client.subscribe(self.opening.subscribe, 1)

    def _subscribed(self, *_: Any) -> None:
        self.accepted = True
        self.listener.up()

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self.listener.heard(message.topic, bytes(message.payload))

    def _lost(self, *_: Any) -> None:
        self.accepted = False
        self.hub.forget(self, self._socket)
        self.listener.down()
