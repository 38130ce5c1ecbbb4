"""The files an agent lives by, damaged in every way: it recovers or says what is wrong. Fuzzed."""

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.messages import Ack, Telemetry
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.identity import load_identity, write_identity
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.core.state import Job, Model, Slot, State
from edgepack_fleet.adapters.pki import Pki
from fleet_rig import csr, pem
from fuzz import damaged, examples, json_values, refusal

few = examples(30)
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def telemetry(boot: str, seq: int = 0) -> Telemetry:
    return Telemetry(boot=boot, seq=seq, start=1.0, end=2.0, inferences=1)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    slot = Slot("a", Model("digits@1.0.0", "models/digits", "a" * 64, 700))
    job = Job("job-1", "digits@1.1.0", "models/d")
    state = State(phase="downloading", current=slot, candidate=slot, job=job)
    written = Journal(path)
    written.save(state)
    written.close()
    return path.read_bytes()


def reopen(path: Path) -> None:
    journal = Journal(path)
    try:
        assert isinstance(journal.state, State)
        journal.save(State(ended="afterwards"))
        assert journal.state.ended == "afterwards"
    finally:
        journal.close()


@few
@given(st.data())
def test_a_damaged_journal_is_put_aside_or_read(
    journal: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    home = tmp_path / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "journal.db").write_bytes(data.draw(damaged(journal)))
    assert refusal(reopen, home / "journal.db") in {None, "storage"}


