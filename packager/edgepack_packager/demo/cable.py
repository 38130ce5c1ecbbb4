"""A network cable that can be pulled: a TCP relay between one device and the broker."""

import contextlib
import socket
import threading

__all__ = ["Cable"]


class Cable:
    """Relays connections on a free local port to the broker until it is pulled.

    Args:
        target: Host and port at the other end.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._ends: set[socket.socket] = set()
        self._plugged = True
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="cable", daemon=True).start()

    def pull(self) -> None:
        """Cut every connection and refuse new ones."""
        with self._lock:
            self._plugged = False
            ends, self._ends = self._ends, set()
        for end in ends:
            _close(end)

    def plug(self) -> None:
        """Let new connections through again."""
        with self._lock:
            self._plugged = True

    def close(self) -> None:
        """Pull the cable and give the port back."""
        self.pull()
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._join(near)

    def _join(self, near: socket.socket) -> None:
        with self._lock:
            plugged = self._plugged
        try:
            far = socket.create_connection(self._target, 5) if plugged else None
        except OSError:
            far = None
        if far is None:
            _close(near)
            return
        far.settimeout(None)
        with self._lock:
            self._ends |= {near, far}
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with self._lock:
            self._ends -= {source, sink}
        _close(source)
        _close(sink)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
