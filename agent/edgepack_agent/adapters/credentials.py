"""Certificates of a device: asked for, read, checked. Keeps no files and makes no keys.

Imported when there is something to do with a certificate, which is not every day: the parser
would take a megabyte of a device that only waits.
"""

import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from edgepack import dsse
from edgepack.errors import IntegrityError
from edgepack.signed import AUTHORITIES

__all__ = [
    "check_certificate",
    "inner_pem",
    "public_key",
    "read_authorities",
    "read_validity",
    "request_pem",
]

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def request_pem(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a request for a certificate of KEY under NAME."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def read_validity(pem: bytes) -> tuple[str, float, float]:
    """Return serial number (hex), begin and end (Unix seconds) of the certificate in PEM.

    Raises:
        ValueError: there is none.
    """
    found = x509.load_pem_x509_certificate(pem)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    return f"{found.serial_number:x}", begin.timestamp(), end.timestamp()


def public_key(pem: bytes) -> CertificatePublicKeyTypes:
    """Return the key that the certificate in PEM is for.

    Raises:
        ValueError: there is none.
    """
    return x509.load_pem_x509_certificate(pem).public_key()


def inner_pem(pem: bytes) -> str:
    """Return the certificate in PEM without whatever else is in there.

    Raises:
        ValueError: there is none.
    """
    found = x509.load_pem_x509_certificate(pem)
    return found.public_bytes(serialization.Encoding.PEM).decode()


def check_certificate(
    pem: str, device: str, key: ec.EllipticCurvePrivateKey, authorities: str
) -> None:
    """Check that the certificate PEM is for KEY and DEVICE, and from one of AUTHORITIES.

    Raises:
        IntegrityError: it is not (reason `bad_certificate`).
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        fits = certificate.public_key() == key.public_key() and [n.value for n in names] == [device]
        issuers = _certificates(authorities)
        issued = any(_issued(certificate, issuer) for issuer in issuers)
    except Exception as error:
        raise _bad_certificate(str(error)) from error
    if not fits:
        raise _bad_certificate("it is for another key or another device")
    if not issued:
        raise _bad_certificate("none of the fleet's authorities has issued it")


def read_authorities(announced: str, known: str) -> str:
    """Return the authorities that ANNOUNCED names, PEM, as one of the KNOWN ones has signed it.

    Raises:
        IntegrityError: none has (reason `bad_signature`), or it cannot be read.
    """
    keys = [certificate.public_key() for certificate in _certificates(known)]
    ours = [key for key in keys if isinstance(key, ec.EllipticCurvePublicKey)]
    text = dsse.opened(AUTHORITIES, announced.encode(), *ours).decode("ascii", "replace")
    try:
        if not _certificates(text):
            raise ValueError("it names none")
    except ValueError as error:
        raise IntegrityError("bad authorities", why=str(error), reason="bad_message") from error
    return text


def _certificates(text: str) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in _CERTIFICATE.findall(text)]


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001  of whatever kind: it is not by this one
        return False
    return True


def _bad_certificate(why: str) -> IntegrityError:
    return IntegrityError(
        "the certificate that the fleet issued cannot be used", why=why, reason="bad_certificate"
    )
