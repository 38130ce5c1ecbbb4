"""The fleet's connection to the broker: keeps it up, hands messages in, sends messages out.

Acknowledges by hand: a message is taken from the broker only after what it says is in the
database. Reconnects on its own, with full jitter. Reads no payload.

Alone, it keeps a session on the broker, which holds what devices say while it is away. Beside
other workers it has none, so that nothing waits for one that is gone: the broker divides what
devices say among those that are there (MQTT 5, `$share`), and only the leader hears births and
wills, in order and with those the broker has retained. A broker that cannot do that tells
everything to the leader.
"""

import contextlib
import logging
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgepack.topics import PREFIX, UPLINK_FILTER
from edgepack_fleet.adapters.broker import UPLINK_KINDS, Address
from edgepack_fleet.adapters.pki import FLEET

__all__ = ["Identity", "Incoming", "Link"]

CONN = f"{PREFIX}/d/+/up/conn"
WORK = tuple(f"{PREFIX}/d/+/up/{kind}" for kind in UPLINK_KINDS if kind != "conn")
"""What any worker can do."""
KEEPALIVE_S = 30
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
ANSWER_S = 5.0
"""Seconds in which a broker must have taken us."""
CONFIRM_S = 5.0
INFLIGHT = 1000
PIECES, PACE_S = 32, 0.1
"""Blocks of content that are on their way at a time, and how long a look at the oldest takes."""
READS = 32
"""Packets that are read before something is written."""
QUEUED = 20_000
"""Messages that wait in memory while the broker is away; what must not get lost is in the
database."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Paths of the CA, of our certificate and of its key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message of a device, as it came."""

    topic: str
    payload: bytes
    mid: int = 0
    qos: int = 0
    session: int = 0
    """Which of our connections it came on; it can be acknowledged on that one only."""
    retained: bool = False
    """Said at some earlier time and kept by the broker."""