def body(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as database:
        found: bytes = database.execute("SELECT body FROM state").fetchone()[0]
        return found


@few
@given(st.data())
def test_a_damaged_state_in_a_whole_journal_is_salvaged_or_lost(
    journal: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "journal.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(journal)
    row = data.draw(damaged(body(path)) | st.none() | st.text(max_size=9) | st.integers(0, 9))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE state SET body = ?", (row,))
    assert refusal(reopen, path) in {None, "storage"}


@pytest.mark.parametrize("row", [b'"\xff"', b"[" * 100_000, None, 7])
def test_a_state_that_is_no_json_is_lost_and_inference_goes_on(
    journal: bytes, tmp_path: Path, row: Any
) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(journal)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE state SET body = ?", (row,))
    opened = Journal(path)
    assert opened.lost
    assert opened.state == State()
    opened.close()


def filled(path: Path) -> str:
    outbox = Outbox(path)
    for _ in range(3):
        outbox.add_telemetry(lambda seq, _lost: telemetry(outbox.boot, seq))
        outbox.add_event(1.0, "activated")
    outbox.close()
    return outbox.boot


def used(path: Path) -> list[Any]:
    """Use the outbox of PATH in every way; return the rows it would send."""
    outbox = Outbox(path, max_rows=6)
    try:
        sent = [row for batch in outbox.take() for row in batch.rows]
        for _ in range(4):
            outbox.add_telemetry(lambda seq, _lost: telemetry(outbox.boot, seq))
            outbox.add_event(1.0, "inventory")
        outbox.acknowledge(Ack(boot=outbox.boot, upto=3))
        return sent
    finally:
        outbox.close()


@few
@given(st.data())
def test_a_damaged_outbox_is_put_aside_or_used(tmp_path: Path, data: st.DataObject) -> None:
    home = tmp_path / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    path = home / "outbox.db"
    filled(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    assert refusal(used, path) in {None, "storage"}


@pytest.mark.parametrize("column", ["body", "boot", "seq", "kind"])
@pytest.mark.parametrize("value", [b'{"v":1}', b"\xff", b"[" * 99, "else", 99, 2**62])
def test_one_damaged_row_does_not_hold_up_the_others(
    tmp_path: Path, column: str, value: Any
) -> None:
    path = tmp_path / "outbox.db"
    filled(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE rows SET {column} = ? WHERE place = 2", (value,))
    assert len(used(path)) == 5


@pytest.mark.parametrize("value", [b"\xff", "text", -4, 2**62, 0])
@pytest.mark.parametrize("column", ["boot", "next", "lost"])
def test_a_damaged_count_begins_a_new_boot(tmp_path: Path, column: str, value: Any) -> None:
    path = tmp_path / "outbox.db"
    boot = filled(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE box SET {column} = ?", (value,))
    assert len(used(path)) == 6
    outbox = Outbox(path)
    assert (outbox.boot == boot) == (column == "lost")
    outbox.close()


def floors_at(path: Path) -> Floors:
    floors = Floors(path)
    floors.raise_seen({"image/root@": 3}, int(NOW.timestamp()))
    floors.confirm("digits", 2)
    return floors


@few
@given(st.data())
@example(None)
def test_damaged_floors_never_fall(tmp_path: Path, data: st.DataObject | None) -> None:
    path = tmp_path / "floors.json"
    for each in (path, tmp_path / "floors.json.copy"):
        each.unlink(missing_ok=True)
    floors_at(path)
    later = b'{"time":4611686018427387904}'
    path.write_bytes(data.draw(damaged(path.read_bytes())) if data else later)
    again = Floors(path)
    assert again.role("image/root@") >= 3
    assert again.epoch("digits") >= 2
    assert refusal(again.check_clock, NOW) in {None, "clock"}


def test_no_flipped_bit_makes_another_floor(tmp_path: Path) -> None:
    path = tmp_path / "floors.json"
    floors_at(path)
    sample = path.read_bytes()
    (tmp_path / "floors.json.copy").unlink()
    read: list[Floors] = []
    for place in range(8 * len(sample)):
        changed = bytearray(sample)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert refusal(lambda: read.append(Floors(path))) in {None, "floors_unreadable"}
    for floors in read:
        assert (floors.role("image/root@"), floors.epoch("digits")) == (3, 2)
        assert floors.time == int(NOW.timestamp())


@few
@given(st.data())
def test_floors_damaged_in_both_copies_say_so(tmp_path: Path, data: st.DataObject) -> None:
    path, copy = tmp_path / "floors.json", tmp_path / "floors.json.copy"
    for each in (path, copy):
        each.unlink(missing_ok=True)
    floors_at(path)
    sample = path.read_bytes()
    path.write_bytes(data.draw(damaged(sample)))
    copy.write_bytes(data.draw(damaged(sample) | json_values.map(str).map(str.encode)))
    reason = refusal(lambda: Floors(path).check_clock(NOW))
    assert reason in {None, "floors_unreadable", "clock"}


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("enrolled")
    pki, key = Pki(home / "pki"), ec.generate_private_key(ec.SECP256R1())
    certificate = pki.issue(csr(key), "cam-1", datetime.now(UTC))
    write_identity(
        home / "identity",
        device="cam-1",
        group="lab",
        broker=("127.0.0.1", 8883),
        files={
            "key.pem": pem(key),
            "certificate.pem": getattr(certificate, "pem", certificate).encode(),
            "report-key.pem": pem(ec.generate_private_key(ec.SECP256R1())),
            "ca.pem": pki.ca_path.read_bytes(),
            "image-root.json": b"{}",
            "director-root.json": b"{}",
        },
    )
    return home / "identity"


def read_all(directory: Path) -> None:
    identity = load_identity(directory)
    assert identity is not None
    identity.in_use()
    identity.key()
    identity.report_key()
    identity.tls()
    assert identity.image_root
    assert identity.director_root


FILES = ["device.json", "key.pem", "certificate.pem", "report-key.pem", "ca.pem"]


@few
@given(st.data())
def test_a_damaged_identity_says_so(enrolled: Path, tmp_path: Path, data: st.DataObject) -> None:
    directory = tmp_path / "identity"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(enrolled, directory)
    file = directory / data.draw(st.sampled_from(FILES))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    assert refusal(read_all, directory) in {None, "bad_identity"}


@pytest.mark.parametrize("name", [*FILES[:3], "ca.pem", "image-root.json", "director-root.json"])
def test_a_lost_file_of_the_identity_says_so(enrolled: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(enrolled, tmp_path / "identity")
    read_all(tmp_path / "identity")
    (tmp_path / "identity" / name).unlink()
    with pytest.raises(UsageError) as caught:
        read_all(tmp_path / "identity")
    assert caught.value.reason == "bad_identity"
