"""Rows of the first schema, to be taken through all later ones."""

from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, select

from edgepack_fleet.adapters.database import Database, _alembic_config

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


def revisions() -> list[str]:
    """Return all revisions, the first one first."""
    script = ScriptDirectory.from_config(_alembic_config())
    return [found.revision for found in reversed(list(script.walk_revisions()))]


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