class Link:
    """The connection, in threads of its own.

    Args:
        address: The broker.
        identity: Who we are.
        on_message: Called from the network thread for every uplink; must not block for long.
        on_connected: Called with True and False as the connection comes and goes.
        name: Who we are in the certificate, and so on the broker.
        shared: Whether other workers may be connected, too.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        on_message: Callable[[Incoming], None],
        on_connected: Callable[[bool], None],
        name: str = FLEET,
        *,
        shared: bool = False,
    ) -> None:
        self._address, self._identity, self._name = address, identity, name
        self._shared, self._leads = shared, not shared
        self._protocol = paho.MQTTv5 if shared else paho.MQTTv311
        self._divided = self._answered = False
        """Whether the broker divides what it hears among workers, and whether it took us."""
        self._roles = threading.Lock()
        self._on_message, self._on_connected = on_message, on_connected
        self._session = 0
        self._pieces: deque[tuple[paho.Client, paho.MQTTMessageInfo]] = deque()
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="mqtt-link", daemon=True)
        self._client = self._make_client()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and has not gone since."""
        return self._client.is_connected()

    def start(self) -> None:
        """Connect, now and whenever the connection is lost."""
        self._thread.start()

    def stop(self) -> None:
        """Disconnect and end the threads."""
        self._stop.set()
        self._client.disconnect()
        self._lost.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def reconnect(self) -> None:
        """Connect anew, with the certificate that is there now."""
        self._client.disconnect()

    def lead(self, leads: bool) -> None:
        """Hear what only the leader hears, or no more."""
        with self._roles:
            self._leads = leads
            if not self.connected:
                return  # said on the next connection
            for topic in self._of_leader():
                if leads:
                    self._client.subscribe(topic, qos=1)
                else:
                    self._client.unsubscribe(topic)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1) -> bool:
        """Send PAYLOAD to TOPIC; return whether it is on its way."""
        if not self.connected:
            return False
        sent = self._client.publish(topic, payload, qos=qos)
        return sent.rc == paho.MQTT_ERR_SUCCESS

    def publish_paced(self, topic: str, payload: bytes, *, qos: int) -> None:
        """Send PAYLOAD to TOPIC, when what was sent so before is nearly out.

        Nothing else bounds what waits in memory for a broker that reads slowly. For one thread
        only, and not for the one that brings messages in.
        """
        client = self._client
        if client.is_connected():
            self._pieces.append((client, client.publish(topic, payload, qos=qos)))
        while len(self._pieces) > PIECES:
            # What was left in a connection that is lost will never be out.
            by, oldest = self._pieces.popleft()
            while by is self._client and by.is_connected() and not _published(oldest):
                with contextlib.suppress(RuntimeError, ValueError):
                    oldest.wait_for_publish(PACE_S)

    def publish_all(self, outgoing: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Send pairs of topic and payload; return for each whether the broker has it."""
        if not self.connected:
            return [False] * len(outgoing)
        sent = [self._client.publish(topic, payload, qos=1) for topic, payload in outgoing]
        deadline = time.monotonic() + CONFIRM_S
        for info in sent:
            # Raises if the queue is full or the connection is gone; then it is not published.
            with contextlib.suppress(RuntimeError, ValueError):
                info.wait_for_publish(max(0.0, deadline - time.monotonic()))
        return [_published(info) for info in sent]

    def acknowledge(self, message: Incoming) -> None:
        """Tell the broker that MESSAGE is ours; one of an earlier connection comes again anyway."""
        if message.qos and message.session == self._session:
            self._client.ack(message.mid, message.qos)

    def _make_client(self) -> paho.Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._name,
            # The broker keeps what devices say while we are away, if nobody else hears them.
            clean_session=None if self._protocol == paho.MQTTv5 else self._shared,
            protocol=self._protocol,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.tls_set_context(_tls(self._identity))
        client.max_inflight_messages_set(INFLIGHT)
        client.max_queued_messages_set(QUEUED)
        client.on_socket_open = _no_delay
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        return client

    def _keep_up(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stop.is_set():
            self._lost.clear()
            if self._try():
                if not (self._lost.wait(ANSWER_S) or self._answered):
                    self._client.disconnect()
                self._lost.wait()
                pause = FIRST_PAUSE_S
                if self._shared and not self._answered:
                    # One that does not know MQTT 5 says so, or says nothing at all.
                    older = self._protocol == paho.MQTTv5
                    self._protocol = paho.MQTTv311 if older else paho.MQTTv5
            self._client.loop_stop()
            # Full jitter: a thousand clients of a broker that restarts do not come at once.
            self._stop.wait(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _try(self) -> bool:
        # A new one every time: a client that is started again leaks its sockets. What waited in
        # it is said again, because the database still says so or the device asks again.
        self._client, self._answered = self._make_client(), False
        try:
            self._client.connect(
                self._address.host, self._address.port, KEEPALIVE_S, **self._terms()
            )
        except (OSError, ssl.SSLError):
            return False
        self._client.loop_start()
        return True

    def _terms(self) -> dict[str, Any]:
        """Return what else is agreed on with a broker of MQTT 5."""
        if self._protocol != paho.MQTTv5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = INFLIGHT
        return {"clean_start": True, "properties": properties}

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            return
        self._session += 1
        self._answered = True
        can_divide = getattr(properties, "SharedSubscriptionAvailable", 1) == 1
        self._divided = self._protocol == paho.MQTTv5 and can_divide
        self._on_connected(True)
        with self._roles:
            for topic in (*self._of_all(), *(self._of_leader() if self._leads else ())):
                client.subscribe(topic, qos=1)

    def _of_all(self) -> tuple[str, ...]:
        """Return the filters of what the broker divides among all workers."""
        return tuple(f"$share/{FLEET}/{topic}" for topic in WORK) if self._divided else ()

    def _of_leader(self) -> tuple[str, ...]:
        return (CONN,) if self._divided else (UPLINK_FILTER,)

    def _disconnected(self, *said: Any) -> None:
        log.info("the connection to the broker has ended: %s", said[3])
        self._on_connected(False)
        self._lost.set()

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_message(
            Incoming(
                message.topic,
                bytes(message.payload),
                message.mid,
                message.qos,
                self._session,
                message.retain,
            )
        )


class _Client(paho.Client):
    """A client that reads and writes by turns."""

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read the packets that are here, `READS` at most, whatever MAX_PACKETS says.

        The library reads as many as it has messages on their way out. With ten thousand devices
        to be answered that was longer without a word than the broker bears, and then it all began
        anew. With few it read one and wrote all there was, so that whoever asked for much content
        kept everybody's messages waiting.
        """
        for _ in range(READS):
            if self.socket() is None:
                return MQTTErrorCode.MQTT_ERR_NO_CONN
            code = self._packet_read()
            if code == MQTTErrorCode.MQTT_ERR_AGAIN:
                break
            if code:
                return self._loop_rc_handle(code)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _published(info: paho.MQTTMessageInfo) -> bool:
    try:
        return info.is_published()
    except (RuntimeError, ValueError):
        return False


def _tls(identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(identity.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(identity.certificate, identity.key)
    return context


def _no_delay(_client: paho.Client, _data: Any, sock: Any) -> None:
    # Small messages wait for nothing: ten times less latency on requests for metadata.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
