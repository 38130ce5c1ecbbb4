"""First contact with a fleet over HTTPS. Trusts only what the token and the publisher vouch for.

The token holds the address, a secret for one use, and the SHA-256 of the fleet's CA. The CA is
fetched without trust and compared with that; everything after goes over TLS that trusts this CA
alone. The first root of the image repository is the publisher's word: a file, or the digest of
what the fleet hands out. The private key is made here and never leaves.
"""

import base64
import binascii
import hashlib
import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgepack.errors import EdgepackError, IntegrityError, UnreachableError, UsageError
from edgepack.messages import EnrollReply, EnrollRequest, Inventory, decode, encode
from edgepack_agent.adapters.identity import refuse_second, write_identity

__all__ = ["Token", "enroll", "read_root", "read_token"]

PREFIX = "ep1."
TIMEOUT_S = 15.0
MAX_REPLY = 1024 * 1024


class Token(msgspec.Struct, frozen=True):
    """What is in an enrolment token."""

    url: str
    secret: str
    ca: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class _Fleet:
    """A device listener and how to talk to it."""

    host: str
    port: int
    url: str


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
        _address(token.url)
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
        UnreachableError: the fleet does not answer.
    """
    refuse_second(directory)
    fleet = _address(token.url)
    ca = _fetch_ca(fleet, token.ca)
    trusted = _trusting(ca)
    if root is None:
        root = _fetch_root(fleet, trusted, root_sha256 or "")
    key = ec.generate_private_key(ec.SECP256R1())
    request = EnrollRequest(
        secret=token.secret, csr=_csr(key, name), name=name, inventory=inventory
    )
    reply = decode(_call(fleet, trusted, "POST", "/enroll", encode(request)), EnrollReply)
    _check(reply, key, ca)
    write_identity(
        directory,
        device=reply.device,
        group=reply.group,
        broker=(reply.broker_host, reply.broker_port),
        files={
            "key.pem": _private_pem(key),
            "certificate.pem": reply.certificate.encode(),
            "ca.pem": ca.encode(),
            "image-root.json": root,
            "director-root.json": reply.director_root.encode(),
        },
    )
    return reply.device


def _address(url: str) -> _Fleet:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or not url.isascii():
        raise ValueError(f"{url!r} is not an https address")
    parts.hostname.encode("idna")
    return _Fleet(parts.hostname, parts.port or 443, url.rstrip("/"))


def _fetch_ca(fleet: _Fleet, expected: str) -> str:
    # Nothing secret is sent and nothing is believed before the digest has been compared.
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    pem = _call(fleet, blind, "GET", "/enroll/ca").decode("ascii", "replace")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem.strip())
    except ValueError as error:
        raise _wrong_ca(fleet, "what it sent is no certificate") from error
    found = hashlib.sha256(der).hexdigest()
    if found != expected:
        raise _wrong_ca(fleet, f"its SHA-256 is {found[:16]}..., not {expected[:16]}...")
    return pem


def _wrong_ca(fleet: _Fleet, why: str) -> IntegrityError:
    return IntegrityError(
        f"{fleet.url} does not have the CA that the token names",
        why=why,
        fix="somebody may be in between; ask the operator for a new token",
        reason="wrong_ca",
    )


def _trusting(ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca)
    return context


def _fetch_root(fleet: _Fleet, context: ssl.SSLContext, expected: str) -> bytes:
    root = _call(fleet, context, "GET", "/enroll/image-root")
    found = hashlib.sha256(root).hexdigest()
    if found != expected.lower():
        raise IntegrityError(
            f"the root that {fleet.url} hands out is not the publisher's",
            why=f"its SHA-256 is {found}",
            fix="ask the publisher for the digest, or for the file and use --root",
            reason="wrong_root",
        )
    return root


def _call(
    fleet: _Fleet, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None
) -> bytes:
    connection = http.client.HTTPSConnection(
        fleet.host, fleet.port, timeout=TIMEOUT_S, context=context
    )
    prefix = urlsplit(fleet.url).path
    headers = {"Content-Type": "application/json"} if body else {}
    try:
        connection.request(method, prefix + path, body, headers)
        response = connection.getresponse()
        data = response.read(MAX_REPLY + 1)
    except ssl.SSLCertVerificationError as error:
        raise _wrong_ca(fleet, error.verify_message or str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"{fleet.url} does not answer",
            why=str(error),
            fix="check the network, and that the fleet runs",
        ) from error
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise _refused(fleet, response.status, data)
    return data


def _refused(fleet: _Fleet, status: int, data: bytes) -> EdgepackError:
    problem = _problem(data)
    why = str(problem.get("detail") or problem.get("message") or f"HTTP status {status}")
    reason = str(problem.get("reason") or "refused")
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return UnreachableError(f"{fleet.url} cannot enrol this device now", why=why)
    return UsageError(
        "the fleet does not take this token",
        why=why,
        fix="ask for a new one: edgepack fleet tokens create --group G",
        reason=reason,
    )


def _problem(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _check(reply: EnrollReply, key: ec.EllipticCurvePrivateKey, ca: str) -> None:
    """Check that the certificate is for our key and our id, and from the CA we trust."""
    try:
        certificate = x509.load_pem_x509_certificate(reply.certificate.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.encode()))
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        fits = certificate.public_key() == key.public_key() and [name.value for name in names] == [
            reply.device
        ]
    except Exception as error:
        raise _bad_certificate(str(error)) from error
    if not fits:
        raise _bad_certificate("it is for another key or another device")


def _bad_certificate(why: str) -> IntegrityError:
    return IntegrityError(
        "the certificate that the fleet issued cannot be used", why=why, reason="bad_certificate"
    )


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
