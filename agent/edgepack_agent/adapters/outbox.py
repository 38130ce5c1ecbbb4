"""What happened, on disk until the fleet says it is in its database. Sends nothing itself.

Every row has a number within a *boot*, a random name for the life of this database. Only an
application acknowledgement removes a row. When the outbox is full, the oldest telemetry that
was never on the wire is added up two rows to one, so sums stay exact and only resolution is
lost; where nothing can be added up, the oldest telemetry goes and is counted as `lost`. A row
that was on the wire is never changed: the fleet may have it. Numbers that never come any more are
named by a later row (`supersedes`), or the fleet would wait for them.
"""

import contextlib
import logging
import secrets
import sqlite3
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgepack.errors import EdgepackError
from edgepack.messages import MAX_MESSAGE, MAX_SPANS, Ack, Event, Telemetry
from edgepack_agent.adapters.journal import open_database
from edgepack_agent.core.telemetry import add_rows, joined

__all__ = ["Batch", "Kind", "Outbox"]

log = logging.getLogger(__name__)
Kind = Literal["tele", "evt"]
MAX_ROWS = 4000
WINDOW = 200
"""Rows on the wire and not acknowledged."""
BATCH = 50
RESEND_S = 20.0
"""Without an acknowledgement for this long, a row is sent again."""

_BOX = """CREATE TABLE IF NOT EXISTS box (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot TEXT NOT NULL, next INTEGER NOT NULL, lost INTEGER NOT NULL)"""
_ROWS = """CREATE TABLE IF NOT EXISTS rows (
    place INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
    body BLOB NOT NULL, wired INTEGER NOT NULL, UNIQUE (boot, seq))"""
_GONE = "CREATE TABLE IF NOT EXISTS gone (first INTEGER NOT NULL, last INTEGER NOT NULL)"
_SAID = "CREATE TABLE IF NOT EXISTS said (place INTEGER PRIMARY KEY, what TEXT NOT NULL UNIQUE)"
_SPENT = """CREATE TABLE IF NOT EXISTS spent (
    place INTEGER PRIMARY KEY, day INTEGER NOT NULL UNIQUE, bytes INTEGER NOT NULL)"""
