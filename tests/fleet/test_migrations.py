"""The schema's history with data in it, over both databases, to the newest and back."""

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import Base
from history_rig import FIRST, content, put, revisions

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database(empty_database_url: str) -> Iterator[Database]:
    found = Database(empty_database_url)
    yield found
    found.close()


def back_to(database: Database, revision: str) -> None:
    with database.migration() as migration:
        migration.downgrade(revision)


def test_rows_of_the_first_schema_stay_as_they_are_step_by_step(database: Database) -> None:
    first, *later = revisions()
    database.migrate(first)
    put(database)
    before = content(database)
    assert before == {name: [row] for name, row in FIRST.items()}
    for revision in later:
        database.migrate(revision)
        assert content(database) == before, revision
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    for revision in reversed([first, *later[:-1]]):
        back_to(database, revision)
        assert content(database) == before, revision
    database.migrate()
    assert content(database) == before


def test_all_the_way_back_leaves_nothing(database: Database) -> None:
    for _ in range(2):
        database.migrate()
        database.migrate()  # a second start changes nothing
        database.migrate("base")
        assert inspect(database.engine).get_table_names() == ["alembic_version"]


def test_numbers_go_on_after_a_way_back(database: Database) -> None:
    database.migrate()
    table = Base.metadata.tables["outbox"]
    row = {"topic": "t", "payload": b"", "created": 0.0}
    with database.engine.begin() as connection:
        connection.execute(table.insert(), [row] * 3)
    back_to(database, revisions()[0])
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(table.insert(), [row])
        assert connection.scalar(select(func.max(table.c.id))) == 4
