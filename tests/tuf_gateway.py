"""A foreign TUF repository for devices: what they ask over the broker becomes loopback HTTP GETs.

Stands where a fleet would, between a real broker and a repository that only speaks HTTP. It
believes the device and the repository everything and checks nothing: that is what is tested.
"""

import contextlib
import http.client
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, urlsplit

import msgspec
import paho.mqtt.client as paho
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

from edgepack import topics
from edgepack.messages import BlobRequest, Head, encode
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.identity import write_identity
from edgepack_fleet.adapters import pki as pki_module
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.pki import FLEET, Pki
from fleet_rig import csr, mosquitto, pem

AGENT = Path(sys.executable).with_name("edgepack-agent")
LONG_AGO, LONG = datetime(2025, 1, 1, tzinfo=UTC), timedelta(days=3650)
"""Suites run clients at times of their own; our certificates must be valid at all of them."""


class _Meta(msgspec.Struct):
    """A request for metadata, with any name: a foreign repository's names are not ours."""

    xfer: str
    name: str


@dataclass(frozen=True)
class Where:
    """Where the files are that the client is asked for, and the targets it shall fetch."""

    metadata_url: str
    targets_url: str
    names: tuple[str, ...]


class Gateway:
    """Answers every device on the broker at ADDRESS; `where` says what it is about just now."""

    def __init__(self, address: Address, pki: Pki, where: Callable[[], Where]) -> None:
        self.where = where
        self.asked: list[str] = []
        self.blob: tuple[str, bytes] = ("", b"")
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=FLEET)
        certificate, key = pki.pair(FLEET)
        self.client.tls_set(str(pki.ca_path), str(certificate), str(key))
        self.client.on_message = self.heard
        self.client.on_connect = lambda *_: self.client.subscribe(topics.UPLINK_FILTER, 1)
        self.client.connect(address.host, address.port)
        self.client.loop_start()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def heard(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        uplink = topics.parse_up(message.topic)
        assert uplink is not None
        if uplink.kind == "meta":
            self.metadata(uplink.device, msgspec.json.decode(message.payload, type=_Meta))
        elif uplink.kind == "blob":
            self.content(uplink.device, msgspec.json.decode(message.payload, type=BlobRequest))

    def metadata(self, device: str, request: _Meta) -> None:
        base = topics.down(device, f"meta/{request.xfer}")
        where = self.where()
        if request.name.endswith(".json"):
            status, data = self.get(f"{where.metadata_url}{quote(request.name, safe='')}")
        else:
            status, data = self.get(f"{where.targets_url}{quote(request.name)}")
        self.client.publish(f"{base}/head", encode(Head(status=status, size=len(data))), 1)
        for at in range(0, len(data), BLOCK_SIZE):
            self.client.publish(f"{base}/{at // BLOCK_SIZE}", data[at : at + BLOCK_SIZE], 1)

    def content(self, device: str, request: BlobRequest) -> None:
        base = topics.down(device, f"blob/{request.xfer}")
        if self.blob[0] != request.xfer:
            status, data = self.target(request.sha256)
            if status == 200 and len(data) < request.size:
                status = 416
            if status != 200:
                self.client.publish(f"{base}/head", encode(Head(status=status)), 1)
                return
            self.blob = request.xfer, data
        for index in range(request.start, request.start + request.n):
            at = index * BLOCK_SIZE
            block = self.blob[1][at : min(at + BLOCK_SIZE, request.size)]
            self.client.publish(f"{base}/{index}", block, 1)

    def target(self, sha256: str) -> tuple[int, bytes]:
        where = self.where()
        for path in where.names:
            folder, slash, name = path.rpartition("/")
            status, data = self.get(
                f"{where.targets_url}{quote(f'{folder}{slash}{sha256}.{name}')}"
            )
            if status == 200:
                return status, data
        return 404, b""

    def get(self, url: str) -> tuple[int, bytes]:
        """Return status and content of URL; 502 if the repository hangs up."""
        self.asked.append(url)
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1"
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException):
            connection.request("GET", parts.path)
            response = connection.getresponse()
            return response.status, response.read() if response.status == 200 else b""
        return 502, b""


@dataclass(frozen=True)
class Bench:
    """A device that can be asked to read a repository, and the gateway that answers it."""

    entry: Path
    """The command that a suite calls."""
    gateway: Gateway


@contextlib.contextmanager
def bench(home: Path) -> Iterator[Bench]:
    """Yield a broker, an enrolled device and a gateway, all with their files below HOME."""
    data, call = home / "fleet", home / "call"
    with mock.patch.multiple(pki_module, SERVER_LIFE=LONG):
        pki = Pki(data / "pki", now=LONG_AGO)
    with mosquitto(data) as broker:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        with mock.patch.multiple(pki_module, DEVICE_LIFE=LONG):
            issued = pki.issue(csr(key), "cam", now - timedelta(days=1))
        write_identity(
            home / "agent" / "identity",
            device="cam",
            group="lab",
            broker=("127.0.0.1", broker.address.port),
            files={
                "key.pem": pem(key),
                "certificate.pem": issued.pem.encode(),
                "ca.pem": pki.ca_pem.encode(),
                "image-root.json": b"",
                "director-root.json": b"",
            },
        )
        gateway = Gateway(broker.address, pki, lambda: _said(call))
        try:
            yield Bench(_entry(home, call), gateway)
        finally:
            gateway.close()


def _entry(home: Path, call: Path) -> Path:
    """Write the command a suite calls: it notes what was asked for and calls the agent."""
    config = home / "agent.yaml"
    config.write_text(f'{{"data_dir": "{home}/agent", "run_dir": "{home}/run"}}')
    entry = home / "client"
    entry.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > "{call}"\n'
        f'exec "{AGENT}" --config "{config}" tuf-client "$@"\n'
    )
    entry.chmod(entry.stat().st_mode | stat.S_IXUSR)
    return entry


def _said(call: Path) -> Where:
    words = call.read_text().splitlines()
    said = list(pairwise(words))
    urls = {option: _folder(value) for option, value in said if option.endswith("-url")}
    names = tuple(value for option, value in said if option == "--target-name")
    return Where(urls["--metadata-url"], urls.get("--target-base-url", ""), names)


def _folder(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"
