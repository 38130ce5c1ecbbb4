"""Who gets a new certificate, who does not, and what the fleet remembers of it. Real keys."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack import dsse, messages, topics
from edgepack.errors import EdgepackError
from edgepack.messages import CertReply, CertRequest, Renewal
from edgepack.signed import AUTHORITIES, RENEWAL, public_pem, sign_renewal
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.renewals import Renewals
from edgepack_fleet.uplink import Uplink
from fleet_rig import csr

KEY, THIEF = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
FIRST = ec.generate_private_key(ec.SECP256R1())


class Fleet:
    """A fleet's part in renewals, with a clock of its own."""

    def __init__(self, data: Path) -> None:
        self.now = datetime.now(UTC).timestamp()
        self.database = Database.in_directory(data)
        self.database.migrate()
        self.pki = Pki(data / "pki")
        self.renewals = Renewals(self.database, self.pki, b"secret", lambda: self.now, 100)
        self.uplink = Uplink(self.database, lambda: self.now, renewals=self.renewals)
        with self.database.write() as session:
            session.add(GroupRow(id="lab", created=0.0))
            session.flush()
            for name, key in (("cam", public_pem(KEY.public_key())), ("plain", "")):
                issued = self.pki.issue(csr(FIRST), name, datetime.now(UTC))
                session.add(
                    DeviceRow(id=name, group_id="lab", enrolled=0.0, inventory={},
                              certificate_serial=issued.serial, certificate=issued.pem,
                              report_key=key)
                )  # fmt: skip

    def row(self, name: str = "cam") -> DeviceRow:
        with self.database.read() as session:
            return session.get_one(DeviceRow, name)

    def ask(self, request: str, device: str = "cam") -> CertReply | str:
        """Ask over MQTT; return the answer, or the code of the refusal."""
        said = msgspec.json.encode(CertRequest(token="t", request=request))
        (answer,) = self.uplink.ingest([Incoming(topics.up(device, "cert"), said)])
        if answer.topic.endswith("rejected"):
            return messages.decode(answer.payload, messages.Rejected).code
        assert answer.topic == topics.down(device, "cert/accepted")
        return messages.decode(answer.payload, CertReply)

    def birth(self, serial: str, device: str = "cam") -> None:
        said = messages.Conn(online=True, conn="c", cert=serial)
        self.uplink.ingest([Incoming(topics.up(device, "conn"), msgspec.json.encode(said))])


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    yield found
    found.database.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    found = Fleet(tmp_path_factory.mktemp("fuzzed"))
    yield found
    found.database.close()


def signed(key: ec.EllipticCurvePrivateKey = KEY, **changes: Any) -> str:
    facts = {"device": "cam", "csr": csr(ec.generate_private_key(ec.SECP256R1()))} | changes
    return sign_renewal(Renewal(**facts), key)


def serial(pem: str) -> str:
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"


def test_the_old_certificate_is_retired_when_the_new_one_has_been_used(fleet: Fleet) -> None:
    old = fleet.row().certificate_serial
    reply = fleet.ask(signed())
    assert isinstance(reply, CertReply)
    new = serial(reply.certificate)
    assert fleet.row().certificate_serial == old, "it has not been seen with the new one"
    fleet.birth(old)
    fleet.renewals.revoke_retired()
    assert fleet.pki.revoked() == {}
    fleet.birth(new)
    row = fleet.row()
    assert (row.certificate_serial, row.pending_certificate) == (new, "")
    fleet.renewals.revoke_retired()
    assert set(fleet.pki.revoked()) == {int(old, 16)}
    ca = x509.load_pem_x509_certificate(fleet.pki.ca_pem.encode()).public_key()
    assert isinstance(ca, ec.EllipticCurvePublicKey)
    assert dsse.opened(AUTHORITIES, reply.authorities.encode(), ca) == fleet.pki.bundle.encode()


