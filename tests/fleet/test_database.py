"""The schema's history and the transactions of the default database."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from edgepack.errors import UnsupportedError, UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url)
    yield found
    found.close()


def test_a_transaction_is_whole_or_not_at_all(database: Database) -> None:
    def half() -> None:
        with database.write() as session:
            session.add(GroupRow(id="half", created=0.0))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with database.read() as session:
        assert session.scalars(select(GroupRow)).all() == []


def test_writers_wait_for_each_other_instead_of_failing(database: Database) -> None:
    def count_up() -> None:
        for _ in range(20):
            with database.write() as session:
                row = session.get_one(GroupRow, "counter")
                row.created += 1

    with database.write() as session:
        session.add(GroupRow(id="counter", created=0.0))
    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.get_one(GroupRow, "counter").created == 80


def test_readers_see_one_state_while_somebody_writes(database: Database) -> None:
    with database.write() as writer:
        writer.add(GroupRow(id="new", created=0.0))
        writer.flush()
        with database.read() as reader:
            assert reader.get(GroupRow, "new") is None


def test_references_are_checked(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(
            DeviceRow(
                id="d", group_id="nowhere", enrolled=0.0, certificate_serial="1", inventory={}
            )
        )


def test_what_is_no_database_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"this is not a database, it is a text" * 50)
    with pytest.raises(UsageError, match="database"):
        Database.in_directory(tmp_path).migrate()
    for url in ("nonsense", "sqlite:////no/such/directory/fleet.db", "martian://host/db"):
        with pytest.raises(UsageError):
            Database(url)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(UnsupportedError, match="mysql"):
        Database("mysql+pymysql://localhost/fleet")


def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError) as caught:
        database.migrate()
    assert "9999" in caught.value.why
