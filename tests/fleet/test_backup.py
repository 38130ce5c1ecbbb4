"""A fleet in one file: taken while it serves, put back on either database, damaged, old."""

import io
import itertools
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from edgepack import messages, topics
from edgepack.cli import root, run_command
from edgepack.errors import IntegrityError, UsageError
from edgepack_fleet.adapters import dump
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.rollup_tables import EVER, GroupRollup
from edgepack_fleet.adapters.tables import DeviceRow, OutboxRow
from edgepack_fleet.backup import restore, take
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service, Settings
from fleet_rig import enrol, publisher
from history_rig import FIRST, content, put, revisions

BROKER = Address("127.0.0.1", 1)


@pytest.fixture
def served(fleet: Service) -> Service:
    """A fleet with something of everything in it."""
    publisher(fleet.settings.data).release()
    enrol(fleet, "cam")
    fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    fleet.rollouts.tick(0.0)
    row = messages.Telemetry(boot="b", seq=0, start=0.0, end=1.0, inferences=2**53)
    fleet.uplink.ingest([Incoming(topics.up("cam", "tele"), messages.encode_batch([row]))])
    return fleet


def lines(database: Database) -> dict[str, list[bytes]]:
    with dump.reading(database) as reader:
        return {table: sorted(reader.lines(table)) for table in reader.tables}


def files(data: Path) -> dict[str, bytes]:
    found = (path for path in data.rglob("*") if path.is_file())
    names = {path.relative_to(data).as_posix(): path for path in found}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not path.name.startswith((".", "fleet.db", "serve", "endpoints"))
    }


@pytest.mark.both_databases
def test_what_is_put_back_is_what_was_taken(
    served: Service, tmp_path: Path, empty_database_url: str
) -> None:
    made = take(served.settings.data, served.database, tmp_path / "b.tar")
    again = restore(tmp_path / "b.tar", tmp_path / "again", empty_database_url)
    assert (made.rows, made.files) == (again.rows, again.files)
    assert files(tmp_path / "again") == files(served.settings.data)
    assert (tmp_path / "again" / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    database = Database(empty_database_url)
    assert lines(database) == lines(served.database)
    with database.write() as session:
        session.add(OutboxRow(topic="t", payload=b"", created=0.0))
    database.close()
    later = Service(Settings(tmp_path / "again", BROKER, empty_database_url))
    assert [release.id for release in later.releases()] == ["digits@1.0.0"]
    enrol(later, "cam-2")
    later.database.close()


@pytest.mark.both_databases
def test_one_that_is_taken_while_it_serves_is_of_one_moment(
    served: Service, tmp_path: Path
) -> None:
    over, numbers = threading.Event(), itertools.count(1)

    def report() -> None:
        while not over.is_set():
            row = messages.Telemetry(
                boot="b", seq=next(numbers), start=0.0, end=1.0, inferences=3, bundle="new@1.0.0"
            )
            payload = messages.encode_batch([row])
            served.uplink.ingest([Incoming(topics.up("cam", "tele"), payload)])

    with served.database.write() as session:
        session.get_one(DeviceRow, "cam").inferences = 0
    thread = threading.Thread(target=report)
    thread.start()
    try:
        for n in range(3):
            take(served.settings.data, served.database, tmp_path / f"{n}.tar")
    finally:
        over.set()
        thread.join()
    for n in range(3):
        restore(tmp_path / f"{n}.tar", tmp_path / f"back-{n}")
        database = Database.in_directory(tmp_path / f"back-{n}")
        with database.read() as session:
            named = GroupRollup.span == EVER, GroupRollup.bundle == "new@1.0.0"
            ever = select(func.sum(GroupRollup.inferences)).where(*named)
            counted = session.get_one(DeviceRow, "cam").inferences
            assert counted == (session.scalar(ever) or 0)
            assert counted or not n, "the later ones were taken while it reported"
        database.close()


@pytest.mark.both_databases
def test_a_backup_of_the_first_schema_becomes_a_fleet_of_today(
    empty_database_url: str, tmp_path: Path
) -> None:
    old = Database(empty_database_url)
    old.migrate(revisions()[0])
    put(old)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "secret").write_text("s" * 64)
    take(tmp_path / "old", old, tmp_path / "b.tar")
    old.close()
    restore(tmp_path / "b.tar", tmp_path / "new")
    service = Service(Settings(tmp_path / "new", BROKER))
    found = content(service.database)
    assert found == {name: [row] for name, row in FIRST.items()}
    service.database.close()


def flipped(data: bytes) -> bytes:
    middle = data.index(b"BEGIN")
    return data[:middle] + b"b" + data[middle + 1 :]


def smuggled(data: bytes) -> bytes:
    file = io.BytesIO(data)
    with tarfile.open(fileobj=file, mode="a") as archive:
        archive.addfile(tarfile.TarInfo("data/pki/more"))
    return file.getvalue()


def escaping(data: bytes) -> bytes:
    file = io.BytesIO(data)
    with tarfile.open(fileobj=file, mode="a") as archive:
        archive.addfile(tarfile.TarInfo("../../more"))
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        smuggled,
        escaping,
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"x" * 2048,
    ],
)
def test_a_damaged_one_is_refused_and_leaves_nothing(
    served: Service, tmp_path: Path, damage: object
) -> None:
    take(served.settings.data, served.database, tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes(damage((tmp_path / "b.tar").read_bytes()))  # type: ignore[operator]
    before = set(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError) as caught:
        restore(tmp_path / "b.tar", tmp_path / "again")
    assert caught.value.reason == "bad_backup"
    assert set(tmp_path.rglob("*")) == before


def test_nothing_is_overwritten(served: Service, tmp_path: Path, pg_url: str) -> None:
    target = tmp_path / "b.tar"
    take(served.settings.data, served.database, target)
    for what in (
        lambda: take(served.settings.data, served.database, target),
        lambda: take(tmp_path / "nobody", served.database, tmp_path / "c.tar"),
        lambda: restore(target, served.settings.data),
        lambda: restore(target, tmp_path / "again", pg_url),
    ):
        with pytest.raises(UsageError):
            what()
    assert not (tmp_path / "again").exists()


@pytest.fixture
def pg_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database that has tables already."""
    server = request.getfixturevalue("pg")
    url = server.create(migrated=True)
    yield url
    server.drop(url)


def test_by_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "fleet"
    service = Service(Settings(data, BROKER))
    service.database.close()

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = 0
        try:
            run_command(root, ["fleet", *map(str, words)])
        except SystemExit as left:
            code = int(left.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    code, out, _ = run("backup", tmp_path / "b.tar", "--data", data, "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["content"]) == (0, "edgepack.backup/v1", True)
    code, out, _ = run("restore", tmp_path / "b.tar", "--data", tmp_path / "again")
    assert code == 0
    assert f"restored to {tmp_path / 'again'}" in out
    assert run("restore", tmp_path / "b.tar", "--data", data)[0] == UsageError.exit_code
    (tmp_path / "b.tar").write_bytes(b"")
    assert run("restore", tmp_path / "b.tar", "--data", tmp_path / "c")[0] == 3
    code, _, err = run("backup", tmp_path / "c.tar", "--data", tmp_path / "nobody")
    assert code == UsageError.exit_code
    assert "--database" in err
