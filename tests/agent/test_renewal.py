"""A device's certificate is renewed in time, after a long absence, and across power cuts."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from agent_rig import Device, Site, site
from edgepack.errors import UsageError
from edgepack.messages import EnrollRequest, Inventory
from edgepack_agent.adapters.credentials import public_key, request_pem
from edgepack_agent.adapters.enroll import Token, enroll
from edgepack_agent.adapters.identity import Identity, load_identity, write_identity
from edgepack_agent.adapters.keys import private_pem
from edgepack_agent.adapters.renewal import Renewer
from edgepack_agent.core.renewal import DUE, SPREAD, Life, phase
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.service import Service
from edgepack_fleet.web.devices import device_app
from fleet_rig import csr, free_port, listens, pem, wait


@given(st.floats(0, 1), st.integers(-1000, 2000))
def test_renewal_is_spread_over_a_tenth_of_a_life(place: float, age: int) -> None:
    found = phase(Life(1000.0, 2000.0, place), 1000.0 + age)
    if age >= 1000:
        assert found == "expired"
    elif age >= 1000 * (DUE + SPREAD):
        assert found == "due"
    elif age < 1000 * DUE:
        assert found == "fresh"


def new_identity(directory: Path, pki: Pki) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = pki.issue(csr(key), "cam", datetime.now(UTC))
    write_identity(
        directory, device="cam", group="lab", broker=("127.0.0.1", 1),
        files={"key.pem": pem(key), "certificate.pem": issued.pem.encode(),
               "report-key.pem": pem(key), "ca.pem": pki.bundle.encode()},
    )  # fmt: skip
    found = load_identity(directory)
    assert found is not None
    return found


def renew(identity: Identity, pki: Pki) -> None:
    """What a device does from its request to the first connection with the new certificate."""
    request = request_pem(identity.next_key(), "cam")
    identity.keep(pki.issue(request, "cam", datetime.now(UTC)).pem, pki.bundle)
    identity.promote()


def test_at_no_moment_is_there_no_working_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every flush is the last thing that happens, once; then the device starts again."""
    pki = Pki(tmp_path / "pki")
    kept, first = tmp_path / "kept", new_identity(tmp_path / "first", pki)
    flush, flushes = os.fsync, 0
    while True:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(first.directory, kept)
        left = flushes

        def dying(handle: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(5, "power cut")
            flush(handle)

        identity = load_identity(kept)
        assert identity is not None
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr(os, "fsync", dying)
            renew(identity, pki)
        again = load_identity(kept)
        assert again is not None
        again.tls()
        assert public_key(again.certificate_pem().encode()) == again.key().public_key()
        if again.has_newer:
            again.tls(newer=True)
        renew(again, pki)
        assert again.next_key().public_key() != again.key().public_key(), "each has its own"
        if left >= 0:
            break
        flushes += 1
    assert flushes >= 5, "files and their names were flushed"


def test_every_renewal_has_a_key_of_its_own(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    identity = new_identity(tmp_path / "identity", pki)
    seen = set()
    for _ in range(3):
        seen.add(private_pem(identity.key()))
        renew(identity, pki)
    assert len(seen | {private_pem(identity.key())}) == 4
    names = {path.name for path in identity.directory.iterdir()}
    assert names == {"device.json", "tls.pem", "report-key.pem", "ca.pem"}


# -- with a real fleet, broker and agent


@contextlib.contextmanager
def listening(service: Service, port: int) -> Iterator[None]:
    """Serve the device listener of SERVICE over TLS."""
    certificate, key = service.pki.pair("server")
    config = uvicorn.Config(
        device_app(service), "127.0.0.1", port, log_config=None, lifespan="off",
        ssl_certfile=certificate, ssl_keyfile=str(key),
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait("the listener", lambda: listens(port))
        yield
    finally:
        server.should_exit = True
        thread.join(10)


def row(service: Service, device: str) -> DeviceRow:
    with service.database.read() as session:
        return session.get_one(DeviceRow, device)


def certificate(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = device.status().get("certificate", {})
    return found


def age(place: Site, device: Device, days: float, port: int = 0) -> str:
    """Give DEVICE a certificate that was issued DAYS ago; return its serial number."""
    home = device.data / "identity"
    key, then = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC) - timedelta(days=days)
    issued = place.service.pki.issue(csr(key), device.name, then)
    (home / "key.pem").write_bytes(pem(key))
    (home / "certificate.pem").write_text(issued.pem)
    facts = (home / "device.json").read_text()
    url = f'"url":"https://127.0.0.1:{port}"'
    (home / "device.json").write_text(facts.replace('"url":""', url if port else '"url":""'))
    with place.service.database.write() as session:
        found = session.get_one(DeviceRow, device.name)
        found.certificate, found.certificate_serial = issued.pem, issued.serial
    return issued.serial


@pytest.mark.mosquitto
def test_a_certificate_is_renewed_over_the_link_and_the_old_one_retired(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        device = place.device()
        old = age(place, device, days=85)
        device.start()
        wait("the new one to be used", lambda: row(place.service, "cam").certificate_serial != old)
        wait("the link", lambda: device.status().get("connected"))
        assert device.status()["certificate"]["phase"] == "fresh"
        assert not (device.data / "identity" / "next.pem").exists()
        assert not (device.data / "identity" / "key.pem").exists()
        place.service.renewals.revoke_retired()
        assert int(old, 16) in place.service.pki.revoked()
        inventory = wait("its inventory", lambda: place.events("inventory"))
        assert inventory
        assert row(place.service, "cam").report_key
        assert device.stop() == 0


@pytest.mark.mosquitto
def test_a_device_that_enrolled_without_a_report_key_gets_one(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        device = place.device()
        (device.data / "identity" / "report-key.pem").unlink()
        with place.service.database.write() as session:
            session.get_one(DeviceRow, "cam").report_key = ""
        device.start()
        wait("its key", lambda: row(place.service, "cam").report_key)
        wait("the key to be used", (device.data / "identity" / "report-key.pem").exists)
        assert device.stop() == 0


@pytest.mark.mosquitto
def test_a_device_back_after_400_days(tmp_path: Path) -> None:
    """It infers all the while, says what to do when it is too late, and renews when it is not."""
    port = free_port()
    with site(tmp_path) as place:
        place.publish("1.0.0")
        device = place.device()
        device.start()
        assert place.ended(place.roll_out("1.0.0")) == "completed"
        assert device.stop() == 0
        old = age(place, device, days=400, port=port)
        service = place.service
        service.renewals._grace = timedelta(days=100)
        with listening(service, port):
            device.start()
            trouble = wait(
                "it to be said", lambda: device.status().get("certificate", {}).get("trouble")
            )
            assert trouble["reason"] == "certificate_expired"
            assert "edgepack-agent enroll" in trouble["fix"]
            device.comes_to_serve("digits@1.0.0")
            assert device.accuracy() > 0.9
            assert device.stop() == 0
            service.renewals._grace = timedelta(days=730)
            device.start()
            wait("the new one to be used", lambda: row(service, "cam").certificate_serial != old)
            wait("the link", lambda: device.status().get("connected"))
            assert device.accuracy() > 0.9
            assert device.stop() == 0


@pytest.mark.mosquitto
def test_a_lost_answer_does_not_burn_a_token(tmp_path: Path) -> None:
    port = free_port()
    with site(tmp_path) as place:
        place.publish("1.0.0")
        service = place.service
        place.device("first")  # makes the group
        made = service.enrolment.create_token("lab", 60, 1)
        token = Token(f"https://127.0.0.1:{port}", made.secret, service.pki.ca_sha256)
        home, root = tmp_path / "x" / "identity", b'{"signed": {"_type": "root"}}'
        lost, enrolment = [], service.enrolment.enroll

        def losing(request: EnrollRequest) -> object:
            lost.append(enrolment(request))
            raise RuntimeError("the answer is lost")

        def join() -> str:
            return enroll(
                token, home, name="cam", inventory=Inventory(), root=root, root_sha256=None
            )

        with listening(service, port):
            service.enrolment.enroll = losing  # type: ignore[method-assign, assignment]
            with pytest.raises(Exception, match="cannot serve this device now"):
                join()
            service.enrolment.enroll = enrolment  # type: ignore[method-assign]
            assert join() == "cam"
        assert len({reply.certificate for reply in lost}) == 1
        identity = load_identity(home)
        assert identity is not None
        assert identity.certificate_pem() == lost[0].certificate
        assert [path.name for path in home.parent.iterdir()] == ["identity"]


# -- on a disk that fails, and with files that are damaged


def renewer(identity: Identity, calls: list[str]) -> Renewer:
    """A renewer of a certificate that is due; CALLS gets what it does."""

    def say(kind: str, _payload: bytes) -> bool:
        calls.append(kind)
        return True

    end = identity.validity().end
    return Renewer(
        identity, say, lambda: calls.append("reconnect"), lambda action: action(),
        wall=lambda: end - 3600,
    )  # fmt: skip


def test_a_disk_without_room_for_a_key_stops_nothing_but_the_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    found = renewer(new_identity(tmp_path / "identity", Pki(tmp_path / "pki")), calls)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found.tick(connected=True, idle=True)
    assert found.trouble
    assert found.trouble["reason"] == "disk_full"
    assert not calls


@pytest.mark.parametrize("name", ["certificate.pem", "report-key.pem"])
def test_a_damaged_file_of_the_identity_stops_nothing_but_the_renewal(
    tmp_path: Path, name: str
) -> None:
    identity = new_identity(tmp_path / "identity", Pki(tmp_path / "pki"))
    found = renewer(identity, [])
    (identity.directory / name).write_bytes(b"\xff")
    found.tick(connected=True, idle=True)
    assert found.trouble
    assert found.trouble["reason"] == "bad_identity"


def test_a_new_pair_that_does_not_come_into_use_is_tried_now_and_then(tmp_path: Path) -> None:
    calls: list[str] = []
    pki = Pki(tmp_path / "pki")
    identity = new_identity(tmp_path / "identity", pki)
    found = renewer(identity, calls)
    request = request_pem(identity.next_key(), "cam")
    identity.keep(pki.issue(request, "cam", datetime.now(UTC)).pem, pki.bundle)
    for _ in range(20):
        found.tick(connected=True, idle=True)
    assert calls == ["reconnect"]


def test_facts_that_are_no_text_are_a_clear_error(tmp_path: Path) -> None:
    directory = new_identity(tmp_path / "identity", Pki(tmp_path / "pki")).directory
    (directory / "device.json").write_bytes(b'{"device": "\xff"}')
    with pytest.raises(UsageError, match="cannot be read"):
        load_identity(directory)
