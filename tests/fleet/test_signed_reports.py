"""A stolen broker cannot make the fleet believe anything about a device that signs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from edgepack import dsse, messages, topics
from edgepack.errors import IntegrityError
from edgepack.signed import REPORT, public_pem, read_report, sign_report
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import DeviceRow, EventRow, GroupRow
from edgepack_fleet.uplink import Answer, Uplink

KEY, THIEF = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database.in_directory(tmp_path)
    found.migrate()
    keys = {"cam": public_pem(KEY.public_key()), "twin": public_pem(KEY.public_key()), "old": ""}
    with found.write() as session:
        session.add(GroupRow(id="lab", created=0.0))
        session.flush()
        session.add_all(
            DeviceRow(id=name, group_id="lab", enrolled=0.0, certificate_serial="1", inventory={},
                      report_key=key)
            for name, key in keys.items()
        )  # fmt: skip
    yield found
    found.close()


@pytest.fixture
def uplink(database: Database) -> Uplink:
    return Uplink(database, lambda: 1000.0)


def batch(seq: int, bundle: str = "m@1.0.0", **facts: Any) -> bytes:
    event = {"boot": "b", "seq": seq, "ts": 0.0, "type": "activated", "bundle": bundle} | facts
    return messages.encode_batch([messages.Event(**event)])


def say(uplink: Uplink, payload: bytes, kind: str = "evt", device: str = "cam") -> list[Answer]:
    return uplink.ingest([Incoming(topics.up(device, kind), payload)])


def signed(payload: bytes, key: ec.EllipticCurvePrivateKey = KEY, **facts: str) -> bytes:
    facts = {"device": "cam", "kind": "evt"} | facts
    return sign_report(facts["device"], facts["kind"], payload, 7.0, key)


def bundle(database: Database, device: str = "cam") -> str | None:
    with database.read() as session:
        return session.get_one(DeviceRow, device).bundle


def events(database: Database) -> list[tuple[str, int, bool]]:
    with database.read() as session:
        return [(e.device_id, e.seq, e.verified) for e in session.scalars(select(EventRow))]


def test_what_is_signed_is_believed_once(uplink: Uplink, database: Database) -> None:
    word = signed(batch(0))
    assert len(say(uplink, word)) == 1
    assert (bundle(database), events(database)) == ("m@1.0.0", [("cam", 0, True)])
    say(uplink, signed(batch(1, "m@2.0.0")))
    (ack,) = say(uplink, word)
    assert messages.decode(ack.payload, messages.Ack).upto == 1
    assert bundle(database) == "m@2.0.0", "a repeat changes nothing"
    assert len(events(database)) == 2


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (batch(0), "unsigned"),
        (signed(batch(0), THIEF), "bad_signature"),
        (signed(batch(0), device="twin"), "bad_signature"),
        (signed(batch(0), kind="tele"), "bad_signature"),
        (dsse.seal("application/other", batch(0), KEY), "bad_message"),
    ],
)
def test_a_forged_report_is_not_even_counted(
    uplink: Uplink, database: Database, payload: bytes, reason: str
) -> None:
    assert say(uplink, payload) == [], "an answer would release the true row with that number"
    assert uplink.refused == {reason: 1}
    assert events(database) == []
    say(uplink, signed(batch(0)))
    assert events(database) == [("cam", 0, True)]


def test_telemetry_cannot_use_up_the_number_of_an_event(uplink: Uplink, database: Database) -> None:
    forged = messages.Telemetry(boot="b", seq=0, start=0.0, end=1.0)
    assert say(uplink, messages.encode_batch([forged]), "tele") == []
    say(uplink, signed(batch(0)))
    assert bundle(database) == "m@1.0.0"


def test_a_birth_says_nothing_about_the_bundle(uplink: Uplink, database: Database) -> None:
    birth = messages.Conn(online=True, conn="c", bundle="m@6.6.6")
    for device in ("cam", "old"):
        say(uplink, msgspec.json.encode(birth), "conn", device)
    assert (bundle(database), bundle(database, "old")) == (None, "m@6.6.6")


def test_a_job_is_updated_by_its_device_alone(uplink: Uplink) -> None:
    update = messages.JobUpdate(token="t", job="r1-cam", version=0, status="SUCCEEDED")
    plain = messages.encode(update)
    for payload, code in ((plain, "unsigned"), (signed(plain, kind="job/update"), "unknown_job")):
        (answer,) = say(uplink, payload, "job/update")
        assert messages.decode(answer.payload, messages.Rejected).code == code


def test_a_device_without_a_key_is_believed_unverified(uplink: Uplink, database: Database) -> None:
    say(uplink, batch(0), device="old")
    say(uplink, signed(batch(1, "m@2.0.0"), device="old"), device="old")
    assert bundle(database, "old") == "m@2.0.0"
    assert events(database) == [("old", 0, False), ("old", 1, False)]


@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(lambda body: dsse.seal(REPORT, body, KEY)),
        st.binary(max_size=60).map(lambda body: b"{" + body),
    )
)
def test_nonsense_is_refused(payload: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_report("cam", "evt", payload, KEY.public_key())
    assert caught.value.reason in {"unsigned", "bad_message", "bad_signature"}