def test_asked_again_with_the_same_key_the_answer_is_the_same(fleet: Fleet) -> None:
    request = signed()
    first, second = fleet.ask(request), fleet.ask(request)
    assert first == second
    assert isinstance(first, CertReply)
    fleet.birth(serial(first.certificate))
    assert fleet.ask(request) == first, "nor does a repeat of an old request get anything new"
    other = fleet.ask(signed())
    assert isinstance(other, CertReply)
    assert other != first


def test_what_a_stolen_broker_asks_for_is_refused(fleet: Fleet) -> None:
    own = csr(THIEF)
    assert fleet.ask(signed(THIEF, csr=own)) == "bad_signature"
    assert fleet.ask(signed(), device="plain") == "bad_message", "no certificate"
    assert fleet.ask(signed(device="plain")) == "bad_signature"
    theirs = fleet.pki.issue(csr(THIEF), "other", datetime.now(UTC)).pem
    as_plain = {"device": "plain", "csr": own, "report_key": public_pem(THIEF.public_key())}
    for certificate in ("", "rubbish", theirs, fleet.row("plain").certificate):
        request = signed(THIEF, **as_plain, certificate=certificate)
        assert fleet.ask(request, "plain") in {"bad_signature", "bad_message"}
    assert fleet.row("plain").report_key == ""
    assert fleet.ask(signed(csr="rubbish")) == "bad_csr"
    assert fleet.row().pending_certificate == ""


def test_a_device_without_a_report_key_tells_one_with_its_tls_key(fleet: Fleet) -> None:
    facts = {"device": "plain", "certificate": fleet.row("plain").certificate}
    public = public_pem(KEY.public_key())
    assert isinstance(fleet.ask(signed(FIRST, **facts, report_key=public), "plain"), CertReply)
    assert fleet.row("plain").report_key == public
    assert isinstance(fleet.ask(signed(KEY, device="plain"), "plain"), CertReply)
    another = public_pem(THIEF.public_key())
    assert fleet.ask(signed(FIRST, **facts, report_key=another), "plain") == "bad_signature"


def over_https(fleet: Fleet, request: str) -> CertReply | str:
    try:
        return fleet.renewals.over_https(CertRequest(token="t", request=request))
    except EdgepackError as error:
        return error.reason


def test_after_a_long_absence_the_report_key_is_enough(fleet: Fleet) -> None:
    challenge = fleet.renewals.challenge()
    fleet.now += 299
    reply = over_https(fleet, signed(challenge=challenge))
    assert isinstance(reply, CertReply)
    fleet.now += 2
    assert over_https(fleet, signed(challenge=challenge)) == "stale_challenge"


@pytest.mark.parametrize("challenge", ["", "x", "1.ab.cd", "9999999999.ab.", "..", "é.é.é"])
def test_a_challenge_is_ours(fleet: Fleet, challenge: str) -> None:
    assert over_https(fleet, signed(challenge=challenge)) == "stale_challenge"


def test_who_may_not_renew_over_https(fleet: Fleet) -> None:
    def ask(key: ec.EllipticCurvePrivateKey = KEY, **facts: str) -> CertReply | str:
        return over_https(fleet, signed(key, challenge=fleet.renewals.challenge(), **facts))

    assert ask(THIEF) == "bad_signature"
    assert ask(device="nobody") == ask(device="plain") == "not_renewable"
    fleet.now += timedelta(days=189).total_seconds()
    assert isinstance(ask(), CertReply), "90 days of life and nearly 100 of grace"
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").pending_certificate = ""
    fleet.now += timedelta(days=2).total_seconds()
    assert ask() == "certificate_expired"
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").revoked = 1.0
    assert ask() == "not_renewable"


TEXTS = st.text(max_size=40)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        TEXTS,
        st.binary(max_size=60).map(lambda body: dsse.seal(RENEWAL, body, KEY).decode()),
        st.builds(lambda d, c, h: signed(device=d, csr=c, challenge=h), TEXTS, TEXTS, TEXTS),
    )
)
def test_no_request_stops_the_fleet(lasting: Fleet, request_text: str) -> None:
    assert isinstance(lasting.ask(request_text), str)
    assert isinstance(over_https(lasting, request_text), str)
