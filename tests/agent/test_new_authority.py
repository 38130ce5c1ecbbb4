"""The fleet's certificate authority is replaced under a running device."""

from pathlib import Path

import pytest
from cryptography import x509

from agent_rig import Device, Site, site
from edgepack.errors import UsageError
from edgepack.messages import CertHint
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.tables import DeviceRow
from fleet_rig import wait


def followed(place: Site) -> bool:
    return not place.service.authorities.standing().behind


def issuer(device: Device) -> str:
    """Return who issued the certificate that DEVICE has in use."""
    home = device.data / "identity"
    path = home / "tls.pem" if (home / "tls.pem").exists() else home / "certificate.pem"
    return x509.load_pem_x509_certificate(path.read_bytes()).issuer.rfc4514_string()


@pytest.mark.mosquitto
@pytest.mark.soak
def test_a_device_follows_a_new_authority_and_is_never_left_behind(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        service, device = place.service, place.device()
        service.renewals.hint = CertHint(within_s=0)
        device.start()
        wait("its birth", lambda: followed(place))
        first = issuer(device)

        assert service.authorities.rotate().next == "ca-2"
        wait("it to know the next one", lambda: followed(place), 100)
        service.authorities.rotate()
        assert service.pki.issuing == "ca-2"
        wait("the fleet to be back", lambda: service.link.connected)
        wait("its new certificate", lambda: followed(place), 100)
        assert issuer(device) != first

        standing = service.authorities.retire()
        assert standing.trusted == ("ca-2",)
        wait("it to forget the old one", lambda: followed(place), 100)
        text = (device.data / "identity" / "ca.pem").read_text()
        assert text == service.pki.bundle
        assert text.count("BEGIN") == 1
        assert wait("the link", lambda: device.status().get("connected"))
        assert device.stop() == 0


def test_steps_out_of_order_are_refused_and_a_restart_remembers(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.revoke("ab12")
    pki.announce_next()
    again = Pki(tmp_path / "pki")
    assert (again.issuing, again.next, len(again.authorities)) == ("ca", "ca-2", 2)
    server = again.pair("server")[0].read_bytes()
    again.switch()
    assert again.keep_fresh() == {"server", "fleet"}
    assert again.pair("server")[0].read_bytes() != server
    again.retire_old()
    last = Pki(tmp_path / "pki")
    assert (last.issuing, last.next, list(last.authorities)) == ("ca-2", None, ["ca-2"])
    assert set(last.revoked()) == {0xAB12}, "what was revoked stays so"
    last.announce_next()
    assert last.next == "ca-3"


@pytest.mark.mosquitto
def test_a_step_that_would_leave_a_device_behind_is_refused(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        authorities = place.service.authorities
        place.device()  # never starts
        with pytest.raises(UsageError) as caught:
            authorities.retire()
        assert caught.value.reason == "wrong_state"
        authorities.rotate()
        with pytest.raises(UsageError) as caught:
            authorities.rotate()
        assert caught.value.reason == "devices_behind"
        with place.service.database.write() as session:
            session.get_one(DeviceRow, "cam").revoked = 1.0
        assert authorities.rotate().issuing == "ca-2"
        assert authorities.retire().trusted == ("ca-2",)
