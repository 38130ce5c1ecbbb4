"""A TCP relay whose connections fail on purpose, after so many bytes: the same way every time.

Everything between an agent and its broker or its HTTPS host is TLS, so what happens to bytes
here is what happens to them on a real network: nobody in between can make them mean something.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["KINDS", "Fault", "Proxy"]

Kind = Literal["reset", "black_hole", "drip", "corrupt", "duplicate", "delay", "half_close"]
KINDS: tuple[Kind, ...] = (
    "reset", "black_hole", "drip", "corrupt", "duplicate", "delay", "half_close",
)  # fmt: skip
DRIP_BYTES, DRIP_S = 256, 0.02
DELAY_S = 1.5


@dataclass(frozen=True)
class Fault:
    """What happens to the first connection that has carried AFTER more bytes to the device.

    Attributes:
        kind: What.
        after: Bytes to the device, of all connections, from when it was armed.
        lasts: Bytes that drip before the connection is as before.
        stays: Whether nothing is relayed any more from then on, until `release`.
    """

    kind: Kind
    after: int
    lasts: int = 8192
    stays: bool = False


class Proxy:
    """Relays 127.0.0.1:`port` to TARGET, in threads, until it is closed.

    Attributes:
        port: Where it listens.
        carried: Bytes that have gone to the device.
        struck: The faults that have happened.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.carried = 0
        self.struck: list[Fault] = []
        self._lock = threading.Lock()
        self._armed: tuple[int, Fault] | None = None
        self._released = threading.Event()
        self._dead = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault) -> None:
        """Let FAULT happen once, from now on."""
        with self._lock:
            self._released.clear()
            self._armed = (self.carried + fault.after, fault)

    def drop(self) -> None:
        """Reset every connection."""
        for each in list(self._open):
            _reset(each)

    def release(self) -> None:
        """End every black hole, and relay again."""
        self._dead = False
        self._released.set()

    def close(self) -> None:
        """Take no more connections and end those there are."""
        self.release()
        _end(self._listener)
        self._listener.close()
        self.drop()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._dead:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one, other, down in ((near, far, False), (far, near, True)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(one)
                words = (one, other, down)
                threading.Thread(target=self._relay, args=words, daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 18):
                if down and (struck := self._due(len(data))):
                    at, fault = struck
                    other.sendall(data[:at])
                    if not _HAPPENS[fault.kind](self, one, other, data[at:], fault):
                        break
                else:
                    other.sendall(data)
        _end(other)
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.close()

    def _due(self, count: int) -> tuple[int, Fault] | None:
        """Count bytes to the device; return after how many of them which fault happens."""
        with self._lock:
            before, self.carried = self.carried, self.carried + count
            if self._armed is None or self.carried <= self._armed[0]:
                return None
            at, fault = self._armed
            self._armed = None
            self.struck.append(fault)
            self._dead = fault.stays
            return max(0, at - before), fault

    # What happens to REST, the bytes from the place on; whether the connection goes on.

    def _reset(self, one: socket.socket, other: socket.socket, rest: bytes, _: Fault) -> bool:
        _reset(other)
        _reset(one)
        return False

    def _black_hole(self, one: socket.socket, other: socket.socket, rest: bytes, _: Fault) -> bool:
        self._released.wait(120)
        _reset(other)
        return False

    def _drip(self, one: socket.socket, other: socket.socket, rest: bytes, fault: Fault) -> bool:
        slow = 0
        while rest and slow < fault.lasts:
            other.sendall(rest[:DRIP_BYTES])
            rest, slow = rest[DRIP_BYTES:], slow + DRIP_BYTES
            time.sleep(DRIP_S)
            rest = rest or one.recv(DRIP_BYTES)
        other.sendall(rest)
        return True

    def _corrupt(self, one: socket.socket, other: socket.socket, rest: bytes, _: Fault) -> bool:
        middle = len(rest) // 2
        other.sendall(rest[:middle] + bytes([rest[middle] ^ 1]) + rest[middle + 1 :])
        return True

    def _duplicate(self, one: socket.socket, other: socket.socket, rest: bytes, _: Fault) -> bool:
        other.sendall(rest + rest)
        return True

    def _delay(self, one: socket.socket, other: socket.socket, rest: bytes, _: Fault) -> bool:
        time.sleep(DELAY_S)
        other.sendall(rest)
        return True

    def _half_close(self, one: socket.socket, other: socket.socket, rest: bytes, _: Fault) -> bool:
        other.shutdown(socket.SHUT_WR)
        while one.recv(1 << 18):
            pass
        return False


_HAPPENS: dict[Kind, Callable[[Proxy, socket.socket, socket.socket, bytes, Fault], bool]] = {
    "reset": Proxy._reset,
    "black_hole": Proxy._black_hole,
    "drip": Proxy._drip,
    "corrupt": Proxy._corrupt,
    "duplicate": Proxy._duplicate,
    "delay": Proxy._delay,
    "half_close": Proxy._half_close,
}


def _reset(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _end(each)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
