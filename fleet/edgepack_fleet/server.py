"""`edgepack fleet serve` as a process: both listeners in one loop, and a clean end."""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from edgepack.durable import write_file
from edgepack.errors import UsageError
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.embedded import EmbeddedBroker
from edgepack_fleet.adapters.lock import one_of, only_one, own
from edgepack_fleet.adapters.pki import WORKERS, Pki, worker_name
from edgepack_fleet.service import Service, Settings

__all__ = ["Listeners", "check_exposure", "serve"]

GRACE_S = 3
GARBAGE = 20_000
"""Objects more than before at which the collector looks for cycles. A batch of reports makes
thousands, all gone when it is saved; at Python's 700 the collector took a tenth of the time."""
log = logging.getLogger("edgepack_fleet")


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where the fleet listens, and with which certificate people see it."""

    main: Address
    devices: Address
    tls_cert: Path | None = None
    tls_key: Path | None = None


class _Server(uvicorn.Server):
    """A server that leaves signals to us, because there are two, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def check_exposure(listeners: Listeners) -> None:
    """Refuse what would show the fleet to a network without TLS.

    Raises:
        UsageError: beyond loopback without a certificate, or one that cannot be used.
    """
    if (listeners.tls_cert is None) != (listeners.tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together")
    if listeners.tls_cert and listeners.tls_key:
        _check_certificate(listeners.tls_cert, listeners.tls_key)
    if not listeners.main.is_loopback and listeners.tls_cert is None:
        raise UsageError(
            f"refusing to listen on {listeners.main} without TLS",
            why="tokens would cross the network in clear text",
            fix="give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy",
            reason="tls_needed",
        )


def _check_certificate(cert: Path, key: Path) -> None:
    try:
        # A passphrase is refused rather than asked for: a service has nobody to ask.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{cert} and {key} cannot be used as a certificate and its key",
            why=str(error),
            fix="give PEM files that belong together, the key without a passphrase",
            reason="bad_certificate",
        ) from error


def serve(settings: Settings, listeners: Listeners, *, embedded_broker: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UsageError: another fleet serves the same data, or an address cannot be listened on.
    """
    with _place(settings) as number, contextlib.ExitStack() as stack:
        settings = replace(settings, worker=worker_name(number))
        suffix = "" if number == 1 else f"-{number}"
        endpoints = settings.data / f"endpoints{suffix}.json"
        # What an earlier process left would send people to where nobody listens.
        endpoints.unlink(missing_ok=True)
        sockets = [stack.enter_context(_listen(a)) for a in (listeners.main, listeners.devices)]
        if embedded_broker:
            broker = EmbeddedBroker(settings.data, Pki(settings.data / "pki", settings.hosts))
            broker.start()
            stack.callback(broker.stop)
            settings = replace(settings, broker=broker.address)
        service = Service(settings)
        stack.callback(service.stop)
        stack.callback(endpoints.unlink, missing_ok=True)
        asyncio.run(_run(service, listeners, sockets, endpoints))


@contextlib.contextmanager
def _place(settings: Settings) -> Iterator[int]:
    """Yield which worker of the fleet this process is: on SQLite there is only one."""
    data = own(settings.data)
    backend = (settings.database or "sqlite").split(":", 1)[0].split("+", 1)[0]
    if backend in {"postgres", "postgresql"}:
        with one_of(data, WORKERS) as number:
            yield number
    else:
        with only_one(data):
            yield 1


async def _run(
    service: Service, listeners: Listeners, sockets: list[socket.socket], endpoints: Path
) -> None:
    # The web framework takes a second to load; what is wrong with a command is said before.
    from edgepack_fleet.web.app import main_app
    from edgepack_fleet.web.devices import device_app

    main_at, devices_at = (_address_of(s) for s in sockets)
    scheme = "https" if listeners.tls_cert else "http"
    public = next(iter(service.settings.hosts), None)
    device_url = f"https://{_reachable(devices_at, public)}"
    where = {
        "http": f"{scheme}://{_reachable(main_at, public)}",
        "devices": device_url,
        "broker": f"mqtts://{service.settings.broker}",
    }
    service.links.url = device_url
    servers = [
        _server(main_app(service, device_url), listeners.tls_cert, listeners.tls_key),
        _server(device_app(service), *service.pki.pair("server")),
    ]
    service.server_renewed = lambda: _reload(servers, *service.pki.pair("server"))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave, servers, service)
    service.start()
    running = [
        asyncio.create_task(server.serve(sockets=[sock]))
        for server, sock in zip(servers, sockets, strict=True)
    ]
    await _all_listening(servers, running)
    gc.freeze()  # what is here by now stays
    gc.set_threshold(GARBAGE)
    write_file(endpoints, json.dumps(where).encode())
    log.info("fleet on %(http)s, devices on %(devices)s, broker %(broker)s", where)
    await asyncio.gather(*running)


async def _all_listening(servers: list[_Server], running: list[asyncio.Task[None]]) -> None:
    """Wait until SERVERS listen; raise what ended one of them before."""
    waiting = asyncio.create_task(_listening(servers))
    await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        await asyncio.gather(*running)


async def _listening(servers: list[_Server]) -> None:
    for server in servers:
        await server.listening.wait()


def _leave(servers: list[_Server], service: Service) -> None:
    # A stream has no end of its own that a server could wait for.
    service.feed.close()
    for server in servers:
        server.should_exit = True


def _server(app: Any, certificate: Path | None, key: Path | None) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=str(key) if key else None,
    )
    return _Server(config)


def _reload(servers: list[_Server], certificate: Path, key: Path) -> None:
    """Let those of SERVERS that show CERTIFICATE show the new one, from the next connection on."""
    for server in servers:
        if server.config.ssl is not None and server.config.ssl_certfile == certificate:
            server.config.ssl.load_cert_chain(certificate, key)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
    except OSError as error:
        sock.close()
        raise UsageError(
            f"cannot listen on {address}", why=error.strerror or str(error), reason="listen"
        ) from error
    return sock


def _address_of(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def _reachable(address: Address, public: str | None) -> Address:
    """Return ADDRESS as others can reach it: no one can connect to `0.0.0.0`."""
    everywhere = address.host in {"0.0.0.0", "::"}  # noqa: S104  compared, not bound
    return Address(public or socket.gethostname(), address.port) if everywhere else address
