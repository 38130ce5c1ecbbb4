"""Where log messages go: journald with fields to search by, or lines on stderr. Secrets never.

journald is spoken to natively when systemd has connected stderr to it: a datagram of fields, see
systemd's "Native Journal Protocol". What cannot be delivered at once is dropped: a log must not
keep the loop from feeding the watchdog.

    PRIORITY  MESSAGE  SYSLOG_IDENTIFIER  CODE_FILE  CODE_LINE  CODE_FUNC  LOGGER
    EDGEPACK_DEVICE  EDGEPACK_PHASE  EDGEPACK_RELEASE  EDGEPACK_REASON
"""

import contextlib
import logging
import os
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgepack.errors import EdgepackError
from edgepack.redact import redact
from edgepack_agent.core.asking import newest
from edgepack_agent.core.state import State

__all__ = ["JOURNAL", "begin", "fields", "recent", "set_level"]

JOURNAL = Path("/run/systemd/journal/socket")
MAX_TEXT = 16 * 1024
"""Characters of a message that are kept; far below what a datagram can hold."""
PATIENCE_S = 0.05
KEPT_LINES, KEPT_SIZE, DEFAULT_LINES = 1000, 96 * 1024, 200
"""Lines and characters of the log that stay in memory, for whoever asks from afar."""
_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PRIORITIES = {
    logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7,
}  # fmt: skip
Facts = Callable[[], Mapping[str, str]]
log = logging.getLogger(__name__)


def begin(
    level: str, program: str, *, plain: str = _PLAIN, journal: Path = JOURNAL
) -> Callable[[Facts], None]:
    """Send everything that is logged from now on to where it belongs.

    Also what Python would print by itself: warnings, and exceptions nobody has caught.

    Args:
        level: Of our own messages; libraries say what they warn of.
        program: What messages are found under.
        plain: Format of a line where there is no journal.
        journal: The journal's socket.

    Returns:
        A function that takes what every message from then on says about the agent.
    """
    handler = _Journal(program, journal) if _under_journal(journal) else _Lines(plain)
    logging.basicConfig(level=level.upper(), handlers=[handler, _Tail()], force=True)
    # What tuf has to say below this is said by our own errors.
    for name in ("tuf", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )
    return handler.about


def fields(device: str, state: State) -> dict[str, str]:
    """Return what every message of DEVICE in STATE is labelled with."""
    release = state.job.release if state.job else ""
    if not release and state.current:
        release = state.current.model.release
    reason = state.result.reason if state.result else ""
    found = {"DEVICE": device, "PHASE": state.phase, "RELEASE": release, "REASON": reason}
    return {f"EDGEPACK_{name}": value for name, value in found.items() if value}


def set_level(level: str) -> None:
    """Log messages of LEVEL and above from now on."""
    logging.getLogger().setLevel(level.upper())


def recent(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last `lines` messages of this process, without secrets, and how many there were.

    Raises:
        EdgepackError: it keeps none (reason `no_log`).
    """
    found = (each for each in logging.getLogger().handlers if isinstance(each, _Tail))
    tail = next(found, None)
    if tail is None:
        raise EdgepackError("this process keeps no log", reason="no_log")
    lines, count = tail.lines(), wanted.get("lines")
    told = newest(lines, count if isinstance(count, int) else DEFAULT_LINES, KEPT_SIZE)
    return {"lines": told, "kept": len(lines)}


def _under_journal(journal: Path) -> bool:
    """Say whether stderr is what systemd has connected to the journal, and not put elsewhere."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino)) and journal.is_socket()


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        log.critical("an error that nobody expected", exc_info=(kind, error, trace))


class _Clean(logging.Handler):
    """A handler that lets no secret through."""

    def __init__(self, plain: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(plain))
        self._facts: Facts = dict

    def about(self, facts: Facts) -> None:
        """Label messages with what FACTS returns when they are made."""
        self._facts = facts

    def text(self, record: logging.LogRecord) -> str:
        """Return what is to be read; an argument that cannot be shown must not end anything."""
        try:
            return redact(self.format(record))[:MAX_TEXT]
        except Exception:  # noqa: BLE001 - any `__str__` may raise anything
            return redact(str(record.msg))[:MAX_TEXT]


class _Tail(_Clean):
    """Keeps the last messages."""

    def __init__(self) -> None:
        super().__init__(_PLAIN)
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)
        self._size = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep RECORD, and let go of the oldest where there is no more room."""
        if len(self._kept) == KEPT_LINES:
            self._size -= len(self._kept.popleft())
        text = self.text(record)
        self._kept.append(text)
        self._size += len(text)
        while self._size > KEPT_SIZE:
            self._size -= len(self._kept.popleft())

    def lines(self) -> list[str]:
        """Return what is kept, oldest first."""
        with self.lock or contextlib.nullcontext():
            return list(self._kept)


class _Lines(_Clean):
    """Writes lines to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write RECORD; where nobody reads any more, nothing is to be done."""
        try:
            sys.stderr.write(self.text(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return


class _Journal(_Clean):
    """Sends datagrams to journald."""

    def __init__(self, program: str, path: Path) -> None:
        super().__init__("%(message)s")
        self._program, self._path = program, str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Send RECORD, or drop it."""
        found = {
            "MESSAGE": self.text(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": self._program,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
        } | {name: redact(value) for name, value in self._facts().items()}
        try:
            self._socket.sendto(_datagram(found), self._path)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def _datagram(found: Mapping[str, str]) -> bytes:
    """Return FOUND as journald takes it; a value of several lines comes with its length."""
    parts = []
    for name, value in found.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)
