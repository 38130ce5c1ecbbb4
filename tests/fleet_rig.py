"""A fleet for tests: real database, repositories and broker, and devices that a test plays."""

import asyncio
import contextlib
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import paho.mqtt.client as paho
from anyio.from_thread import BlockingPortal, start_blocking_portal
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

from edgepack import messages, topics
from edgepack.counting import LATENCY_EDGES_MS
from edgepack.signed import public_pem
from edgepack_fleet.adapters.broker import Address, find_mosquitto, prepare
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.core.expectation import Expected
from edgepack_fleet.server import _server
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.devices import device_app
from trust_rig import Clock, World

EDGEPACK = Path(sys.executable).with_name("edgepack")
INVENTORY = messages.Inventory(arch="x86_64", runtimes={"onnx": "1.23.2"})
ANYWHERE = Address("127.0.0.1", 0)
T = TypeVar("T")
M = TypeVar("M")


def latencies(told: Mapping[float, int]) -> messages.Histogram:
    """Return how a device counts latencies in ms, each as often as TOLD."""
    counts = [0] * (len(LATENCY_EDGES_MS) + 1)
    for ms, count in told.items():
        counts[bisect_right(LATENCY_EDGES_MS, ms)] += count
    return messages.Histogram(edges=LATENCY_EDGES_MS, counts=tuple(counts))


def wait(what: str, probe: Callable[[], T | None], seconds: float = 20.0) -> T:
    """Return what PROBE finds as soon as it finds something.

    A probe that takes its time is asked less often: what is waited for needs the processor, too.
    """
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if found := probe():
            return found
        assert asked < deadline, f"waited {seconds} s for {what}"
        time.sleep(min(0.25, max(0.02, 3 * (time.monotonic() - asked))))


def still(what: str, look: Callable[[], T], seconds: float = 1.0) -> T:
    """Return what LOOK finds once it has found the same for SECONDS."""
    before, since = look(), time.monotonic()

    def settled() -> bool:
        nonlocal before, since
        if (now := look()) != before:
            before, since = now, time.monotonic()
        return time.monotonic() - since >= seconds

    wait(f"{what} to settle", settled)
    return before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), 1),
    ):
        return True
    return False


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def csr(key: ec.EllipticCurvePrivateKey, name: str = "whatever") -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def publisher(data: Path) -> World:
    """Return a publisher who pushes into the fleet of DATA, which is called `fleet`."""
    assert data.name == "fleet"
    return World(data.parent, Clock(datetime.now(UTC)))


@dataclass
class Mosquitto:
    """The broker with the fleet's own configuration."""

    config: Path
    address: Address
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [find_mosquitto(), "-c", str(self.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait("mosquitto to listen", lambda: listens(self.address.port))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def mosquitto(data: Path, address: Address = ANYWHERE) -> Iterator[Mosquitto]:
    """Yield a running broker for the fleet of DATA."""
    files = prepare(data, Pki(data / "pki"), address)
    broker = Mosquitto(files.config, files.address)
    try:
        broker.start()
        yield broker
    finally:
        if broker.process is not None and broker.process.poll() is None:
            broker.kill()


@contextlib.contextmanager
def house(home: Path) -> Iterator[tuple[int, "queue.Queue[paho.MQTTMessage]", paho.Client]]:
    """Yield port, messages and client of a broker as a house has it."""
    port = free_port()
    config = home / "house.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen(
        ["mosquitto", "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/bin"},
    )  # fmt: skip
    heard: queue.Queue[paho.MQTTMessage] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _c, _d, message: heard.put(message)
    try:
        wait("the broker", lambda: listens(port))
        client.connect("127.0.0.1", port)
        client.subscribe("#", qos=1)
        client.loop_start()
        yield port, heard, client
    finally:
        client.disconnect()
        client.loop_stop()
        process.terminate()
        process.wait(10)


@dataclass
class Identity:
    """What a device got when it enrolled."""

    name: str
    ca: Path
    certificate: Path
    key: Path
    report_key: ec.EllipticCurvePrivateKey | None = None

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.certificate, self.key)
        return context


