"""The fleet's certificate authority: who a server, the fleet and a device are on TLS.

    DATA/pki/ca.pem, ca.key          the root of all of them, 10 years
             server.pem, server.key  the broker and the device listener
             fleet.pem, fleet.key    the fleet as a client of the broker, CN=fleet
             crl.pem                 revoked device certificates

Keys are EC P-256 and 0600. Signs nothing about models: that is the repositories' business.
"""

import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgepack.durable import write_file
from edgepack.errors import IntegrityError, UsageError
from edgepack.topics import DEVICE_ID
from edgepack_fleet.adapters.lock import alone

__all__ = ["FLEET", "Issued", "Pki"]

FLEET = "fleet"
"""The name of the fleet itself on the broker; no device gets it."""
CA_DAYS, SERVER_DAYS, DEVICE_DAYS = 3650, 397, 90
RENEW_DAYS = 60
"""Our own certificates are made anew on start when they have fewer days left than this."""
SKEW = timedelta(minutes=5)
"""A certificate is valid from a little before now: device clocks are not exact."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new device certificate."""

    device: str
    pem: str
    serial: str
    """Hexadecimal."""


class Pki:
    """The certificate authority in one directory; made on first use.

    Args:
        directory: Where keys and certificates are kept.
        hosts: Names and addresses, beside `localhost`, that the servers are reached under.
        now: The time certificates count from.
    """

    def __init__(
        self, directory: Path, hosts: tuple[str, ...] = (), now: datetime | None = None
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.ca_path = directory / "ca.pem"
        self.crl_path = directory / "crl.pem"
        self._now = now or datetime.now(UTC)
        # Broker and fleet may start at the same moment on a new directory.
        with alone(directory):
            self._ca_key, self._ca = self._load_ca()
            self._ensure("server", _server_names(hosts), ExtendedKeyUsageOID.SERVER_AUTH)
            self._ensure(FLEET, (), ExtendedKeyUsageOID.CLIENT_AUTH)
            self._write_crl(self._revoked())

    @property
    def ca_pem(self) -> str:
        """The CA certificate as PEM."""
        return self._ca.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def ca_sha256(self) -> str:
        """SHA-256 of the CA certificate's DER, hexadecimal: what an enrolment token pins."""
        return self._ca.fingerprint(hashes.SHA256()).hex()

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the paths of certificate and key of `server` or `fleet`."""
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def issue(self, csr_pem: str, device: str, now: datetime) -> Issued:
        """Return a certificate for the key in CSR_PEM; the name is DEVICE, whatever it asks for.

        Raises:
            IntegrityError: no CSR, a bad self-signature, or a key other than EC P-256 (reason
                `bad_csr`).
        """
        if device == FLEET or not DEVICE_ID.fullmatch(device):
            raise UsageError(f"not a device id: {device!r}")
        certificate = self._sign(
            device, _csr_key(csr_pem), ExtendedKeyUsageOID.CLIENT_AUTH, (), DEVICE_DAYS, now
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(device, pem, f"{certificate.serial_number:x}")

    def revoke(self, serial: str) -> None:
        """Put the certificate with SERIAL (hexadecimal) on the revocation list."""
        with alone(self.directory):
            self._write_crl(self._revoked() | {int(serial, 16)})

    def _load_ca(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path = self.directory / "ca.key"
        if not self.ca_path.exists():
            # The key first: a certificate without its key is what must never be left behind.
            key = _new_key(key_path)
            write_file(self.ca_path, self._self_sign(key))
        return _read_pair(self.ca_path, key_path)

    def _self_sign(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        name = _name(f"edgepack fleet {secrets.token_hex(4)}")
        usage = _usage(ca=True)
        certificate = (
            self._builder(name, name, key.public_key(), CA_DAYS, self._now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _ensure(self, name: str, names: tuple[str, ...], usage: x509.ObjectIdentifier) -> None:
        """Make certificate and key NAME unless there is one that serves a while yet."""
        certificate_path, key_path = self.pair(name)
        if certificate_path.exists() and key_path.exists():
            _, certificate = _read_pair(certificate_path, key_path)
            left = certificate.not_valid_after_utc - self._now
            if left > timedelta(days=RENEW_DAYS) and _alt_names(certificate) >= set(names):
                return
        key = _new_key(key_path)
        certificate = self._sign(name, key.public_key(), usage, names, SERVER_DAYS, self._now)
        write_file(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        names: tuple[str, ...],
        days: int,
        now: datetime,
    ) -> x509.Certificate:
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key())
        builder = (
            self._builder(_name(common_name), self._ca.subject, key, days, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(issuer_key, critical=False)
        )
        if names:
            alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        return builder.sign(self._ca_key, hashes.SHA256())

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePublicKey,
        days: int,
        now: datetime,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def _revoked(self) -> set[int]:
        if not self.crl_path.exists():
            return set()
        crl = x509.load_pem_x509_crl(self.crl_path.read_bytes())
        return {entry.serial_number for entry in crl}

    def _write_crl(self, serials: set[int]) -> None:
        # The list never goes out of date by itself: an expired one would lock everybody out.
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._ca.subject)
            .last_update(self._now - SKEW)
            .next_update(self._now + timedelta(days=CA_DAYS))
        )
        for serial in sorted(serials):
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(self._now - SKEW)
                .build()
            )
        crl = builder.sign(self._ca_key, hashes.SHA256())
        write_file(self.crl_path, crl.public_bytes(serialization.Encoding.PEM))


def _server_names(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({"localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts}))


def _csr_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        genuine = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_csr("it cannot be read") from error
    if not genuine:
        raise _bad_csr("it is not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_csr("the key is not EC P-256")
    return key


def _bad_csr(why: str) -> IntegrityError:
    return IntegrityError("the certificate request is refused", why=why, reason="bad_csr")


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(path, pem, mode=0o600)
    return key


def _read_pair(
    certificate_path: Path, key_path: Path
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"the fleet's key {key_path} cannot be used",
            why=str(error),
            fix="restore the data directory from a backup",
            reason="pki",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IntegrityError(f"{key_path} is not an EC key", reason="pki")
    return key, certificate


def _alt_names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
