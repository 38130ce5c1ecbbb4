"""How a stranger becomes a device: one-time tokens, and the exchange of one for a certificate.

A token counts as used only when a certificate was issued for it, or a person is asked about the
device, in one transaction; whoever asks again with the same token and the same key gets the same
answer, so that a lost one costs nothing, even after the token's time is over.
The name of an existing device cannot be taken over: the fleet chooses, and only takes a free one.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.keys import key_id
from edgepack.messages import EnrollPending, EnrollReply, EnrollRequest
from edgepack.signed import public_key, public_pem
from edgepack.topics import DEVICE_ID
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.certificates import csr_key
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.pki import FLEET, Issued, Pki
from edgepack_fleet.adapters.tables import DeviceRow, EnrolToken
from edgepack_fleet.admission import NEW_TOKEN, Terms, admit, spend
from edgepack_fleet.core import tags
from edgepack_fleet.membership import static_group
from edgepack_fleet.refusal import RefusedError

__all__ = ["Enrolment", "NewToken", "Offer", "token_text"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a token lets in, and on which terms."""

    group: str
    ttl_s: float
    """Seconds the token is good."""
    uses: int = 1
    """Devices it lets in."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What each of them is tagged with."""
    approval_s: float | None = None
    """Seconds in which a person must accept each of them; None: nobody has to."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token just made; its secret is nowhere else."""

    id: str
    secret: str
    group: str
    expires: float
    """Unix seconds."""
    uses: int


def token_text(token: NewToken, url: str, ca_sha256: str) -> str:
    """Return TOKEN as the one string a technician carries to a device.

    Args:
        token: The token.
        url: Base URL of the device listener.
        ca_sha256: SHA-256 of the fleet CA's certificate (DER), in hex.
    """
    facts = {"url": url, "secret": token.secret, "ca": ca_sha256, "group": token.group}
    packed = json.dumps(facts, separators=(",", ":")).encode()
    return "ep1." + base64.urlsafe_b64encode(packed).decode().rstrip("=")


class Enrolment:
    """Makes tokens and takes them.

    Args:
        database: Where devices and hashes of tokens are kept.
        pki: Issues the certificates.
        root: Returns the director's root, which goes to every new device.
        broker: Where devices connect to.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        pki: Pki,
        root: Callable[[], bytes],
        broker: Callable[[], Address],
        clock: Callable[[], float],
    ) -> None:
        self._database, self._pki, self._root = database, pki, root
        self._broker, self._clock = broker, clock

    def create_token(self, group: str, ttl_s: float, uses: int) -> NewToken:
        """Return a new token for USES devices of GROUP, good for TTL_S seconds; see `offer`."""
        return self.offer(Offer(group, ttl_s, uses))

    def offer(self, new: Offer) -> NewToken:
        """Return a token for what is on offer.

        Raises:
            UsageError: there is no such group, it is a filter, or a tag cannot be kept.
        """
        now = self._clock()
        secret = secrets.token_urlsafe(32)
        token = NewToken(secrets.token_hex(4), secret, new.group, now + new.ttl_s, new.uses)
        with self._database.write() as session:
            static_group(session, new.group)
            session.add(
                EnrolToken(
                    id=token.id,
                    digest=_digest(token.secret),
                    group_id=new.group,
                    created=now,
                    expires=token.expires,
                    uses=new.uses,
                    tags=tags.checked(new.tags),
                    approval_s=new.approval_s,
                )
            )
        return token

    def enroll(self, request: EnrollRequest) -> EnrollReply | EnrollPending:
        """Return identity, broker and director's root for a new device, or that it must wait.

        Raises:
            RefusedError: the token is unknown, expired or used up, or the device not wanted.
            IntegrityError: the certificate request cannot be accepted.
        """
        now = self._clock()
        key = csr_key(request.csr)
        with self._database.write() as session:
            token = self._find(session, request.secret)
            report_key = public_pem(public_key(request.report_key)) if request.report_key else ""
            device = _enrolled_with(session, token, key, report_key)
            if device is None:
                terms = _terms(session, token, request, key_id(key), now)
                if isinstance(terms, EnrollPending):
                    return terms
                device = self._let_in(session, token, request, terms, now)
        broker = self._broker()
        return EnrollReply(
            device=device.id,
            group=device.group_id,
            certificate=device.certificate,
            ca=self._pki.bundle,
            broker_host=broker.host,
            broker_port=broker.port,
            director_root=self._root().decode(),
        )

    def _let_in(
        self,
        session: Session,
        token: EnrolToken,
        request: EnrollRequest,
        terms: Terms,
        now: float,
    ) -> DeviceRow:
        report_key = public_pem(public_key(request.report_key)) if request.report_key else ""
        name = _free_name(session, terms.name)
        issued = self._pki.issue(request.csr, name, datetime.fromtimestamp(now, UTC))
        device = _device(issued, token, request, terms, now)
        device.report_key = report_key
        session.add(device)
        terms.settle(device.id)
        return device

    def _find(self, session: Session, secret: str) -> EnrolToken:
        digest = _digest(secret)
        token = session.scalar(select(EnrolToken).where(EnrolToken.digest == digest))
        if token is None or not hmac.compare_digest(token.digest, digest):
            raise RefusedError("the token is not valid here", fix=NEW_TOKEN)
        return token


def _terms(
    session: Session, token: EnrolToken, request: EnrollRequest, fingerprint: str, now: float
) -> Terms | EnrollPending:
    if token.approval_s is not None:
        return admit(session, token, request, fingerprint, now)
    spend(token, now)
    return Terms(request.name, token.group_id, token.tags)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _enrolled_with(
    session: Session, token: EnrolToken, key: ec.EllipticCurvePublicKey, report_key: str
) -> DeviceRow | None:
    """Return the device that has enrolled with TOKEN and both keys; None: there is none yet."""
    if not token.used:
        return None
    # Whoever asks again has its report key, too: no need to read everybody's certificate.
    mine = select(DeviceRow).where(
        DeviceRow.enrol_token == token.id,
        DeviceRow.report_key == report_key,
        DeviceRow.revoked.is_(None),
    )
    for device in session.scalars(mine):
        certificate = x509.load_pem_x509_certificate(device.certificate.encode())
        if certificate.public_key() == key:
            return device
    return None


def _device(
    issued: Issued, token: EnrolToken, request: EnrollRequest, terms: Terms, now: float
) -> DeviceRow:
    return DeviceRow(
        id=issued.device,
        group_id=terms.group,
        tags=dict(terms.tags),
        enrolled=now,
        certificate_serial=issued.serial,
        certificate=issued.pem,
        enrol_token=token.id,
        inventory=msgspec.to_builtins(request.inventory),
        agent=request.inventory.agent,
        bundle=None,
        digest=None,
    )


def _free_name(session: Session, wish: str) -> str:
    """Return the device id for one that would like to be called WISH."""
    fits = DEVICE_ID.fullmatch(wish) and wish != FLEET
    if fits and session.get(DeviceRow, wish) is None:
        return wish
    stem = wish[:55].rstrip("-") if fits else "device"
    while True:
        name = f"{stem}-{secrets.token_hex(4)}"
        if session.get(DeviceRow, name) is None:
            return name
