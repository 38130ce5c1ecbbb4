"""The schema's history with data in it, over both databases, to the newest and back."""

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, func, inspect, select

from edgepack_fleet.adapters.database import Database, _alembic_config
from edgepack_fleet.adapters.tables import Base

pytestmark = pytest.mark.both_databases
LARGE = 2**53
FIRST: dict[str, dict[str, Any]] = {
    "groups": {"id": "Lab", "created": 1.5},
    "devices": {
        "id": "cam", "group_id": "Lab", "enrolled": 1_790_000_000.25, "certificate_serial": "0a",
        "inventory": {"arch": "x86_64", "n": LARGE}, "online": True, "conn": "c", "boot": "b",
        "agent": "1", "bundle": None, "digest": None, "seen": 0.0, "inferences": LARGE,
        "errors": 3,
    },
    "enrol_tokens": {
        "id": "t1", "digest": "d" * 64, "group_id": "Lab", "created": 1.0, "expires": 2.0,
        "uses": 3, "used": 1,
    },
    "rollouts": {
        "id": "r1", "number": 1, "group_id": "Lab", "release": "m@1.0.0", "variants": [],
        "waves": "1,100%", "policy": {"max_failures": 2}, "forgiven": ["cam"], "state": "running",
        "reason": "so", "created": 1.0, "updated": 2.0, "version": 7,
    },
    "jobs": {
        "id": "r1-cam", "device_id": "cam", "rollout_id": "r1", "wave": 0, "release": "m@1.0.0",
        "target": "t", "version": 2, "status": "QUEUED", "state": "", "reason": "", "progress": 0.5,
        "detail": {"ä": None}, "probation_s": 5, "timeout_s": 60, "created": 1.0, "updated": 2.0,
    },
    "outbox": {"topic": "ep/1/d/cam/dn/job/notify", "payload": b"\x00{}", "created": 1.0},
    "streams": {"device_id": "cam", "boot": "b", "upto": LARGE, "missing": [[1, 2]],
                "updated": 1.0},
    "telemetry": {"device_id": "cam", "boot": "b", "seq": LARGE, "received": 1.0, "bundle": None,
                  "inferences": LARGE, "body": {"text": "\u2028"}},
    "events": {"device_id": "cam", "boot": "b", "seq": 0, "received": 1.0, "type": "activated",
               "body": {}},
}  # fmt: skip
"""A row of every table of the first schema that no later one empties."""


@pytest.fixture
def database(empty_database_url: str) -> Iterator[Database]:
    found = Database(empty_database_url)
    yield found
    found.close()


def revisions() -> list[str]:
    """Return all revisions, the first one first."""
    script = ScriptDirectory.from_config(_alembic_config())
    return [found.revision for found in reversed(list(script.walk_revisions()))]


def back_to(database: Database, revision: str) -> None:
    with database.migration() as migration:
        migration.downgrade(revision)


def content(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Return of every table of the first schema what was put in."""
    metadata, found = MetaData(), {}
    with database.engine.connect() as connection:
        for name, row in FIRST.items():
            table = Table(name, metadata, autoload_with=connection)
            columns = [table.c[column] for column in row]
            rows = connection.execute(select(*columns)).mappings()
            found[name] = [dict(row) for row in rows]
    return found


def put(database: Database) -> None:
    metadata = MetaData()
    with database.engine.begin() as connection:
        for name, row in FIRST.items():
            table = Table(name, metadata, autoload_with=connection)
            connection.execute(table.insert().values(**row))


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
