"""Ends the session a device has open on the broker, by being that device for a moment.

A broker keeps one session per name and drops the older one. It also knows certificates only at a
handshake, so the revocation list alone leaves an open session as it is. Needs nothing of the
broker but its port, wherever it runs.
"""

import contextlib
import socket
import ssl
import threading
from typing import Any, Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.pki import Pki

__all__ = ["Outcome", "end_session"]

Outcome = Literal["ended", "list_ignored", "unreachable"]
"""`list_ignored`: ended, but the broker would let a revoked certificate in again."""
ANSWER_S = 5.0


def end_session(pki: Pki, broker: Address, device: str) -> Outcome:
    """End the session of DEVICE, whose certificates are on the revocation list already.

    The certificate used for that is revoked right after, and must then be refused: the proof that
    the broker reads the list.
    """
    with pki.stand_in(device) as (context, serial):
        # The second time with a clean session: the broker keeps nothing of the device.
        for clean in (False, True):
            if not _comes_in(broker, context, device, clean=clean):
                return "unreachable"
        pki.revoke(serial)
        ignored = _comes_in(broker, context, device, clean=True)
    return "list_ignored" if ignored else "ended"


def _comes_in(broker: Address, context: ssl.SSLContext, name: str, *, clean: bool) -> bool:
    """Connect as NAME and leave; return whether the broker accepted."""
    accepted, over = threading.Event(), threading.Event()
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        clean_session=clean,
        protocol=paho.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = ANSWER_S

    def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            accepted.set()
        over.set()

    client.on_connect = connected
    client.on_disconnect = lambda *_: over.set()
    client.tls_set_context(context)
    try:
        client.connect(broker.host, broker.port)
    except (OSError, ssl.SSLError):
        return False
    client.loop_start()
    over.wait(ANSWER_S)
    client.disconnect()
    client.loop_stop()
    with contextlib.suppress(OSError):
        if isinstance(peer := client.socket(), socket.socket):
            peer.close()
    return accepted.is_set()
