"""The database: connection, transactions and migrations. Knows no table.

SQLite in WAL mode by default, one writer at a time: a writing transaction takes the lock when it
begins, so that it waits its turn instead of failing half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from edgepack.errors import UnsupportedError, UsageError

__all__ = ["Database"]

BUSY_MS = 10_000


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

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one state and writes nothing."""
        with self.sessions() as session:
            yield session
            # What was read stays readable afterwards; the rollback would empty it.
            session.expunge_all()
            session.rollback()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session; commit at the end, roll everything back on an error."""
        with self.sessions() as session, session.begin():
            session.connection(execution_options={"edgepack_write": True})
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to REVISION, from wherever it is.

        Raises:
            UsageError: the file is no database, or is newer than this program.
        """
        from alembic import command
        from alembic.util import CommandError

        try:
            with self.engine.begin() as connection:
                config = _alembic_config()
                config.attributes["connection"] = connection
                step = command.downgrade if revision == "base" else command.upgrade
                step(config, revision)
        except (CommandError, DatabaseError) as error:
            raise UsageError(
                "the fleet's database cannot be used",
                why=str(error).splitlines()[0],
                fix="give another --data directory, or the program version that wrote it",
                reason="database",
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "edgepack_fleet:migrations")
    return config


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        engine = create_engine(url, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"not a database URL: {url}", why=str(error), fix="sqlite:////absolute/path/fleet.db"
        ) from error
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"no driver for {url.split(':', 1)[0]} databases here",
            why=str(error),
            fix='pip install "psycopg[binary]" and write postgresql+psycopg://...',
            reason="extra_missing",
        ) from error
    if parsed.get_backend_name() == "sqlite":
        _prepare_sqlite(engine)
    _try(engine)
    return engine


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
