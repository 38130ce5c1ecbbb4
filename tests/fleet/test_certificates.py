"""The fleet's certificate authority."""

import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import IntegrityError, UsageError
from edgepack_fleet.adapters.pki import Pki
from fleet_rig import csr

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def test_the_fleet_chooses_the_name(pki: Pki) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = pki.issue(csr(key, "fleet"), "cam-7", NOW)
    certificate = load(issued.pem)
    assert certificate.subject.rfc4514_string() == "CN=cam-7"
    assert certificate.not_valid_after_utc - NOW <= timedelta(days=90)
    assert f"{certificate.serial_number:x}" == issued.serial
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [u._name for u in usage] == ["clientAuth"]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca


@pytest.mark.parametrize("name", ["fleet", "UPPER", "a/b", "", "a" * 65, "-a", "x\n"])
def test_names_that_are_no_devices(pki: Pki, name: str) -> None:
    with pytest.raises(UsageError):
        pki.issue(csr(ec.generate_private_key(ec.SECP256R1())), name, NOW)


def test_other_keys_and_forged_requests_are_refused(pki: Pki) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    others = [
        builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    ]
    texts = [r.public_bytes(serialization.Encoding.PEM).decode() for r in others]
    good = x509.load_pem_x509_csr(csr(ec.generate_private_key(ec.SECP256R1())).encode())
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-5] ^= 1
    texts.append(ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST"))
    for text in texts:
        with pytest.raises(IntegrityError) as caught:
            pki.issue(text, "cam", NOW)
        assert caught.value.reason == "bad_csr"


@settings(max_examples=60)
@given(st.text(max_size=300), st.booleans())
def test_garbage_is_refused(pki: Pki, text: str, wrap: bool) -> None:
    if wrap:
        text = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(IntegrityError):
        pki.issue(text, "cam", NOW)


def test_keys_are_private_and_everything_survives_a_restart(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki")
    for key in (tmp_path / "pki").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    before = {p.name: p.read_bytes() for p in (tmp_path / "pki").glob("*.[pk]e[my]")}
    second = Pki(tmp_path / "pki")
    after = {p.name: p.read_bytes() for p in (tmp_path / "pki").glob("*.[pk]e[my]")}
    del before["crl.pem"], after["crl.pem"]
    assert before == after
    assert first.ca_sha256 == second.ca_sha256


def test_our_own_certificates_are_renewed_and_get_new_names(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki")
    old = first.pair("server")[0].read_bytes()
    Pki(tmp_path / "pki", now=NOW + timedelta(days=340))
    renewed = first.pair("server")[0].read_bytes()
    assert renewed != old
    Pki(tmp_path / "pki", hosts=("fleet.example", "192.0.2.7"), now=NOW + timedelta(days=340))
    names = load(first.pair("server")[0].read_text()).extensions
    alternative = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fleet.example" in alternative.get_values_for_type(x509.DNSName)
    assert "192.0.2.7" in map(str, alternative.get_values_for_type(x509.IPAddress))


def test_two_processes_that_start_at_once_agree_on_one_authority(tmp_path: Path) -> None:
    found: list[str] = []

    def start() -> None:
        found.append(Pki(tmp_path / "pki").ca_sha256)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_damaged_key_is_said_clearly(tmp_path: Path) -> None:
    Pki(tmp_path / "pki")
    (tmp_path / "pki" / "ca.key").write_text("rubbish")
    with pytest.raises(IntegrityError, match=r"ca\.key"):
        Pki(tmp_path / "pki")


def test_revoked_certificates_stay_on_the_list(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki")
    first.revoke("ab12")
    Pki(tmp_path / "pki").revoke("cd34")
    crl = x509.load_pem_x509_crl(first.crl_path.read_bytes())
    assert {entry.serial_number for entry in crl} == {0xAB12, 0xCD34}
    assert crl.is_signature_valid(load(first.ca_pem).public_key())  # type: ignore[arg-type]


def test_a_list_is_signed_again_before_it_goes_out_of_date(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki", now=NOW)
    first.revoke("ab12")
    before = x509.load_pem_x509_crl(first.crl_path.read_bytes())
    assert not Pki(tmp_path / "pki", now=NOW + timedelta(days=180)).keep_fresh()
    later = Pki(tmp_path / "pki", now=NOW + timedelta(days=186))
    after = x509.load_pem_x509_crl(first.crl_path.read_bytes())
    assert after.next_update_utc > before.next_update_utc + timedelta(days=180)  # type: ignore[operator]
    assert later.revoked() == {}, "what it names has expired by then"
    assert later.keep_fresh() == set()


def test_of_two_lists_the_newer_is_later_even_within_one_second(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki", now=NOW)
    dates = []
    for serial in ("a", "b", "c"):
        pki.revoke(serial)
        dates.append(x509.load_pem_x509_crl(pki.crl_path.read_bytes()).last_update_utc)
    assert dates == sorted(set(dates))
    assert dates[-1] <= NOW


def test_openssl_finds_authority_and_list_by_their_names(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    issued = pki.issue(csr(ec.generate_private_key(ec.SECP256R1())), "cam", NOW)
    (tmp_path / "cam.pem").write_text(issued.pem)
    command = ["openssl", "verify", "-crl_check", "-CApath", pki.trust.path, tmp_path / "cam.pem"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    pki.revoke(issued.serial)
    pki.revoke("cd34")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "certificate revoked" in done.stdout + done.stderr
    pki.trust.compact()
    assert len(list(pki.trust.path.iterdir())) == 2
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "certificate revoked" in done.stdout + done.stderr
