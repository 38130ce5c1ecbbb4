"""What certificates of the fleet look like: built, read and judged. Keeps no files.

Keys are EC P-256 throughout. A name is a common name and nothing else.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgepack.errors import IntegrityError

__all__ = [
    "CA_DAYS",
    "SKEW",
    "Authority",
    "alt_names",
    "as_pem",
    "common_name",
    "csr_key",
    "half_gone",
    "key_pem",
    "new_authority",
    "serial_of",
]

CA_DAYS = 3650
CRL_LIFE = timedelta(days=365)
SKEW = timedelta(minutes=5)
"""A certificate is valid from a little before now: device clocks are not exact."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: its key and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        life: timedelta,
        now: datetime,
        hosts: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """Return a certificate for KEY under the common name NAME, and for HOSTS."""
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            _builder(_name(name), self.certificate.subject, key, life, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(issuer, critical=False)
        )
        if hosts:
            alternative = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(alternative, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def revoke(
        self,
        serials: Mapping[int, datetime],
        now: datetime,
        last: x509.CertificateRevocationList | None,
    ) -> x509.CertificateRevocationList:
        """Return the list that replaces LAST: SERIALS and since when they are revoked."""
        # Of two lists OpenSSL believes the one with the later date, and of equals the first.
        issued = now - SKEW
        if last is not None:
            issued = max(issued, last.last_update_utc + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(issued)
            .next_update(max(now, issued) + CRL_LIFE)
        )
        for serial, since in sorted(serials.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256())

    def vouches_for(self, certificate: x509.Certificate) -> bool:
        """Return whether this authority has signed CERTIFICATE; says nothing of its dates."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def new_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> Authority:
    """Return an authority with KEY and a name of its own."""
    name = _name(f"edgepack fleet {secrets.token_hex(4)}")
    certificate = (
        _builder(name, name, key.public_key(), timedelta(days=CA_DAYS), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def csr_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the key that the certificate request CSR_PEM asks for.

    Raises:
        IntegrityError: no request, a bad self-signature, or a key other than EC P-256 (reason
            `bad_csr`).
    """
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


def as_pem(thing: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Return THING as PEM."""
    return thing.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return KEY as unencrypted PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def serial_of(certificate: x509.Certificate) -> str:
    """Return the serial number as we write it, hexadecimal."""
    return f"{certificate.serial_number:x}"


def common_name(certificate: x509.Certificate) -> str:
    """Return the one common name of CERTIFICATE; empty if there is none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def half_gone(thing: x509.Certificate | x509.CertificateRevocationList, now: datetime) -> bool:
    """Return whether more than half of the life of THING is over."""
    if isinstance(thing, x509.Certificate):
        begin, end = thing.not_valid_before_utc, thing.not_valid_after_utc
    else:
        begin, end = thing.last_update_utc, thing.next_update_utc or thing.last_update_utc
    return end - now < (end - begin) / 2


def alt_names(certificate: x509.Certificate) -> set[str]:
    """Return the names and addresses CERTIFICATE is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    life: timedelta,
    now: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _bad_csr(why: str) -> IntegrityError:
    return IntegrityError("the certificate request is refused", why=why, reason="bad_csr")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


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
