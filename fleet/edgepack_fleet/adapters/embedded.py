"""A broker inside the fleet's process, for a demo on one machine. 127.0.0.1 only.

Certificates are required, and a client is who its certificate says, with the same topics open to
it as on mosquitto. It is still for demos only: the library does not read the revocation list, is
several times slower, loses what is queued when it stops, and lets a client whose certificate is
refused disturb the session of the client it pretended to be.
"""

import asyncio
import logging
import ssl
import threading
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action, ListenerConfig
from amqtt.errors import MQTTError
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session
from cryptography import x509
from cryptography.x509.oid import NameOID

from edgepack.durable import write_file
from edgepack.errors import UnreachableError
from edgepack.topics import PREFIX
from edgepack_fleet.adapters.broker import UPLINK_KINDS, Address, free_port
from edgepack_fleet.adapters.pki import FLEET, Pki

__all__ = ["EmbeddedBroker", "may"]

START_S = 10.0


def may(client: str, action: str, topic: str) -> bool:
    """Return whether CLIENT may do ACTION (`publish`, `subscribe` or `receive`) on TOPIC."""
    levels = topic.split("/")
    if client == FLEET or client.startswith(f"{FLEET}."):  # no device has a dot in its name
        return levels[:2] == PREFIX.split("/")
    if action == "publish":
        return topic in {f"{PREFIX}/d/{client}/up/{kind}" for kind in UPLINK_KINDS}
    own = topic.startswith(f"{PREFIX}/d/{client}/dn/")
    return own or (levels[:3] == [*PREFIX.split("/"), "g"] and levels[4:] == ["dn", "hint"])


class CertificateOnly(BaseAuthPlugin):  # type: ignore[misc]
    """Lets in whoever came past the check of certificates."""

    async def authenticate(self, *, session: Session) -> bool | None:
        """Return whether the last will of SESSION is on a topic of its own."""
        return not session.will_flag or may(session.client_id, "publish", session.will_topic)


class OwnTopics(BaseTopicPlugin):  # type: ignore[misc]
    """Opens to every client its own topics."""

    async def topic_filtering(
        self,
        *,
        session: Session | None = None,
        topic: str | None = None,
        action: Action | None = None,
    ) -> bool | None:
        """Return whether SESSION may do ACTION on TOPIC."""
        if session is None or topic is None or action is None:
            return False
        return may(session.client_id, action.value, topic)


class _Broker(Broker):  # type: ignore[misc]
    """The library's broker, stricter about who connects."""

    @staticmethod
    def _create_ssl_context(listener: ListenerConfig) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, capath=listener.capath)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        context.load_cert_chain(listener.certfile, listener.keyfile)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _initialize_client_session(
        self, reader: Any, writer: Any, remote_address: str, remote_port: int
    ) -> Any:
        # The library would judge a returning client by the certificate of its earlier connection.
        handler, session = await super()._initialize_client_session(
            reader, writer, remote_address, remote_port
        )
        name = _common_name(writer.get_ssl_info())
        if name is None or session.client_id != name:
            await writer.close()
            raise MQTTError(f"{session.client_id!r} is not the name of its certificate")
        return handler, session


class EmbeddedBroker:
    """The broker, in a thread of its own.

    Args:
        data: The fleet's data directory; the port is kept there, because devices know it.
        pki: Certificates.
    """

    def __init__(self, data: Path, pki: Pki) -> None:
        self.address = _address(data)
        certificate, key = pki.pair("server")
        self._config = _config(self.address, pki.trust.path, certificate, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker", daemon=True)
        self._broker: Broker | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            UnreachableError: it cannot.
        """
        logging.getLogger("amqtt").setLevel(logging.ERROR)
        logging.getLogger("transitions").setLevel(logging.ERROR)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_S)
        except Exception as error:
            self.stop()
            raise UnreachableError(
                f"the embedded broker cannot listen on {self.address}",
                why=str(error),
                fix="install mosquitto and use `edgepack fleet broker`",
                reason="broker",
            ) from error

    def stop(self) -> None:
        """Disconnect everybody and end."""
        if self._broker is not None:
            stopping = asyncio.run_coroutine_threadsafe(self._broker.shutdown(), self._loop)
            try:
                stopping.result(START_S)
            except Exception:  # it goes down with the process either way
                logging.getLogger(__name__).exception("the embedded broker did not stop cleanly")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        if not self._loop.is_running():
            self._loop.close()

    async def _start(self) -> None:
        self._broker = _Broker(self._config, loop=self._loop)
        await self._broker.start()


def _common_name(tls: ssl.SSLObject | None) -> str | None:
    data = tls.getpeercert(binary_form=True) if tls is not None else None
    if data is None:
        return None
    names = x509.load_der_x509_certificate(data).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def _address(data: Path) -> Address:
    path = data / "broker" / "embedded-port"
    if not path.exists():
        write_file(path, str(free_port("127.0.0.1")).encode())
    return Address("127.0.0.1", int(path.read_text()))


def _config(address: Address, trust: Path, certificate: Path, key: Path) -> dict[str, Any]:
    return {
        "listeners": {
            "default": {
                "type": "tcp",
                "bind": str(address),
                "ssl": True,
                "capath": str(trust),
                "certfile": str(certificate),
                "keyfile": str(key),
            }
        },
        "plugins": {f"{__name__}.CertificateOnly": {}, f"{__name__}.OwnTopics": {}},
    }
