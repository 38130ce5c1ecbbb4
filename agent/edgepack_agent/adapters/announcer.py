"""A connection to the broker of the site, beside the fleet's: tells how the device is.

It takes one wish, `install`, with which the agent looks for a job of its own fleet now; nothing
else can be changed from there. What cannot be told is dropped; nothing waits for this broker.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgepack.errors import UsageError
from edgepack_agent.adapters.sighted import Sighted
from edgepack_agent.core.announcement import (
    INSTALL,
    NOTHING,
    Names,
    Sights,
    discovery,
    messages,
)

__all__ = ["Announcer"]

log = logging.getLogger(__name__)
KEEP_ALIVE_S = 30
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Announcer:
    """Tells a broker.

    Args:
        address: `mqtt://HOST[:PORT]`, or `mqtts://` for TLS with the system's authorities.
        names: Topics.
        agent: Version of the agent.
        login: User and the file with its password; None: none.
        wanted: Called when somebody wants an update to be looked for.
        sights: What is told of what cameras see.
        album: Directory of their pictures.

    Raises:
        UsageError: the address is none, the password cannot be read, or it would go in the
            clear to another machine.
    """

    def __init__(
        self,
        address: str,
        names: Names,
        agent: str,
        login: tuple[str, Path] | None,
        wanted: Callable[[], None],
        sights: Sights = NOTHING,
        album: Path | None = None,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise _wrong(f"{parts.scheme or address} is no mqtt:// or mqtts:// address")
        secure = parts.scheme == "mqtts"
        if login and not secure and parts.hostname not in LOCAL:
            raise _wrong("a password would go in the clear to another machine; use mqtts://")
        self._names, self._agent, self._wanted = names, agent, wanted
        self._sights = sights
        shown = album if sights.pictures else None
        self._sighted = Sighted(names, self._publish, self._show, shown)
        self._showing: mqtt.MQTTMessageInfo | None = None
        self._known: dict[str, str] = {}
        self._status: Mapping[str, Any] = {}
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"edgepack-{names.device}"
        )
        if secure:
            self._client.tls_set()
        if login:
            self._client.username_pw_set(login[0], _password(login[1]))
        self._client.will_set(names.available, "offline", qos=1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_message = self._heard
        self._client.max_queued_messages_set(100)
        self._at = parts.hostname, parts.port or (8883 if secure else 1883)

    def start(self) -> None:
        """Connect, and go on trying."""
        self._client.connect_async(*self._at, keepalive=KEEP_ALIVE_S)
        self._client.loop_start()

    def tell(self, status: Mapping[str, Any]) -> None:
        """Tell STATUS, of `edgepack-agent status`, as far as it is new."""
        self._status = status
        if not self._client.is_connected():
            return
        found = discovery(self._names, self._agent, status, self._sights)
        self._keep({self._names.config: json.dumps(found)})
        self._keep(messages(self._names, status, self._objects))

    def heard(self, runner: object, event: Mapping[str, Any]) -> None:
        """Take a word of RUNNER, and tell what it means for the site."""
        if not self._sights.told:
            return
        before = self._sighted.objects
        self._sighted.heard(runner, event)
        if not self._client.is_connected():
            return
        self._sighted.flush()
        if self._sighted.objects is not before:
            self._keep(messages(self._names, self._status, self._objects))

    def tick(self, status: Mapping[str, Any]) -> None:
        """Tell STATUS, and what could not be told before."""
        self.tell(status)
        if self._client.is_connected():
            self._sighted.flush()

    @property
    def _objects(self) -> Mapping[str, Mapping[str, int]] | None:
        return self._sighted.objects if self._sights.told else None

    def _keep(self, told: Mapping[str, str]) -> None:
        """Let the broker keep what is new in TOLD."""
        for topic, payload in told.items():
            if self._known.get(topic) != payload and self._publish(topic, payload, retain=True):
                self._known[topic] = payload

    def _publish(self, topic: str, payload: str, *, retain: bool = False) -> bool:
        """Say whether PAYLOAD was taken: a broker that is slow gets no more than it can take."""
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        return sent.rc != mqtt.MQTT_ERR_QUEUE_SIZE

    def _show(self, topic: str, picture: bytes) -> None:
        """Tell PICTURE, unless the one before is still under way: it is the memory's bound."""
        last = self._showing
        if last is None or last.rc != mqtt.MQTT_ERR_SUCCESS or last.is_published():
            # Not retained: no broker is to keep a picture of somebody.
            self._showing = self._client.publish(topic, picture, qos=0)

    def close(self) -> None:
        """Say goodbye and disconnect."""
        if self._client.is_connected():
            last = self._client.publish(self._names.available, "offline", qos=1, retain=True)
            last.wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        self._known.clear()
        client.subscribe([(self._names.command, 1), (self._names.born, 1)])
        client.publish(self._names.available, "online", qos=1, retain=True)
        self.tell(self._status)

    def _heard(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == self._names.command and message.payload == INSTALL.encode():
            self._wanted()
        elif message.topic == self._names.born and message.payload == b"online":
            self._known.clear()


def _password(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{path}: {error}") from error


def _wrong(why: str) -> UsageError:
    return UsageError(
        "the broker for events cannot be used",
        why=why,
        fix="check `events` in the configuration",
        reason="bad_events",
    )
