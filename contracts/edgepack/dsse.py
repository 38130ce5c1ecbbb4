"""DSSE envelopes: a payload with its type and a signature over both. Keeps no keys.

The signature is over the pre-authentication encoding, so that a payload signed as one type can
never pass as another. https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

import base64

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.errors import IntegrityError

__all__ = ["contents", "is_envelope", "opened", "pae", "seal"]


class _Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True):
    payload: str
    payloadType: str  # noqa: N815  the standard's name
    signatures: tuple[_Signature, ...]


def pae(kind: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding of PAYLOAD of type KIND: what is signed."""
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def seal(kind: str, payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return PAYLOAD of type KIND in an envelope signed with KEY, as JSON."""
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    signature = key.sign(pae(kind, payload), algorithm)
    return msgspec.json.encode(_Envelope(_text(payload), kind, (_Signature(_text(signature)),)))


def is_envelope(data: bytes) -> bool:
    """Return whether DATA looks like an envelope; says nothing of its signature."""
    try:
        msgspec.json.decode(data, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def opened(kind: str, data: bytes, *keys: ec.EllipticCurvePublicKey) -> bytes:
    """Return the payload of the envelope DATA, of type KIND and signed by one of KEYS.

    Raises:
        IntegrityError: it is no envelope or of another type (reason `bad_message`), or none of
            KEYS has signed it (reason `bad_signature`).
    """
    payload, signatures = _read(kind, data)
    signed = pae(kind, payload)
    if not any(_genuine(key, signature, signed) for key in keys for signature in signatures):
        raise IntegrityError("the signature is not of a known key", reason="bad_signature")
    return payload


def contents(kind: str, data: bytes) -> bytes:
    """Return the payload of the envelope DATA of type KIND; nothing is proven about it.

    Raises:
        IntegrityError: it is no envelope or of another type (reason `bad_message`).
    """
    return _read(kind, data)[0]


def _read(kind: str, data: bytes) -> tuple[bytes, list[bytes]]:
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(s.sig, validate=True) for s in envelope.signatures[:4]]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError("not an envelope", why=str(error), reason="bad_message") from error
    if envelope.payloadType != kind:
        raise IntegrityError(
            f"not a {kind}", why=f"it is a {envelope.payloadType[:80]}", reason="bad_message"
        )
    return payload, signatures


def _genuine(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
