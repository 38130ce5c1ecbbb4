"""Whole blobs through a real fleet and broker, while agents, broker and disk are ill-treated."""

import hashlib
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgepack import messages, topics
from edgepack.chunks import CHUNK_SIZE
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.download import Downloads
from edgepack_agent.adapters.mqtt import Link
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.adapters.transfer import WINDOW, Transfers
from edgepack_agent.core.pace import Limits
from edgepack_fleet.service import Service
from fleet_rig import Device, Identity, Mosquitto, enrol, mosquitto, running, wait

pytestmark = pytest.mark.mosquitto

HERE = Path(__file__).parents[1]
SIZE = 16 * CHUNK_SIZE + 4321
CONTENT = random.Random(7).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHUNKS = tuple(
    hashlib.sha256(CONTENT[at : at + CHUNK_SIZE]).hexdigest() for at in range(0, SIZE, CHUNK_SIZE)
)


@dataclass
class Place:
    """A fleet with one blob. Counts the bytes of content that leave it, by device."""

    root: Path
    broker: Mosquitto
    service: Service
    sent: dict[str, int] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service.content.put(SHA256, [CONTENT])
        publish = self.service.link.publish_paced

        def counting(topic: str, payload: bytes, *, qos: int) -> None:
            device = topic.split("/")[3]
            self.sent[device] = self.sent.get(device, 0) + len(payload)
            publish(topic, payload, qos=qos)

        self.service.link.publish_paced = counting  # type: ignore[method-assign]

    def link(self, name: str) -> Link:
        link = Link(
            Known(enrol(self.service, name)),  # type: ignore[arg-type]
            (self.broker.address.host, self.broker.address.port),
            dict,
            lambda _: None,
        )
        self.links.append(link)
        link.start()
        wait("the link to come up", lambda: link.connected)
        return link

    def store(self, name: str) -> Downloads:
        return Downloads(self.root / name / "blobs", self.root / name / "parts")


@dataclass
class Known:
    """An identity as the agent's connection wants it."""

    identity: Identity
    group: str = "lab"
    has_newer = False

    @property
    def device(self) -> str:
        return self.identity.name

    def tls(self, *, newer: bool = False) -> ssl.SSLContext:
        assert not newer
        return self.identity.tls()


class Limited:
    """Blocks over a link under limits."""

    def __init__(self, transfers: Transfers, rate: float | None = None, **limits: float) -> None:
        self.transfers = transfers
        rules = {"min_rate": 0.0, "slow_s": 3600.0, "stall_s": 30.0} | limits
        self.pacer = Pacer(Limits(**rules), Cap(rate))

    def blocks(self, *words: Any) -> Iterator[bytes]:
        return self.transfers.blocks(*words, pacer=self.pacer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("transfer")
    data = root / "fleet"
    with mosquitto(data) as broker, running(data, broker.address) as service:
        found = Place(root, broker, service)
        yield found
        for link in found.links:
            link.stop()


DEVICE = """
import sys, pathlib, threading
from agent.test_transfer_broker import *
name, ca, certificate, key, host, port, home = sys.argv[1:]
identity = Known(Identity(name, *map(pathlib.Path, (ca, certificate, key))))
link = Link(identity, (host, int(port)), dict, lambda _: None)
link.start()
while not link.connected:
    time.sleep(0.01)
store = Downloads(pathlib.Path(home) / "blobs", pathlib.Path(home) / "parts")
print("begun", flush=True)
store.fetch(SHA256, SIZE, Limited(link.transfers, rate=6e6), chunks=CHUNKS)
print("done", flush=True)
os._exit(0)
"""


@pytest.mark.scale
def test_kill_9_costs_a_window_and_a_chunk_at_most(place: Place) -> None:
    identity, home = enrol(place.service, "killed"), place.root / "killed"
    files = (identity.ca, identity.certificate, identity.key)
    address = place.broker.address
    words = [identity.name, *files, address.host, address.port, home]
    kills, chance = 0, random.Random(11)
    while not place.store("killed").has(SHA256, SIZE):
        process = subprocess.Popen(
            [sys.executable, "-c", DEVICE, *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE)},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0.05, 0.9))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        assert kills < 30
    assert place.store("killed").path(SHA256).read_bytes() == CONTENT
    assert kills > 2
    again = place.sent["killed"] - SIZE
    assert again <= kills * (WINDOW * BLOCK_SIZE + CHUNK_SIZE), f"{again} bytes for {kills} kills"


