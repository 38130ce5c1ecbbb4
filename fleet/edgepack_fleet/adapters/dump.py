"""All rows of a database as lines of JSON, of whatever schema it has, and back into an empty one.

Tables are read as they are in the database, not as this program knows them, so that a dump of an
older schema can be taken, and read by a newer program, on SQLite and PostgreSQL alike.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from alembic.migration import MigrationContext
from sqlalchemy import Connection, LargeBinary, MetaData, Table, func, inspect, select, text

from edgepack.errors import IntegrityError, UsageError
from edgepack_fleet.adapters.database import Database

__all__ = ["Loader", "Reader", "loading", "reading"]

VERSION = "alembic_version"
AT_ONCE = 500


class Reader:
    """One state of a database."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._tables = connection, _tables(connection)

    @property
    def revision(self) -> str:
        """Its schema."""
        found = MigrationContext.configure(self._connection).get_current_revision()
        return found or ""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of its tables, those that others refer to first."""
        return tuple(self._tables)

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the rows of the table NAME, each a line of JSON."""
        table = self._tables[name]
        binary = _binary(table)
        streamed = self._connection.execution_options(yield_per=AT_ONCE)
        for row in streamed.execute(select(table)).mappings():
            fields = {k: _as_text(v) if k in binary else v for k, v in row.items()}
            yield json.dumps(fields, separators=(",", ":")).encode() + b"\n"


class Loader:
    """A database that is filled, all of it or not at all."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._connection, self._shared = connection, database.is_shared
        self._tables = _tables(connection)

    def order(self, names: Iterable[str]) -> list[str]:
        """Return NAMES in an order in which they can be loaded: first what others refer to.

        Raises:
            IntegrityError: the schema has no such table.
        """
        wanted = set(names)
        if unknown := wanted - set(self._tables):
            raise IntegrityError(
                f"the backup has a table {min(unknown)!r} that its schema does not have",
                reason="bad_backup",
            )
        return [name for name in self._tables if name in wanted]

    def load(self, name: str, lines: Iterable[bytes]) -> int:
        """Put LINES into the table NAME and return how many there were."""
        table, rows, count = self._tables[name], [], 0
        binary = _binary(table)
        for line in lines:
            fields = json.loads(line)
            rows.append({k: _as_bytes(v) if k in binary else v for k, v in fields.items()})
            count += 1
            if len(rows) == AT_ONCE:
                self._connection.execute(table.insert(), rows)
                rows = []
        if rows:
            self._connection.execute(table.insert(), rows)
        return count

    def go_on_counting(self) -> None:
        """Let new rows have numbers after those that are there."""
        for table in self._tables.values() if self._shared else ():
            column = table.autoincrement_column
            if column is None or not column.server_default:
                continue
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            newest = select(func.max(column)).scalar_subquery()
            self._connection.execute(
                select(func.setval(sequence, func.coalesce(newest, 1), newest.is_not(None)))
            )


@contextmanager
def reading(database: Database) -> Iterator[Reader]:
    """Yield what DATABASE is at this moment, while others go on writing.

    Raises:
        UsageError: no fleet has ever used it.
    """
    with database.read() as session:
        connection = session.connection()
        if not inspect(connection).has_table(VERSION):
            raise UsageError(
                "there is no fleet in this database",
                fix="give the --database that the fleet is served with",
                reason="database",
            )
        connection.execute(text(f"SELECT * FROM {VERSION}")).all()  # noqa: S608  the moment
        yield Reader(connection)


@contextmanager
def loading(database: Database, revision: str) -> Iterator[Loader]:
    """Yield DATABASE, which must be empty, with the schema of REVISION; then it is the newest.

    Raises:
        UsageError: it is not empty (reason `not_empty`), or this program does not know REVISION.
    """
    with database.migration() as migration:
        if inspect(migration.connection).get_table_names():
            raise UsageError(
                "the database is not empty",
                why="a backup is put into a new one only, so that nothing is overwritten",
                fix="create another database, or drop its tables",
                reason="not_empty",
            )
        migration.upgrade(revision)
        loader = Loader(database, migration.connection)
        yield loader
        loader.go_on_counting()
        migration.upgrade("head")


def _tables(connection: Connection) -> dict[str, Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    return {table.name: table for table in metadata.sorted_tables if table.name != VERSION}


def _binary(table: Table) -> set[str]:
    return {column.name for column in table.columns if isinstance(column.type, LargeBinary)}


def _as_text(value: Any) -> Any:
    return None if value is None else base64.b64encode(value).decode()


def _as_bytes(value: Any) -> Any:
    return None if value is None else base64.b64decode(value)
