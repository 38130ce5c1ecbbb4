"""Enrols simulated devices over HTTPS, many at a time, as an agent would. Keeps nothing on disk.

The fleet's authority is believed by the digest in the token. The first root of the image
repository is taken from the fleet: a simulated device has nothing to lose.
"""

import base64
import binascii
import hashlib
import itertools
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgepack import messages
from edgepack.errors import IntegrityError, UnreachableError, UsageError
from edgepack.signed import public_pem
from edgepack_fleet.simulation.device import Identity

if TYPE_CHECKING:
    import httpx

__all__ = ["Enrolled", "Token", "enrol_all", "read_token"]

AT_ONCE = 4
TRIES = 5
TIMEOUT_S = 60.0


class Token(msgspec.Struct, frozen=True):
    """What is in an enrolment token."""

    url: str
    secret: str
    ca: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The devices, and where the fleet wants them."""

    identities: list[Identity]
    broker: tuple[str, int]
    image_root: bytes
    """Empty: nothing has been published."""


def read_token(text: str) -> Token:
    """Return the token in TEXT.

    Raises:
        UsageError: it is not one.
    """
    try:
        if not text.startswith("ep1."):
            raise ValueError("it does not begin with ep1.")
        body = text.removeprefix("ep1.")
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return msgspec.json.decode(raw, type=Token)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise UsageError(
            "this is not an enrolment token",
            why=str(error),
            fix="copy all of what `edgepack fleet tokens create --group G --uses N` prints",
            reason="bad_token",
        ) from error


def enrol_all(
    token: Token,
    names: list[str],
    inventory: messages.Inventory,
    *,
    tls: bool,
    done: Callable[[int], None] = lambda _: None,
) -> Enrolled:
    """Enrol a device for each of NAMES with TOKEN, which must be good for as many.

    Args:
        token: From the fleet's operator.
        names: What they would like to be called.
        inventory: What all of them say they are.
        tls: Whether they will connect with their certificates.
        done: Told how many there are by now.

    Raises:
        UsageError: the fleet does not take the token.
        IntegrityError: the fleet's authority is not the one in the token.
        UnreachableError: the fleet does not answer.
    """
    with _talking(token) as (client, ca):
        root = client.get(f"{token.url}/enroll/image-root")
        counted = itertools.count(1)

        def one(name: str) -> tuple[Identity, tuple[str, int]]:
            found = _enrol(client, token, name, inventory, ca if tls else None)
            done(next(counted))
            return found

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(one, names))
    broker = found[0][1] if found else ("", 0)
    image_root = root.content if root.status_code == 200 else b""
    return Enrolled([identity for identity, _ in found], broker, image_root)


@contextmanager
def _talking(token: Token) -> Iterator[tuple["httpx.Client", str]]:
    """Yield a client that believes the authority in TOKEN only, and that authority."""
    import httpx

    try:
        # Nothing secret is sent and nothing is believed before the digest has been compared.
        blind = httpx.get(f"{token.url}/enroll/ca", verify=_blind(), timeout=TIMEOUT_S)
        ca = blind.text
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca.strip())).hexdigest()
        if found != token.ca:
            raise IntegrityError(
                f"{token.url} is not the fleet of this token",
                why=f"its authority's SHA-256 is {found[:16]}..., not {token.ca[:16]}...",
                reason="wrong_ca",
            )
        context = ssl.create_default_context(cadata=ca)
        with httpx.Client(verify=context, timeout=TIMEOUT_S) as client:
            yield client, ca
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UnreachableError(
            f"the fleet at {token.url} does not answer",
            why=str(error),
            fix="look at it: edgepack fleet serve",
            reason="fleet_unreachable",
        ) from error


def _blind() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _enrol(
    client: "httpx.Client", token: Token, name: str, inventory: messages.Inventory, ca: str | None
) -> tuple[Identity, tuple[str, int]]:
    key, report_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    request = messages.EnrollRequest(
        secret=token.secret,
        csr=_csr(key, name),
        name=name,
        inventory=inventory,
        report_key=public_pem(report_key.public_key()),
    )
    for _ in range(TRIES):
        answer = client.post(f"{token.url}/enroll", content=messages.encode(request))
        if answer.status_code < 500:
            break  # else it has too much to do; the same keys get the same answer
        wait = answer.headers.get("Retry-After", "")
        time.sleep(min(float(wait), TIMEOUT_S) if wait.isdigit() else 0)
    if answer.is_error:
        raise _refused(answer)
    reply = messages.decode(answer.content, messages.EnrollReply)
    context = _context(reply, key) if ca is not None else None
    identity = Identity(reply.device, report_key, context, reply.director_root.encode())
    return identity, (reply.broker_host, reply.broker_port)


def _refused(answer: "httpx.Response") -> UsageError:
    try:
        told = answer.json()
    except ValueError:
        told = {}
    return UsageError(
        str(told.get("detail", f"the fleet answered with status {answer.status_code}")),
        why=str(told.get("why", "")),
        fix="edgepack fleet tokens create --group GROUP --uses N",
        reason=str(told.get("reason", "token_invalid")),
    )


def _csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def _context(reply: messages.EnrollReply, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=reply.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The library reads files only.
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pem + reply.certificate.encode())
        file.flush()
        context.load_cert_chain(Path(file.name))
    return context
