"""First contact with a fleet over HTTPS. Trusts only what the token and the publisher vouch for.

The token holds the address, a secret for one use, and the SHA-256 of the fleet's CA. The CA is
fetched without trust and compared with that; everything after goes over TLS that trusts this CA
alone. The first root of the image repository is the publisher's word: a file, or the digest of
what the fleet hands out. The private key is made here and never leaves.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.durable import write_file
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError, UsageError
from edgepack.keys import key_id
from edgepack.messages import (
    EnrollPending,
    EnrollReply,
    EnrollRequest,
    Inventory,
    decode,
    encode,
)
from edgepack.signed import public_pem
from edgepack_agent.adapters.credentials import check_certificate, request_pem
from edgepack_agent.adapters.identity import load_identity, refuse_second, write_identity
from edgepack_agent.adapters.keys import new_key, private_pem
from edgepack_agent.adapters.listener import Listener, listener_at, trusting

__all__ = ["PendingError", "Token", "enroll", "fingerprint", "read_root", "read_token"]

PREFIX = "ep1."
SPLIT = b"\n#\n"


class PendingError(UnreachableError):
    """A person must accept this device first; the same request again will tell."""

    default_reason = "approval_pending"

    def __init__(self, said: EnrollPending) -> None:
        super().__init__(
            "this device waits to be accepted",
            why=f"the fleet knows it as {said.applicant}; its key is {said.fingerprint[:16]}...",
            fix=f"edgepack fleet devices accept {said.applicant}, then enrol again with this token",
        )
        self.said = said


class Token(msgspec.Struct, frozen=True):
    """What is in an enrolment token."""

    url: str
    secret: str
    ca: str
    group: str = ""


def read_token(text: str) -> Token:
    """Return the token in TEXT.

    Raises:
        UsageError: it is not one, or was cut short.
    """
    try:
        if not text.startswith(PREFIX):
            raise ValueError(f"it does not begin with {PREFIX}")
        body = text.removeprefix(PREFIX)
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        token = msgspec.json.decode(raw, type=Token)
        listener_at(token.url)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise UsageError(
            "this is not an enrolment token",
            why=str(error),
            fix="copy all of what `edgepack fleet tokens create --group G` prints",
            reason="bad_token",
        ) from error
    return token


def enroll(
    token: Token,
    directory: Path,
    *,
    name: str,
    inventory: Inventory,
    root: bytes | None,
    root_sha256: str | None,
) -> str:
    """Enrol this device and write its identity to DIRECTORY.

    Where a person must accept it first, the keys are kept, and the next call with the same token
    asks the same.

    Args:
        token: From the fleet's operator.
        directory: Must not exist yet.
        name: The device id it would like.
        inventory: What the device is.
        root: The image repository's first root, from the publisher; or
        root_sha256: the SHA-256 of what the fleet hands out as that root.

    Returns:
        The id that the fleet has chosen.

    Raises:
        UsageError: enrolled already, or the fleet does not take the token.
        IntegrityError: the CA or the root is not the one vouched for.
        PendingError: a person must accept this device first.
        UnreachableError: the fleet does not answer.
    """
    refuse_second(directory)
    fleet = listener_at(token.url)
    ca = _fetch_ca(fleet, token.ca)
    trusted = trusting(ca)
    if root is None:
        root = _fetch_root(fleet, trusted, root_sha256 or "")
    with _keys(directory, token) as (key, report_key):
        request = EnrollRequest(
            secret=token.secret,
            csr=request_pem(key, name),
            name=name,
            inventory=inventory,
            report_key=public_pem(report_key.public_key()),
        )
        reply = _ask(fleet, trusted, encode(request))
        check_certificate(reply.certificate, reply.device, key, reply.ca)
        write_identity(
            directory,
            device=reply.device,
            group=reply.group,
            broker=(reply.broker_host, reply.broker_port),
            url=fleet.url,
            files={
                "key.pem": private_pem(key),
                "certificate.pem": reply.certificate.encode(),
                "report-key.pem": private_pem(report_key),
                "ca.pem": reply.ca.encode(),
                "image-root.json": root,
                "director-root.json": reply.director_root.encode(),
            },
        )
    if identity := load_identity(directory):
        identity.validity()  # read now, so that no running agent has to
    return reply.device


def _ask(fleet: Listener, trusted: ssl.SSLContext, request: bytes) -> EnrollReply:
    try:
        answer, ready = fleet.exchange(trusted, "POST", "/enroll", request)
    except UnreachableError:
        # The answer may have got lost: the fleet gives it again to whoever has the same key.
        answer, ready = fleet.exchange(trusted, "POST", "/enroll", request)
    if not ready:
        raise PendingError(decode(answer, EnrollPending))
    return decode(answer, EnrollReply)


def fingerprint(directory: Path) -> str:
    """Return the fingerprint of the key that this device will enrol with; make the key.

    It is the SHA-256 of the public key as PEM, in hex. What was made here is kept until the
    device has enrolled, whatever token it comes with.

    Raises:
        UsageError: enrolled already, or the key cannot be kept.
    """
    refuse_second(directory)
    return key_id(_kept_keys(_prepared(directory))[0].public_key())


@contextlib.contextmanager
def _keys(
    directory: Path, token: Token
) -> Iterator[tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePrivateKey]]:
    """Yield the two keys of this device for TOKEN; kept beside DIRECTORY until the fleet decided.

    A second try with the same token then has the same key, and gets what the first one missed.
    """
    prepared = _prepared(directory)
    name = hashlib.sha256(token.secret.encode()).hexdigest()[:16]
    path = prepared if prepared.exists() else directory.with_name(f".{directory.name}.{name}")
    keys = _kept_keys(path)
    try:
        yield keys[0], keys[1]
    except EdgepackError as error:
        if not isinstance(error, UnreachableError) and path != prepared:
            path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _prepared(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.prepared")


def _kept_keys(path: Path) -> list[ec.EllipticCurvePrivateKey]:
    """Return the keys in PATH; make them if there are none."""
    try:
        if path.exists():
            return [new_key(pem) for pem in path.read_bytes().split(SPLIT)]
        keys = [new_key(), new_key()]
        write_file(path, SPLIT.join(private_pem(key) for key in keys), 0o600)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot use {path}", why=str(error), reason="unwritable") from error
    return keys


def _fetch_ca(fleet: Listener, expected: str) -> str:
    # Nothing secret is sent and nothing is believed before the digest has been compared.
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    pem = fleet.call(blind, "GET", "/enroll/ca").decode("ascii", "replace")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem.strip())
    except ValueError as error:
        raise fleet.wrong_ca("what it sent is no certificate") from error
    found = hashlib.sha256(der).hexdigest()
    if found != expected:
        raise fleet.wrong_ca(f"its SHA-256 is {found[:16]}..., not {expected[:16]}...")
    return pem


def _fetch_root(fleet: Listener, context: ssl.SSLContext, expected: str) -> bytes:
    root = fleet.call(context, "GET", "/enroll/image-root")
    found = hashlib.sha256(root).hexdigest()
    if found != expected.lower():
        raise IntegrityError(
            f"the root that {fleet.url} hands out is not the publisher's",
            why=f"its SHA-256 is {found}",
            fix="ask the publisher for the digest, or for the file and use --root",
            reason="wrong_root",
        )
    return root


def read_root(path: Path) -> bytes:
    """Return the content of the publisher's root file PATH.

    Raises:
        UsageError: it cannot be read, or is not root metadata.
    """
    try:
        data = path.read_bytes()
        signed = json.loads(data)["signed"]
        if signed["_type"] != "root":
            raise ValueError(f"it is {signed['_type']} metadata")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not the root of a repository",
            why=str(error),
            fix="give metadata/1.root.json of the publisher's repository",
            reason="bad_root",
        ) from error
    return data
