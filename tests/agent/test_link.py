"""The link against a broker that a thief has: nonsense ends a connection, never the link."""

import gc
import queue
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.messages import MAX_MESSAGE
from edgepack_agent.adapters import mqtt
from edgepack_agent.adapters.identity import Identity, load_identity, write_identity
from edgepack_agent.adapters.mqtt import Heard, Link, LinkChanged
from edgepack_fleet.adapters.pki import Pki
from fleet_rig import csr, pem, wait

CONNECT, PUBLISH, SUBSCRIBE, DISCONNECT = 1, 3, 8, 14


def packet(kind: int, body: bytes) -> bytes:
    """Return an MQTT packet; KIND is its first byte."""
    length, rest = bytearray(), len(body)
    while not length or rest:
        length.append(rest % 128 | (128 if rest > 127 else 0))
        rest //= 128
    return bytes([kind, *length]) + body


def publish(topic: bytes, payload: bytes) -> bytes:
    return packet(PUBLISH << 4, len(topic).to_bytes(2, "big") + topic + payload)


class Broker:
    """Speaks as much MQTT as a device needs; then says what a test wants it to."""

    def __init__(self, pki: Pki) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*pki.pair("server"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.words: queue.Queue[bytes] = queue.Queue()
        self.granted = 1
        self.heard: list[tuple[int, bytes]] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(raw, server_side=True) as peer:
                    self.talk(peer)
            except OSError:
                continue

    def talk(self, peer: ssl.SSLSocket) -> None:
        """Answer until the device has gone; say each of `words`, and hang up for an empty one."""
        listening = False
        while True:
            if peer.pending() or select.select([peer], [], [], 0.01)[0]:
                kind = self.answer(peer)
                if not kind:
                    return
                listening = listening or kind == SUBSCRIBE
            if listening and not self.words.empty():
                word = self.words.get()
                if not word:
                    return
                peer.sendall(word)

    def answer(self, peer: ssl.SSLSocket) -> int:
        """Take a packet and return its kind; 0 when the device has gone."""
        first = peer.recv(1)
        if not first:
            return 0
        body = self.read(peer, self.length(peer))
        kind = first[0] >> 4
        self.heard.append((kind, body))
        if kind == CONNECT:
            peer.sendall(packet(0x20, b"\0\0"))
        elif kind == SUBSCRIBE:
            peer.sendall(packet(0x90, body[:2] + bytes([self.granted, self.granted])))
        elif kind == PUBLISH and first[0] & 6:
            at = 2 + int.from_bytes(body[:2], "big")
            peer.sendall(packet(0x40, body[at : at + 2]))
        return kind

    def length(self, peer: ssl.SSLSocket) -> int:
        size = shift = 0
        while True:
            byte = self.read(peer, 1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return size

    def read(self, peer: ssl.SSLSocket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = peer.recv(size - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data


def identity(home: Path, pki: Pki) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    files = {
        "key.pem": pem(key),
        "certificate.pem": pki.issue(csr(key), "cam", datetime.now(UTC)).pem.encode(),
        "ca.pem": pki.ca_pem.encode(),
    }
    write_identity(home, device="cam", group="lab", broker=("127.0.0.1", 1), files=files)
    found = load_identity(home)
    assert found is not None
    return found


class Held:
    """A link, its broker, and what it posts."""

    def __init__(self, tmp_path: Path) -> None:
        pki = Pki(tmp_path / "pki")
        self.broker = Broker(pki)
        self.posted: queue.Queue[Any] = queue.Queue()
        device = identity(tmp_path / "identity", pki)
        self.link = Link(device, self.broker.address, dict, self.posted.put)
        self.link.start()

    def next(self) -> Any:
        return self.posted.get(timeout=20)

    def reconnects(self) -> None:
        assert self.next() == LinkChanged(up=False)
        assert self.next() == LinkChanged(up=True)


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setattr(mqtt, "FIRST_PAUSE_S", 0.01)
    found = Held(tmp_path)
    assert found.next() == LinkChanged(up=True)
    yield found
    found.link.stop()
    found.broker.close()


NONSENSE = {
    "no topic": packet(PUBLISH << 4, b""),
    "a topic past the end": packet(PUBLISH << 4, b"\xff\xff"),
    "no text": publish(b"ep/1/d/cam/dn/\xff\xfe", b"x"),
    "no message id": packet(0x40, b""),
    "no packet": b"\xff" * 64,
}


@pytest.mark.parametrize("word", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_of_a_broker_costs_one_connection(held: Held, word: bytes) -> None:
    held.broker.words.put(word)
    held.reconnects()


def test_who_is_in_a_hurry_does_not_wait(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "FIRST_PAUSE_S", 10_000.0)
    held.broker.words.put(b"")
    assert held.next() == LinkChanged(up=False)
    held.link.hurry()
    assert held.next() == LinkChanged(up=True)


def test_a_connection_leaves_nothing_behind(held: Held) -> None:
    def left() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    # What earlier tests of this process left to the collector would be closed at any moment.
    gc.collect()
    before = left()
    for _ in range(8):
        held.broker.words.put(b"")
        held.reconnects()
    assert left() == before


def test_messages_that_are_too_long_or_of_no_block_are_dropped(held: Held) -> None:
    long = publish(b"ep/1/d/cam/dn/job/notify", b"x" * (MAX_MESSAGE + 1))
    many_digits = publish(b"ep/1/d/cam/dn/blob/x/" + b"1" * 5000, b"x")
    good = publish(b"ep/1/d/cam/dn/job/notify", b"{}")
    held.broker.words.put(long + many_digits + good)
    assert held.next() == Heard("job/notify", b"{}")


def test_who_may_not_listen_is_not_connected(held: Held) -> None:
    held.broker.granted = 0x80
    held.broker.words.put(b"")
    assert held.next() == LinkChanged(up=False)
    for _ in range(3):
        held.broker.words.put(b"")
    held.broker.granted = 1
    assert held.next() == LinkChanged(up=True)


def test_a_clean_end_takes_the_birth_back(held: Held) -> None:
    held.broker.words.put(publish(b"ep/1/d/cam/dn/job/notify", b"{}"))
    assert held.next() == Heard("job/notify", b"{}")
    held.link.stop()
    wait("the broker to hear the end", lambda: held.broker.heard[-1][0] == DISCONNECT)
    last = held.broker.heard[-2]
    assert last[0] == PUBLISH
    assert b'"online":false' in last[1]
