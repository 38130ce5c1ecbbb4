"""Keys and certificates of a device: made, asked for, checked. Keeps no files.

Keys are EC P-256 and are made here; none ever leaves the device.
"""

import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgepack import dsse
from edgepack.errors import IntegrityError
from edgepack.signed import AUTHORITIES

__all__ = ["check_certificate", "new_key", "private_pem", "read_authorities", "request_pem"]

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def new_key(pem: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Return the key in PEM; without one, a new key.

    Raises:
        ValueError: there is no key of ours in it.
    """
    if pem is None:
        return ec.generate_private_key(ec.SECP256R1())
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")  # noqa: TRY004  what is wrong is the content
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return KEY as it is kept."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request_pem(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a request for a certificate of KEY under NAME."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


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