def enrol(
    service: Service,
    name: str,
    group: str = "lab",
    inventory: messages.Inventory = INVENTORY,
    *,
    signs: bool = False,
) -> Identity:
    """Enrol a device in the running SERVICE, past HTTP; SIGNS: it gets a report key."""
    with service.database.write() as session:
        if session.get(GroupRow, group) is None:
            session.add(GroupRow(id=group, created=0.0))
    token = service.enrolment.create_token(group, 60, 1)
    key = ec.generate_private_key(ec.SECP256R1())
    report_key = ec.generate_private_key(ec.SECP256R1()) if signs else None
    public = public_pem(report_key.public_key()) if report_key else ""
    reply = service.enrolment.enroll(
        messages.EnrollRequest(
            secret=token.secret, csr=csr(key), name=name, inventory=inventory, report_key=public
        )
    )
    folder = service.settings.data.parent / f"device-{reply.device}"
    folder.mkdir()
    identity = Identity(
        reply.device,
        service.pki.ca_path,
        folder / "certificate.pem",
        folder / "key.pem",
        report_key,
    )
    identity.certificate.write_text(reply.certificate)
    identity.key.write_bytes(pem(key))
    return identity


class Token(msgspec.Struct):
    """What every answer to a request has."""

    token: str


@dataclass
class Device:
    """A device on the broker, played by a test. Everything it is told waits in `heard`."""

    identity: Identity
    address: Address
    heard: "queue.Queue[tuple[str, bytes]]" = field(default_factory=queue.Queue)
    conn: str = ""
    tokens: int = 0

    @property
    def name(self) -> str:
        return self.identity.name

    def connect(self, *, client_id: str | None = None, conn: str = "c1") -> None:
        """Connect, listen, and tell the birth."""
        self.conn = conn
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or self.name,
            reconnect_on_failure=False,
        )
        self.client.tls_set_context(self.identity.tls())
        will = messages.encode(messages.Conn(online=False, conn=conn))
        self.client.will_set(topics.up(self.name, "conn"), will, 1, retain=True)
        ready: queue.Queue[int] = queue.Queue()
        self.client.on_subscribe = lambda *_: ready.put(1)
        self.client.on_message = self._received
        self.client.connect(self.address.host, self.address.port)
        self.client.subscribe(topics.device_filter(self.name), 1)
        self.client.loop_start()
        ready.get(timeout=10)
        self.say("conn", messages.Conn(online=True, conn=conn, boot="b"), retain=True)

    def say(self, kind: str, message: Any, *, retain: bool = False) -> None:
        payload = message if isinstance(message, bytes) else msgspec.json.encode(message)
        self.client.publish(topics.up(self.name, kind), payload, 1, retain)

    def hears(self, kind: str, seconds: float = 15.0) -> tuple[str, bytes]:
        """Return the next message whose kind starts with KIND, and what it is about in full."""
        prefix = topics.down(self.name, "")
        deadline = time.monotonic() + seconds
        while True:
            topic, payload = self.heard.get(timeout=max(0.01, deadline - time.monotonic()))
            if topic.removeprefix(prefix).startswith(kind):
                return topic.removeprefix(prefix), payload

    def job(self) -> messages.Job | None:
        """Ask for the job."""
        self.tokens += 1
        self.say("job/get", messages.JobGet(token=f"t{self.tokens}"))
        return self._reply("job/get").job

    def _reply(self, kind: str) -> messages.JobReply:
        """Return the acceptance of what was asked last; a killed fleet may answer twice."""
        while True:
            heard, payload = self.hears(kind)
            if messages.decode(payload, Token).token == f"t{self.tokens}":
                assert heard == f"{kind}/accepted", payload
                return messages.decode(payload, messages.JobReply)

    def waits_for_job(self) -> messages.Job:
        """Ask for the job until there is one."""
        return wait(f"a job for {self.name}", self.job)

    def update(self, job: messages.Job, status: str, **facts: Any) -> messages.Job:
        """Say STATUS of JOB, which the fleet must accept, and return its new version."""
        self.tokens += 1
        token = f"t{self.tokens}"
        self.say(
            "job/update",
            messages.JobUpdate(
                token=token,
                job=job.job,
                version=job.version,
                status=status,
                **facts,  # type: ignore[arg-type]
            ),
        )
        taken = self._reply("job/update").job
        assert taken is not None
        return taken

    def forget(self) -> None:
        """Lose the connection without a goodbye; a broker that lives tells the will."""
        sock = self.client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _received(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.heard.put((message.topic, bytes(message.payload)))


def refused(device: Device, client_id: str | None = None) -> bool:
    """Return whether the broker refuses DEVICE, under its own name or another CLIENT_ID."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id or device.name,
        clean_session=False,
        reconnect_on_failure=False,
    )
    client.tls_set_context(device.identity.tls())
    outcome: queue.Queue[bool] = queue.Queue()
    client.on_connect = lambda *args: outcome.put(bool(args[3].is_failure))
    client.on_disconnect = lambda *_: outcome.put(True)
    client.connect(device.address.host, device.address.port)
    client.loop_start()
    try:
        return outcome.get(timeout=10)
    finally:
        client.disconnect()
        client.loop_stop()


def small_model(bundle: str, _digest: str) -> Expected:
    """Return what may be said of BUNDLE: a few classes and one feature, whatever the digest."""
    return Expected(bundle, frozenset("abc"), features={"inputs.x.mean": 4})


@contextlib.contextmanager
def fleet_database(where: Path | str, *devices: str) -> Iterator[Database]:
    """Yield a database, in a directory or of a URL, that knows DEVICES, all of one group."""
    found = Database(where) if isinstance(where, str) else Database.in_directory(where)
    found.migrate()
    with found.write() as session:
        session.add(GroupRow(id="lab", created=0.0))
        session.flush()
        session.add_all(
            DeviceRow(id=d, group_id="lab", enrolled=0.0, certificate_serial="1", inventory={})
            for d in devices
        )
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def running(data: Path, address: Address) -> Iterator[Service]:
    """Yield a service of DATA, connected to the broker at ADDRESS."""
    service = Service(Settings(data, address))
    service.start()
    try:
        wait("the fleet to reach its broker", lambda: service.link.connected)
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def listening(service: Service) -> Iterator[int]:
    """Yield the port of SERVICE's own listener for devices: TLS, and files by a link."""
    with serving(device_app(service), *service.pki.pair("server")) as port:
        yield port


@contextlib.contextmanager
def serving(app: Any, certificate: Path | None = None, key: Path | None = None) -> Iterator[int]:
    """Yield the port of a real server of the application APP."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = _server(app, certificate, key)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
        thread.start()
        port = int(sock.getsockname()[1])
        try:
            wait("the listener", lambda: listens(port))
            yield port
        finally:
            server.should_exit = True
            thread.join(20)


class _InProcess(httpx.BaseTransport):
    """Carries requests to an application in this process."""

    def __init__(self, app: Any, portal: BlockingPortal) -> None:
        self.inner = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.portal.call(
            self._carry, request.method, request.url, request.headers, request.read()
        )

    async def _carry(
        self, method: str, url: httpx.URL, headers: httpx.Headers, body: bytes
    ) -> httpx.Response:
        sent = httpx.Request(method, url, headers=headers, content=body)
        answer = await self.inner.handle_async_request(sent)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)


@contextlib.contextmanager
def talking_to(app: Any) -> Iterator[httpx.Client]:
    """Yield a client of the application APP, without a network in between."""
    with (
        start_blocking_portal() as portal,
        httpx.Client(
            transport=_InProcess(app, portal), base_url="http://testserver", follow_redirects=True
        ) as client,
    ):
        yield client


def environment(home: Path) -> dict[str, str]:
    """Return an environment for commands in which no fleet is known."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEPACK_FLEET")}
    return kept | {"HOME": str(home), "NO_COLOR": "1"}