REMEMBERED = 100
"""Events told `once` that are remembered, and days of which it is known what was sent."""
OVERTAKEN = 500
"""Gaps that events which overtake telemetry may leave: the fleet remembers no more than 1,000."""
_COUNTS = 2**53
"""No device counts as far as this."""
_Key = tuple[str, int]
_Row = tuple[str, int, Kind, bytes, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one kind, oldest first, to be sent in one message."""

    kind: Kind
    rows: list[Any]


class Outbox:
    """The outbox in the file PATH.

    Args:
        path: The database; one that is damaged is put aside, and a new boot begins.
        max_rows: Rows to keep at most.
        clock: Monotonic seconds, for resending.

    Attributes:
        boot: The name that the numbers belong to.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_rows: int = MAX_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self.lost_database = open_database(path, _BOX, _ROWS, _GONE, _SAID, _SPENT)
        self._max_rows, self._clock = max_rows, clock
        self._sent: dict[_Key, float] = {}
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO box VALUES (1, ?, 0, 0)", (_new_boot(),))
            _mend(database)
        self.boot: str = self._one("SELECT boot FROM box")

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM rows"))

    def new_boot(self) -> None:
        """Begin a new boot: what this device knew of its past is gone."""
        self.boot = _new_boot()
        with self._transaction() as database:
            _begin_boot(database, self.boot)

    def add_event(self, ts: float, kind: str, *, once: str = "", **facts: Any) -> None:
        """Keep an event.

        Args:
            ts: When it happened, Unix seconds.
            kind: Its type.
            once: What it is about, if it must be told only once; a repetition is dropped.
            facts: Other fields of `Event`.
        """

        def make(seq: int, _lost: int) -> Event:
            return Event(boot=self.boot, seq=seq, ts=ts, type=kind, **facts)

        self._add("evt", make, f"{kind} {once}" if once else "")

    def add_telemetry(self, make: Callable[[int, int], Telemetry]) -> None:
        """Keep the row that MAKE returns for its number and the rows lost so far."""
        self._add("tele", make)

    def take(self, telemetry: int | None = None) -> list[Batch]:
        """Return what is to be sent now, and mark it as on the wire.

        Args:
            telemetry: Batches of telemetry to take at most, past which events go; None: any number.
        """
        now = self._clock()
        waiting = {key for key, sent in self._sent.items() if now - sent < RESEND_S}
        rows = self._rows(WINDOW) if telemetry is None else self._overtaking(telemetry, waiting)
        rows = [r for r in rows if (r[0], r[1]) not in waiting]
        rows = rows[: max(0, WINDOW - len(waiting))]
        if not rows:
            return []
        fresh = [(boot, seq) for boot, seq, _, _, wired in rows if not wired]
        if fresh:
            with self._transaction() as database:
                database.executemany("UPDATE rows SET wired = 1 WHERE boot = ? AND seq = ?", fresh)
        self._sent.update({(boot, seq): now for boot, seq, *_ in rows})
        return _batches([(kind, body) for _, _, kind, body, _ in rows])

    def everything(self) -> list[Batch]:
        """Return all that waits, for another way to the fleet; none of it changes any more.

        It stays here until the fleet says that it has it: what comes twice counts once.
        """
        with self._transaction() as database:
            database.execute("UPDATE rows SET wired = 1")
        return _batches([(kind, body) for _, _, kind, body, _ in self._rows(-1)])

    def acknowledge(self, ack: Ack) -> None:
        """Remove what the fleet has; send at once what it says is missing."""
        found = self._all(
            "SELECT seq FROM rows WHERE boot = ? AND seq <= ? AND wired", (ack.boot, ack.upto)
        )
        gone = [(ack.boot, seq) for (seq,) in found if not _within(ack.missing, seq)]
        with self._transaction() as database:
            database.executemany("DELETE FROM rows WHERE boot = ? AND seq = ?", gone)
        for (seq,) in found:
            self._sent.pop((ack.boot, seq), None)

    def spent(self, day: int) -> int:
        """Return the bytes that telemetry took on DAY."""
        found = self._all("SELECT bytes FROM spent WHERE day = ?", (day,))
        return int(found[0][0]) if found and _is_count(found[0][0]) else 0

    def spend(self, day: int, count: int) -> None:
        """Note that telemetry takes COUNT bytes more on DAY."""
        before = self.spent(day)
        oldest = "(SELECT max(place) FROM spent) - ?"
        with self._transaction() as database:
            database.execute(
                "INSERT INTO spent (day, bytes) VALUES (?, ?) "
                "ON CONFLICT (day) DO UPDATE SET bytes = excluded.bytes",
                (day, before + count),
            )
            database.execute(f"DELETE FROM spent WHERE place <= {oldest}", (REMEMBERED,))  # noqa: S608

    def link_lost(self) -> None:
        """Forget what is on the wire: after a reconnect all of it is sent again."""
        self._sent.clear()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _add(
        self, kind: Kind, make: Callable[[int, int], Event | Telemetry], once: str = ""
    ) -> None:
        self._make_room()
        with self._transaction() as database:
            if once and not _is_new(database, once):
                return
            seq, lost = database.execute("SELECT next, lost FROM box").fetchone()
            row = _standing_for(make(seq, lost), database)
            database.execute(
                "INSERT INTO rows (boot, seq, kind, body, wired) VALUES (?, ?, ?, ?, 0)",
                (self.boot, seq, kind, msgspec.json.encode(row)),
            )
            told = lost if kind == "tele" else 0
            database.execute("UPDATE box SET next = ?, lost = lost - ?", (seq + 1, told))

    def _make_room(self) -> None:
        if len(self) < self._max_rows:
            return
        with self._transaction() as database:
            if not self._add_up(database):
                self._evict(database)

    def _add_up(self, database: sqlite3.Connection) -> bool:
        """Make one row of each two neighbours that were never sent; say whether any were."""
        rows = self._all(
            "SELECT place, body FROM rows WHERE kind = 'tele' AND NOT wired ORDER BY place"
        )
        pairs = list(zip(rows[::2], rows[1::2], strict=False))
        changed = False
        for (old_place, old), (new_place, new) in pairs:
            both = add_rows(_telemetry(old), _telemetry(new))
            if both is not None:
                body = msgspec.json.encode(both)
                database.execute("DELETE FROM rows WHERE place = ?", (old_place,))
                database.execute("UPDATE rows SET body = ? WHERE place = ?", (body, new_place))
                changed = True
        return changed

    def _evict(self, database: sqlite3.Connection) -> None:
        for kind in ("tele", "evt"):
            # What is on the wire may have arrived: it is the last to be given up as lost.
            oldest = "ORDER BY wired, place LIMIT 1"
            found = database.execute(
                f"SELECT place, boot, seq, body FROM rows WHERE kind = ? {oldest}",  # noqa: S608
                (kind,),
            ).fetchone()
            if found:
                self._give_up(database, kind, *found)
                return

    def _give_up(
        self, database: sqlite3.Connection, kind: str, place: int, boot: str, seq: int, body: bytes
    ) -> None:
        row = _telemetry(body) if kind == "tele" else None
        # What the row itself had to say about others must not get lost with it.
        before, spans = (row.lost, row.supersedes) if row else (0, ())
        database.execute("DELETE FROM rows WHERE place = ?", (place,))
        database.execute("UPDATE box SET lost = lost + ?", (1 + before,))
        if boot == self.boot:
            database.executemany("INSERT INTO gone VALUES (?, ?)", [*spans, (seq, seq)])

    def _overtaking(self, telemetry: int, waiting: set[_Key]) -> list[_Row]:
        """Return the oldest TELEMETRY batches that are due, and all events that may go past."""
        due = [row for row in self._rows(WINDOW, "tele") if (row[0], row[1]) not in waiting]
        batches = _batches([(kind, body) for _, _, kind, body, _ in due])[:telemetry]
        first = due[: sum(len(batch.rows) for batch in batches)]
        events = self._rows(WINDOW, "evt")
        # Sums before speed: what the fleet takes for given up would not be counted when it comes.
        return [*first, *events] if events and self._gaps() <= OVERTAKEN else first

    def _gaps(self) -> int:
        """Return how many gaps the fleet sees if it has everything but the telemetry that waits."""
        bodies = self._all("SELECT body FROM rows WHERE kind = 'tele' AND boot = ?", (self.boot,))
        rows = [_telemetry(body) for (body,) in bodies]
        return len(joined(span for row in rows for span in (*row.supersedes, (row.seq, row.seq))))

    def _rows(self, limit: int, kind: Kind | None = None) -> list[_Row]:
        return self._all(
            "SELECT boot, seq, kind, body, wired FROM rows WHERE kind = ? OR ? IS NULL "
            "ORDER BY place LIMIT ?",
            (kind, kind, limit),
        )

    def _one(self, query: str) -> Any:
        return self._all(query)[0][0]

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with _disk_errors():
            return self._database.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _disk_errors(), self._database:
            yield self._database


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise EdgepackError(
            "the outbox cannot be used", why=str(error), reason="storage"
        ) from error


def _mend(database: sqlite3.Connection) -> None:
    """Take out what a failing disk has changed: the fleet would refuse all that is sent with it."""
    rows = database.execute("SELECT place, boot, seq, kind, body FROM rows")
    damaged = [(place,) for place, *row in rows if not _is_sound(*row)]
    database.executemany("DELETE FROM rows WHERE place = ?", damaged)
    boot, number, lost = database.execute("SELECT boot, next, lost FROM box").fetchone()
    used = database.execute("SELECT max(seq) FROM rows WHERE boot = ?", (boot,)).fetchone()[0]
    whole = isinstance(boot, str) and _is_count(number) and number > (-1 if used is None else used)
    if damaged or not _is_count(lost):
        log.warning("%d damaged rows of the outbox are lost", len(damaged))
        lost = (lost if _is_count(lost) else 0) + len(damaged)
        database.execute("UPDATE box SET lost = ?", (lost,))
    if not whole:
        _begin_boot(database, _new_boot())


def _begin_boot(database: sqlite3.Connection, boot: str) -> None:
    """Count from zero under the name BOOT; what was thrown away before had other numbers."""
    database.execute("UPDATE box SET boot = ?, next = 0", (boot,))
    database.execute("DELETE FROM gone")


def _is_sound(boot: object, seq: object, kind: object, body: Any) -> bool:
    told: type[Telemetry | Event] = Telemetry if kind == "tele" else Event
    try:
        row = msgspec.json.decode(body, type=told)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return False
    return kind in {"tele", "evt"} and (row.boot, row.seq) == (boot, seq)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and 0 <= number < _COUNTS


def _standing_for(row: Event | Telemetry, database: sqlite3.Connection) -> Event | Telemetry:
    """Let ROW, if it is telemetry, name the numbers that were thrown away and never come."""
    if isinstance(row, Event):
        return row
    gone = database.execute("SELECT first, last FROM gone").fetchall()
    database.execute("DELETE FROM gone")
    spans = joined([*row.supersedes, *gone])[:MAX_SPANS]
    return msgspec.structs.replace(row, supersedes=spans)


def _within(spans: Sequence[tuple[int, int]], seq: int) -> bool:
    """Say whether SEQ is in one of SPANS, which are in order."""
    place = bisect_right(spans, seq, key=lambda span: span[0]) - 1
    return place >= 0 and seq <= spans[place][1]


def _is_new(database: sqlite3.Connection, what: str) -> bool:
    """Say whether WHAT was never said before, and remember it with what the transaction adds."""
    if not database.execute("INSERT OR IGNORE INTO said (what) VALUES (?)", (what,)).rowcount:
        return False
    oldest = "(SELECT max(place) FROM said) - ?"
    database.execute(f"DELETE FROM said WHERE place <= {oldest}", (REMEMBERED,))  # noqa: S608
    return True


def _new_boot() -> str:
    return secrets.token_hex(8)


def _telemetry(body: bytes) -> Telemetry:
    return msgspec.json.decode(body, type=Telemetry)


def _batches(rows: Iterable[tuple[Kind, bytes]]) -> list[Batch]:
    """Put neighbours of one kind together, as far as a message may be long."""
    batches: list[Batch] = []
    size = 0
    for kind, body in rows:
        size += len(body) + 1
        full = not batches or len(batches[-1].rows) >= BATCH or size > MAX_MESSAGE // 2
        if full or batches[-1].kind != kind:
            batches.append(Batch(kind, []))
            size = len(body) + 1
        batches[-1].rows.append(msgspec.Raw(body))
    return batches
