"""OpenSSF Model Signing: `model.sig` over a set of files. Reads no files and keeps no keys.

The format is a sigstore bundle v0.3 holding one DSSE envelope with an in-toto statement that
lists every file and its SHA-256; `model_signing verify` accepts it. Ours is deterministic
(RFC 6979 nonce, low S, canonical JSON), and the verifier rebuilds the whole document from the
files' digests and compares, so that there is exactly one signature per key and content.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from edgepack import canonical
from edgepack.dsse import pae
from edgepack.errors import IntegrityError
from edgepack.keys import key_id
from edgepack.oci import SIGNATURE

__all__ = [
    "MEDIA_TYPE",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "authenticated",
    "sign_files",
    "signer",
    "verify_files",
]

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of P-256's group (SEC 2): S and ORDER - S both verify; only the low one is accepted."""


def sign_files(digests: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the `model.sig` of the files in DIGESTS.

    Args:
        digests: Relative path to SHA-256 in hex, `model.sig` itself left out.
        key: EC P-256.
    """
    payload = _statement(digests)
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(authenticated(payload), algorithm))
    low = encode_dss_signature(r, min(s, _ORDER - s))
    return _document(payload, low, key_id(key.public_key()))


def verify_files(
    signature: bytes, digests: Mapping[str, str], public: ec.EllipticCurvePublicKey
) -> None:
    """Check that SIGNATURE is PUBLIC's over exactly the files in DIGESTS.

    Raises:
        IntegrityError: `wrong_key`, `digest_mismatch` or `bad_signature`.
    """
    document = canonical.loads(signature, what=SIGNATURE)
    raw = _signature_bytes(document)
    if _hint(document) != key_id(public):
        raise IntegrityError(
            "the bundle was signed with another key", reason="wrong_key",
            fix="ask the publisher for the NAME.pub.pem that belongs to it",
        )  # fmt: skip
    payload = _statement(digests)
    if _document(payload, raw, key_id(public)) != signature:
        raise IntegrityError(
            "the signature is not over these files", reason="digest_mismatch",
            fix="fetch the bundle again from its publisher",
        )  # fmt: skip
    _verify(raw, payload, public)


def signer(signature: bytes) -> str:
    """Return the id of the key that SIGNATURE says it was made with; nothing is proven yet.

    Raises:
        IntegrityError: SIGNATURE is not a `model.sig`.
    """
    return _hint(canonical.loads(signature, what=SIGNATURE))


def _verify(raw: bytes, payload: bytes, public: ec.EllipticCurvePublicKey) -> None:
    try:
        _, s = decode_dss_signature(raw)  # strict DER
        if s > _ORDER // 2:
            raise _bad("it is not in canonical form")
        public.verify(raw, authenticated(payload), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise _bad("it does not belong to this content and key") from error


def _statement(digests: Mapping[str, str]) -> bytes:
    files = sorted(digests.items())
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in files))
    return canonical.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "edgepack", "digest": {"sha256": whole.hexdigest()}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [SIGNATURE],
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest}
                    for name, digest in files
                ],
            },
        }
    )


def _document(payload: bytes, signature: bytes, hint: str) -> bytes:
    return canonical.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
            },
        }
    )


def authenticated(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding of PAYLOAD."""
    return pae(PAYLOAD_TYPE, payload)


def _signature_bytes(document: Any) -> bytes:
    try:
        text = document["dsseEnvelope"]["signatures"][0]["sig"]
        return base64.b64decode(text, validate=True)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _bad("it is not an OpenSSF model signature") from error


def _hint(document: Any) -> str:
    try:
        return str(document["verificationMaterial"]["publicKey"]["hint"])
    except (KeyError, TypeError) as error:
        raise _bad("it does not say which key made it") from error


def _bad(why: str) -> IntegrityError:
    return IntegrityError(f"{SIGNATURE} is not valid", why=why, reason="bad_signature")
