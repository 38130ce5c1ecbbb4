"""What a device signs with its report key, and what the fleet reads of it. Keeps no keys.

Whoever holds the broker can drop what devices say, and can neither make it up nor change it.
"""

import secrets
import zlib

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import dsse
from edgepack.errors import IntegrityError
from edgepack.messages import MAX_MESSAGE, Renewal, Report, decode, encode

__all__ = [
    "AUTHORITIES",
    "SIGNED_KINDS",
    "public_key",
    "public_pem",
    "read_renewal",
    "read_report",
    "sign_renewal",
    "sign_report",
    "unsigned_renewal",
]

REPORT = "application/vnd.edgepack.report.v1+json"
RENEWAL = "application/vnd.edgepack.renewal.v1+json"
AUTHORITIES = "application/vnd.edgepack.authorities.v1+pem"
"""Type of the authorities a fleet announces, signed with the key of an earlier one."""
SIGNED_KINDS = frozenset({"tele", "evt", "job/update", "req/answer"})


def sign_report(
    device: str, kind: str, payload: bytes, time: float, key: ec.EllipticCurvePrivateKey
) -> bytes:
    """Return PAYLOAD, a message about KIND, as DEVICE signs it with KEY at TIME."""
    body = payload if payload[:1] in b"[{" else zlib.decompress(payload)
    report = Report(
        device=device,
        kind=kind,
        nonce=secrets.token_hex(8),
        time=time,
        body=msgspec.json.decode(body),
    )
    return dsse.seal(REPORT, zlib.compress(encode(report)), key)


def read_report(
    device: str, kind: str, payload: bytes, key: ec.EllipticCurvePublicKey | None
) -> tuple[bytes, bool]:
    """Return the message in PAYLOAD about KIND, and whether DEVICE is proven to have said it.

    Args:
        device: Whose topic it came on.
        kind: What it is about.
        payload: As it came.
        key: The device's report key; None: it has none, and its word is taken as it is.

    Raises:
        IntegrityError: KEY is known and has not signed it (reasons `unsigned`, `bad_signature`),
            or it was said by another device or about something else (reason `bad_signature`).
    """
    if not dsse.is_envelope(payload):
        if key is not None:
            raise IntegrityError("a report of this device must be signed", reason="unsigned")
        return payload, False
    packed = dsse.contents(REPORT, payload) if key is None else dsse.opened(REPORT, payload, key)
    report = decode(_inflated(packed), Report)
    if (report.device, report.kind) != (device, kind):
        raise IntegrityError("it was signed for something else", reason="bad_signature")
    return msgspec.json.encode(report.body), key is not None


def sign_renewal(renewal: Renewal, key: ec.EllipticCurvePrivateKey) -> str:
    """Return RENEWAL signed with KEY."""
    return dsse.seal(RENEWAL, encode(renewal), key).decode()


def unsigned_renewal(request: str) -> Renewal:
    """Return the renewal in REQUEST; nothing is proven about it.

    Raises:
        IntegrityError: it cannot be read (reason `bad_message`).
    """
    return decode(dsse.contents(RENEWAL, request.encode()), Renewal)


def read_renewal(request: str, key: ec.EllipticCurvePublicKey) -> Renewal:
    """Return the renewal in REQUEST, which KEY must have signed.

    Raises:
        IntegrityError: it cannot be read (reason `bad_message`), or KEY has not signed it (reason
            `bad_signature`).
    """
    return decode(dsse.opened(RENEWAL, request.encode(), key), Renewal)


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """Return KEY as PEM."""
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, kind).decode()


def public_key(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the EC P-256 key in PEM.

    Raises:
        IntegrityError: it is not one (reason `bad_key`).
    """
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IntegrityError("not a public key", why=str(error), reason="bad_key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IntegrityError("not an EC P-256 key", reason="bad_key")
    return key


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MAX_MESSAGE)
    except zlib.error as error:
        raise IntegrityError("a torn report", why=str(error), reason="bad_message") from error
    if not stream.eof:
        raise IntegrityError("a report torn or too large", reason="bad_message")
    return plain
