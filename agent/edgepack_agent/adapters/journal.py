"""Where the update engine is, on disk before anything is done about it. Decides nothing.

One row in a SQLite database with `synchronous=FULL`. A database that cannot be read is put
aside, never repaired: the caller then falls back on what the disk itself proves (see `slots`).
"""

import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgepack.errors import EdgepackError
from edgepack_agent.core.state import Job, Outcome, Slot, State

__all__ = ["Journal", "open_database"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_UNREADABLE = (msgspec.MsgspecError, sqlite3.Error, UnicodeDecodeError, RecursionError, TypeError)
"""What reading a damaged row raises: the database has no checksums of its own."""
_TABLE = "CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB)"
_SAVE = "INSERT INTO state VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body"


class Journal:
    """The journal in the file PATH.

    Attributes:
        lost: Whether an older journal was there and could not be read.

    Raises:
        EdgepackError: not even a new one can be written (reason `storage`).
    """

    def __init__(self, path: Path) -> None:
        self._database, self.lost = open_database(path, _TABLE)
        self._state = State()
        try:
            self._state = self._load()
        except _UNREADABLE as error:
            log.warning("the journal does not hold a state: %s", error)
            self.lost = True

    @property
    def state(self) -> State:
        """The state that is on disk."""
        return self._state

    def save(self, state: State) -> None:
        """Make STATE durable; when this returns, a power cut cannot take it back.

        Raises:
            EdgepackError: it cannot be written; the one before is still there.
        """
        if state == self._state:
            return
        try:
            with self._database:
                self._database.execute(_SAVE, (msgspec.json.encode(state),))
        except sqlite3.Error as error:
            raise EdgepackError(
                "the journal cannot be written", why=str(error), reason="storage"
            ) from error
        self._state = state

    def probe(self) -> None:
        """Check that the journal can still be read.

        Raises:
            EdgepackError: it cannot.
        """
        try:
            self._load()
        except _UNREADABLE as error:
            raise EdgepackError("the journal cannot be read", reason="storage") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _load(self) -> State:
        row = self._database.execute("SELECT body FROM state").fetchone()
        if not row:
            return State()
        try:
            return msgspec.json.decode(row[0], type=State)
        except msgspec.ValidationError as error:
            log.warning("the journal holds a state that is not known here: %s", error)
            return _salvaged(msgspec.json.decode(row[0]))


def _salvaged(raw: Any) -> State:
    """Return what is certain of the state RAW of another agent: what runs; the rest goes back.

    Raises:
        msgspec.ValidationError: not even that is.
    """
    if not isinstance(raw, dict):
        raise msgspec.ValidationError("the state is not an object")
    current = msgspec.convert(raw.get("current"), Slot | None)
    job = _known(raw.get("job"), Job)
    name = job.id if job else ""
    return State(
        phase="rolling_back",
        current=current,
        previous=_known(raw.get("previous"), Slot),
        job=job,
        candidate=_known(raw.get("candidate"), Slot),
        result=Outcome(name, "FAILED", "unknown_state") if job else None,
        outcome=_known(raw.get("outcome"), Outcome),
        ended=_known(raw.get("ended"), str) or "",
        pinned=_known(raw.get("pinned"), str) or "",
    )


def _known(raw: Any, kind: type[T]) -> T | None:
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(raw, kind)
    return None


def open_database(path: Path, *schema: str) -> tuple[sqlite3.Connection, bool]:
    """Open the durable SQLite database PATH; put one that is damaged aside and start anew.

    Returns:
        The connection, and whether an older database was lost.

    Raises:
        EdgepackError: the place cannot be written (reason `storage`).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path, schema), False
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            log.warning("%s is damaged and put aside: %s", path.name, error)
            _put_aside(path)
            return _connect(path, schema), True
    except (OSError, sqlite3.Error) as error:
        raise EdgepackError(
            f"cannot open {path}", why=str(error), fix="check the disk", reason="storage"
        ) from error


def _connect(path: Path, schema: tuple[str, ...]) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("quick_check failed")
        with database:
            for statement in schema:
                database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database


def _put_aside(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(path.with_name(f"{path.name}.bad{suffix}"))
