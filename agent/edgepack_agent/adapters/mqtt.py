"""The device's connection to its broker: TLS both ways, kept up, full jitter. Reads no payload.

Publishes only while there is a connection: what must not get lost is in the outbox or the
journal, never in a queue in memory. A birth is retained, and the will of the same connection
takes it back. QoS 1, MQTT 3.1.1.
"""

import contextlib
import logging
import random
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edgepack import topics
from edgepack.errors import EdgepackError
from edgepack.messages import MAX_MESSAGE, Conn, encode
from edgepack_agent.adapters.identity import Identity
from edgepack_agent.adapters.transfer import Transfers

__all__ = ["Heard", "Link", "LinkChanged"]

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
CONNECT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LAST_WORDS_S = 2.0
UNACKED_MS = 20_000
"""A peer that does not acknowledge bytes for this long is gone, whatever the socket says."""


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link came up, or went down."""

    up: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """A message for us: its KIND (`job/notify`, `ack`, ...) and its content."""

    kind: str
    payload: bytes


class Link:
    """The connection, in threads of its own.

    Args:
        identity: Who we are.
        broker: Host and port.
        birth: Called for every connection: what else to say in the birth.
        post: Called from the network thread with what happens; must not block.

    Attributes:
        transfers: Metadata and blobs over this link.
    """

    def __init__(
        self,
        identity: Identity,
        broker: tuple[str, int],
        birth: Callable[[], dict[str, Any]],
        post: Callable[[LinkChanged | Heard], None],
    ) -> None:
        self._identity, self._broker = identity, broker
        self._birth, self._post = birth, post
        self._conn = "-"
        self._up = False
        self._newer = False
        """Whether the connection is made with the pair that has not been used yet."""
        self._stop, self._lost, self._hurry = (threading.Event() for _ in range(3))
        self._prefix = topics.down(identity.device, "")
        self._client = _Client(identity.device, self._lost.set)
        self._thread = threading.Thread(target=self._keep_up, name="link", daemon=True)
        self.transfers = Transfers(self.say)

    @property
    def connected(self) -> bool:
        """Whether messages can be sent and will be heard."""
        return self._up

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        self._thread.start()

    def stop(self) -> None:
        """Take the birth back, disconnect, end the threads."""
        self._stop.set()
        self._hurry.set()
        if self._up:
            last = self._client.publish(*self._conn_message(online=False), qos=1, retain=True)
            # A clean end has no will: what is not taken back now stays online for ever.
            with contextlib.suppress(ValueError, RuntimeError):
                last.wait_for_publish(LAST_WORDS_S)
            self._client.disconnect()
        self._lost.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def hurry(self) -> None:
        """Connect now, if there is a pause between two tries: somebody knows that it will work."""
        if not self._up:
            self._hurry.set()

    def renew(self) -> None:
        """Connect anew, with the pair that has not been used yet."""
        if self._up:
            self._client.disconnect()
        self._hurry.set()

    def say(self, kind: str, payload: bytes) -> bool:
        """Send PAYLOAD about KIND; return whether it is on its way."""
        if not self._up:
            return False
        topic = topics.up(self._identity.device, kind)
        return self._client.publish(topic, payload, qos=1).rc == paho.MQTT_ERR_SUCCESS

    def announce(self) -> None:
        """Say the birth again, because what it tells has changed."""
        if self._up:
            self._client.publish(*self._conn_message(online=True), qos=1, retain=True)

    def _make_client(self) -> "_Client":
        client = _Client(self._identity.device, self._lost.set)
        client.connect_timeout = CONNECT_S
        client.tls_set_context(self._identity.tls(newer=self._newer))
        client.will_set(*self._conn_message(online=False), qos=1, retain=True)
        client.on_socket_open = _tune
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        return client

    def _keep_up(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stop.is_set():
            self._lost.clear()
            if self._try():
                self._lost.wait()
                self._client.loop_stop()
            pause = FIRST_PAUSE_S if self._was_up() else min(2 * pause, LONGEST_PAUSE_S)
            # Full jitter: a thousand devices whose broker restarts do not come at once.
            self._hurry.wait(random.uniform(0, pause))  # noqa: S311 - no secret
            self._hurry.clear()

    def _was_up(self) -> bool:
        """Say whether the connection that just ended had come up, and forget it."""
        was, self._up = self._up, False
        if was:
            self.transfers.abort()
            self._post(LinkChanged(up=False))
        return was

    def _try(self) -> bool:
        """Begin a connection, with a client of its own: nothing of the last one is left in it."""
        self._conn = secrets.token_hex(8)
        # In turns: whichever of the two works ends the search.
        self._newer = self._identity.has_newer and not self._newer
        try:
            self._client = self._make_client()
            self._client.connect(*self._broker, keepalive=KEEPALIVE_S)
        except (OSError, ValueError, EdgepackError) as error:
            log.info("no link to %s:%d: %s", *self._broker, error)
            return False
        self._client.loop_start()
        return True

    def _conn_message(self, *, online: bool) -> tuple[str, bytes]:
        facts = self._birth() if online else {}
        message = Conn(online=online, conn=self._conn, **facts)
        return topics.up(self._identity.device, "conn"), encode(message)

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            log.warning("the broker refuses us: %s", reason)
            return
        hint = topics.group_hint(self._identity.group)
        client.subscribe([(topics.device_filter(self._identity.device), 1), (hint, 1)])

    def _subscribed(
        self, client: paho.Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any
    ) -> None:
        if reasons[0].is_failure:
            log.warning("the broker does not let us listen: %s", reasons[0])
            client.disconnect()
            return
        if self._newer:
            self._newer = False
            self._promote()
        # Only now will answers be heard; asking earlier could miss them.
        self._up = True
        self.announce()
        self._post(LinkChanged(up=True))

    def _promote(self) -> None:
        try:
            self._identity.promote()
        except OSError as error:
            # It is tried again; a disk that fails must not keep a device from its fleet.
            log.warning("the new certificate works and cannot be kept: %s", error)
            return
        log.info("the new certificate has worked; the old one is gone")

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        block, payload = topics.parse_block(message.topic), bytes(message.payload)
        if len(payload) > MAX_MESSAGE:
            return
        if block is not None:
            self.transfers.feed(block[1], block[2], payload)
        elif message.topic.startswith(self._prefix):
            self._post(Heard(message.topic.removeprefix(self._prefix), payload))
        else:
            self._post(Heard("hint", payload))


class _Client(paho.Client):
    """One connection. ENDED is called when its thread ends, whatever has ended it.

    What a broker says may be anything; paho's thread dies of some of it without a word.
    """

    def __init__(self, device: str, ended: Callable[[], None]) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=device,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        self._ended = ended

    def loop_forever(
        self, timeout: float = 1.0, retry_first_connection: bool = False
    ) -> MQTTErrorCode:
        """Serve the connection until it ends."""
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # noqa: BLE001 - nothing may end the link for ever
            log.warning("the link broke: %s: %s", type(error).__name__, error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        finally:
            if (peer := self.socket()) is not None:
                peer.close()
            self._ended()


def _tune(_client: paho.Client, _data: Any, sock: Any) -> None:
    # Small messages wait for nothing: ten times less latency on requests for metadata.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