def test_a_broker_that_restarts_costs_a_window_at_most(place: Place) -> None:
    link, store = place.link("restarted"), place.store("restarted")
    source = Limited(link.transfers, rate=8e6)
    threading.Timer(0.7, place.broker.kill).start()
    with pytest.raises(UnreachableError):
        store.fetch(SHA256, SIZE, source, chunks=CHUNKS)
    assert 0 < store.missing(SHA256, SIZE) < SIZE
    wait("both to notice", lambda: not (link.connected or place.service.link.connected))
    place.broker.start()
    wait("the link to be back", lambda: link.connected, 60)
    wait("the fleet to be back", lambda: place.service.link.connected, 60)
    store.fetch(SHA256, SIZE, Limited(link.transfers), chunks=CHUNKS)
    assert store.path(SHA256).read_bytes() == CONTENT
    assert place.sent["restarted"] <= SIZE + WINDOW * BLOCK_SIZE + CHUNK_SIZE


def test_a_broker_that_is_a_black_hole_is_a_stall_and_keeps_what_came(place: Place) -> None:
    link, store = place.link("stalled"), place.store("stalled")
    assert place.broker.process is not None
    pid = place.broker.process.pid
    threading.Timer(0.5, os.kill, (pid, signal.SIGSTOP)).start()
    try:
        with pytest.raises(UnreachableError) as found:
            store.fetch(SHA256, SIZE, Limited(link.transfers, 8e6, stall_s=1.0), chunks=CHUNKS)
        assert found.value.reason == "stalled"
    finally:
        os.kill(pid, signal.SIGCONT)
    store.fetch(SHA256, SIZE, Limited(link.transfers), chunks=CHUNKS)
    assert store.path(SHA256).read_bytes() == CONTENT
    assert place.sent["stalled"] <= SIZE + WINDOW * BLOCK_SIZE + CHUNK_SIZE


def test_a_download_can_be_cancelled_while_nothing_comes(place: Place) -> None:
    link, stop = place.link("cancelled"), threading.Event()
    pacer = Pacer(Limits(0.0, 3600.0, 3600.0), Cap(1.0), stop.is_set)
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(EdgepackError) as found:
        list(link.transfers.blocks(SHA256, SIZE, 0, 4, pacer))
    assert found.value.reason == "cancelled"


def test_content_that_is_damaged_on_the_fleet_is_found_by_the_chunk(place: Place) -> None:
    link, store = place.link("corrupt"), place.store("corrupt")
    file = place.service.content.path(SHA256)
    damaged = bytearray(CONTENT)
    damaged[5 * CHUNK_SIZE + 99] ^= 4
    file.write_bytes(damaged)
    try:
        with pytest.raises(IntegrityError) as found:
            store.fetch(SHA256, SIZE, Limited(link.transfers), chunks=CHUNKS)
    finally:
        file.write_bytes(CONTENT)
    assert found.value.reason == "digest_mismatch"
    assert place.sent["corrupt"] == SIZE + 2 * CHUNK_SIZE
    store.fetch(SHA256, SIZE, Limited(link.transfers), chunks=CHUNKS)
    assert place.sent["corrupt"] == SIZE + 3 * CHUNK_SIZE, "only the chunk that was wrong"


def test_a_device_that_floods_does_not_keep_others_waiting(place: Place) -> None:
    flood = Device(enrol(place.service, "flood"), place.broker.address)
    flood.connect()
    flood.client.unsubscribe(topics.device_filter("flood"))
    link, stop = place.link("patient"), threading.Event()

    def ask() -> None:
        wanted = messages.BlobRequest(xfer="f", sha256=SHA256, size=SIZE, start=0, n=64)
        payload = messages.encode(wanted)
        while not stop.wait(0.002):
            flood.client.publish(topics.up("flood", "blob"), payload, 0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wait("the flood to be served", lambda: place.sent.get("flood", 0) > SIZE)
        before = place.sent["flood"]
        store = place.store("patient")
        store.fetch(SHA256, SIZE, Limited(link.transfers), chunks=CHUNKS)
        meanwhile = place.sent["flood"] - before
        assert link.transfers.metadata("image", "no.such.json", 1000) is None
    finally:
        stop.set()
        thread.join()
        flood.leave()
    # Both have their turns; what the patient one did not use of its own, the other one has.
    assert store.path(SHA256).read_bytes() == CONTENT
    assert meanwhile < 60 * SIZE
