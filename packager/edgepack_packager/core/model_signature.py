"""Reads a `model.sig` that any OpenSSF Model Signing tool made. For people at a host, no device.

What edgepack signs has one byte string per key and content, and devices accept nothing else
(`edgepack.oms`). Other signers write the same facts in any order, with a random nonce. This
reader takes those facts, and everything that carries meaning must still be right: the types, one
signature by the given key, one digest for each file, and a root digest that follows from them.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.errors import IntegrityError, UnsupportedError
from edgepack.keys import key_id
from edgepack.oci import SIGNATURE
from edgepack.oms import MEDIA_TYPE, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, authenticated

__all__ = ["ALGORITHMS", "MAX_SIGNATURE", "SignedFiles", "read_signature"]

MAX_SIGNATURE = 16 * 1024 * 1024
"""Bytes; room for some hundred thousand files."""
ALGORITHMS: Mapping[str, int] = {"sha256": 32, "blake2b": 64}
"""What a file's digest may be, and its length in bytes; as `hashlib` names them."""

_Text = Annotated[str, msgspec.Meta(max_length=4096)]


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """What a signature vouches for: ALGORITHM's digest in hex of every file, by its path."""

    algorithm: str
    digests: Mapping[str, str]
    root: str
    """SHA-256 in hex over all digests in the order of the statement."""


class _PublicKey(msgspec.Struct, frozen=True):
    hint: _Text


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _PublicKey


class _Signature(msgspec.Struct, frozen=True):
    sig: Annotated[str, msgspec.Meta(max_length=512)]


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: _Text
    signatures: Annotated[list[_Signature], msgspec.Meta(min_length=1, max_length=1)]


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    media_type: _Text
    verification_material: _Material
    dsse_envelope: _Envelope


class _RootDigest(msgspec.Struct, frozen=True):
    sha256: _Text


class _Subject(msgspec.Struct, frozen=True):
    digest: _RootDigest


class _Serialization(msgspec.Struct, frozen=True):
    method: _Text
    hash_type: _Text


class _Resource(msgspec.Struct, frozen=True):
    name: _Text
    algorithm: _Text
    digest: Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{2}){16,64}(?![\s\S])")]


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: Annotated[list[_Resource], msgspec.Meta(min_length=1)]


class _Kind(msgspec.Struct, frozen=True):
    type: _Text = msgspec.field(name="_type")
    predicate_type: _Text = msgspec.field(name="predicateType")


class _Statement(msgspec.Struct, frozen=True):
    subject: Annotated[list[_Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate: _Predicate


def read_signature(data: bytes, public: ec.EllipticCurvePublicKey) -> SignedFiles:
    """Return what PUBLIC signed, according to the `model.sig` DATA.

    Raises:
        IntegrityError: `wrong_key`, `bad_signature`, or its statement contradicts itself.
        UnsupportedError: it is signed, but by a method or with hashes that are not read here.
    """
    document = _convert(_load(data), _Document)
    if document.media_type != MEDIA_TYPE or document.dsse_envelope.payload_type != PAYLOAD_TYPE:
        raise _bad("it is not a sigstore bundle v0.3 with an in-toto statement")
    if document.verification_material.public_key.hint != key_id(public):
        raise IntegrityError(
            f"{SIGNATURE} was made with another key", reason="wrong_key",
            fix="ask the publisher for the public key that belongs to it",
        )  # fmt: skip
    payload = _base64(document.dsse_envelope.payload)
    raw = _base64(document.dsse_envelope.signatures[0].sig)
    try:
        public.verify(raw, authenticated(payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _bad("it does not belong to this key") from error
    return _files(_load(payload))


def _files(payload: Any) -> SignedFiles:
    kind = _convert(payload, _Kind)
    if (kind.type, kind.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise _unsupported(f"it states {kind.predicate_type[:80]}", "statement")
    statement = _convert(payload, _Statement)
    resources = statement.predicate.resources
    algorithm = _algorithm(statement.predicate)
    digests = {resource.name: resource.digest for resource in resources}
    if len(digests) != len(resources) or not all(map(_is_plain, digests)):
        raise _bad("a path in it is doubled, or leads out of the directory")
    if any(len(digest) != 2 * ALGORITHMS[algorithm] for digest in digests.values()):
        raise _bad(f"a digest in it is none of {algorithm}")
    root = hashlib.sha256(b"".join(bytes.fromhex(found.digest) for found in resources)).hexdigest()
    if statement.subject[0].digest.sha256 != root:
        raise _bad("its root digest does not follow from its files")
    return SignedFiles(algorithm, digests, root)


def _algorithm(predicate: _Predicate) -> str:
    """Return the one algorithm of all files."""
    found = {resource.algorithm for resource in predicate.resources}
    algorithm = predicate.serialization.hash_type
    if predicate.serialization.method != "files":
        raise _unsupported(f"files are hashed by the method {predicate.serialization.method[:80]}")
    if algorithm not in ALGORITHMS:
        raise _unsupported(f"files are hashed with {algorithm[:80]}")
    if found != {algorithm}:
        raise _bad("it says of its digests two different things")
    return algorithm


def _is_plain(path: str) -> bool:
    """Say whether PATH is relative, normal and stays below its directory."""
    parts = PurePosixPath(path).parts
    normal = "/".join(parts) == path and path not in {"", "."} and "\0" not in path
    return normal and not path.startswith("/") and ".." not in parts and "\\" not in path


_T = TypeVar("_T")


def _load(data: bytes) -> Any:
    if len(data) > MAX_SIGNATURE:
        raise _bad(f"it has more than {MAX_SIGNATURE} bytes")
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad(f"it is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is there twice: two readers would read two documents."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is doubled")
    return found


def _convert(value: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from error


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _bad("it is not base64 where it must be") from error


def _bad(why: str) -> IntegrityError:
    return IntegrityError(f"{SIGNATURE} is not valid", why=why, reason="bad_signature")


def _unsupported(why: str, what: Literal["hash", "statement"] = "hash") -> UnsupportedError:
    return UnsupportedError(
        f"this {SIGNATURE} cannot be checked here",
        why=why,
        fix="sign with `model_signing sign key`, whose default is one SHA-256 for each file",
        reason=f"unsupported_{what}",
    )
