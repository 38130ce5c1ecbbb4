"""The database: connection, transactions and migrations. Knows no table.

SQLite in WAL mode by default, one writer at a time: a writing transaction takes the lock when it
begins, so that it waits its turn instead of failing half-way. On PostgreSQL, where several
workers share the database, `write` keeps that promise with an advisory lock that every writer
takes; what devices say goes beside each other (`write_beside`), each with the rows of its own
devices locked. A connection that waits for a lock, or leaves a transaction open, is ended after
a while, so that a worker that hangs holds up nobody for ever.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from edgepack.errors import UnsupportedError, UsageError

__all__ = ["Database", "Migration", "is_passing"]

BUSY_MS = 10_000
IDLE_MS = 60_000
"""A transaction in which nothing is asked for so long is rolled back."""
WRITERS, CHANGES = 0x65_70_01, 0x65_70_02
"""Advisory locks: who writes, and who numbers changes."""


class Database:
    """One fleet's database.

    Args:
        url: SQLAlchemy URL, e.g. `sqlite:////var/lib/edgepack/fleet.db`.

    Raises:
        UsageError: the URL cannot be read or the file cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)
        """What is listened to by who wants to know of every transaction."""

    @classmethod
    def in_directory(cls, directory: Path) -> "Database":
        """Return the default database of the data DIRECTORY."""
        return cls(f"sqlite:///{directory / 'fleet.db'}")

    @property
    def is_shared(self) -> bool:
        """Whether several workers may use it at once."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one state and writes nothing."""
        with self.sessions() as session:
            if self.is_shared:
                session.connection(
                    execution_options={
                        "isolation_level": "REPEATABLE READ",
                        "postgresql_readonly": True,
                    }
                )
            yield session
            # What was read stays readable afterwards; the rollback would empty it.
            session.expunge_all()
            session.rollback()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session in which nobody else writes; commit at the end, or roll all back."""
        with self._transaction() as session:
            if self.is_shared:
                session.execute(select(func.pg_advisory_xact_lock(WRITERS)))
            yield session

    @contextmanager
    def write_beside(self) -> Iterator[Session]:
        """Yield a session as `write` does, beside others of this kind but none of that one.

        Rows that are read to be written must be locked (`with_for_update`), in a fixed order.
        """
        with self._transaction() as session:
            if self.is_shared:
                session.execute(select(func.pg_advisory_xact_lock_shared(WRITERS)))
            yield session

    @contextmanager
    def write_apart(self) -> Iterator[Session]:
        """Yield a session that waits for no other and that no other waits for, but for its rows."""
        with self._transaction() as session:
            yield session

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self.sessions() as session, session.begin():
            session.connection(execution_options={"edgepack_write": True})
            yield session

    def number_in_order(self, session: Session) -> None:
        """Let who numbers rows in SESSION be seen in that order: the next one waits for its end."""
        if self.is_shared:
            session.execute(select(func.pg_advisory_xact_lock(CHANGES)))

    def time(self, session: Session) -> float:
        """Return the time in Unix seconds as all workers see it."""
        if self.is_shared:
            now = session.scalar(select(func.extract("epoch", func.clock_timestamp())))
        else:
            now = session.scalar(select((func.julianday("now") - 2440587.5) * 86400.0))
        return float(now or 0.0)

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to REVISION, from wherever it is.

        Raises:
            UsageError: the file is no database, or is newer than this program.
        """
        with self.migration() as migration:
            if revision == "base":
                migration.downgrade(revision)
            else:
                migration.upgrade(revision)

    @contextmanager
    def migration(self) -> Iterator["Migration"]:
        """Yield what changes the schema, all or nothing.

        Raises:
            UsageError: the file is no database, or is newer than this program.
        """
        from alembic.util import CommandError

        try:
            with self._for_migration() as connection:
                yield Migration(connection)
        except (CommandError, DatabaseError) as error:
            raise UsageError(
                "the fleet's database cannot be used",
                why=str(error).splitlines()[0],
                fix="give another --data directory, or the program version that wrote it",
                reason="database",
            ) from error

    @contextmanager
    def _for_migration(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            if self.is_shared:
                # Workers that start at the same moment migrate once.
                connection.execute(select(func.pg_advisory_xact_lock(WRITERS)))
                yield connection
                connection.commit()
                return
            # A table is changed by making it anew, while others refer to its rows.
            plain: Any = connection.connection.driver_connection
            plain.execute("PRAGMA foreign_keys=OFF")
            try:
                yield connection
                if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise IntegrityError("PRAGMA foreign_key_check", None, ValueError("lost rows"))
                connection.commit()
            finally:
                connection.rollback()
                plain.execute("PRAGMA foreign_keys=ON")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


class Migration:
    """Steps of the schema on CONNECTION, in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def upgrade(self, revision: str) -> None:
        """Go forward to REVISION."""
        from alembic import command

        command.upgrade(self._config(), revision)

    def downgrade(self, revision: str) -> None:
        """Go back to REVISION."""
        from alembic import command

        command.downgrade(self._config(), revision)

    def _config(self) -> Any:
        config = _alembic_config()
        config.attributes["connection"] = self.connection
        return config


def is_passing(error: Exception) -> bool:
    """Return whether ERROR says that the same may work in a moment, so that nothing is given up.

    A connection that is lost or none that is free, a lock that took too long, two that waited for
    each other, a server that stops or has no room (https://www.postgresql.org/docs/current/errcodes-appendix.html).
    """
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.OperationalError):
        # The low byte is the kind, as of https://www.sqlite.org/rescode.html#pve
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    state = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or state[:2] in {"08", "40", "53", "55", "57"}


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "edgepack_fleet:migrations")
    return config


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in {"postgres", "postgresql"}:
            # What everybody else writes; the driver is ours to name.
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(
            parsed,
            pool_pre_ping=parsed.get_backend_name() == "postgresql",
            # Every decision reads some JSON of every device: the library's own reader is slower.
            json_deserializer=msgspec.json.decode,
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"not a database URL: {_without_password(url)}",
            why=str(error),
            fix="sqlite:////absolute/path/fleet.db or postgresql://USER:PASSWORD@HOST/NAME",
        ) from error
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"no driver for {url.split(':', 1)[0]} databases here",
            why=str(error),
            fix="use SQLite or PostgreSQL: postgresql://USER:PASSWORD@HOST/NAME",
            reason="extra_missing",
        ) from error
    if parsed.get_backend_name() == "postgresql":
        _prepare_postgresql(engine)
    elif parsed.get_backend_name() == "sqlite":
        _prepare_sqlite(engine)
    _try(engine)
    return engine


def _without_password(url: str) -> str:
    """Return URL as it may be shown."""
    head, at, host = url.rpartition("@")
    return f"{head.split(':', 1)[0]}://...@{host}" if at else url


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        # Transactions begin where we say so, not where the driver guesses.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        writes = connection.get_execution_options().get("edgepack_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name, milliseconds in (
                ("lock_timeout", BUSY_MS),
                ("idle_in_transaction_session_timeout", IDLE_MS),
            ):
                cursor.execute(f"SET {name} = {milliseconds}")
        connection.autocommit = False


def _try(engine: Engine) -> None:
    try:
        with engine.connect():
            pass
    except DatabaseError as error:
        engine.dispose()
        raise UsageError(
            "the fleet's database cannot be opened",
            why=str(error.orig),
            fix="give another --data directory or --database URL",
            reason="database",
        ) from error
