"""New certificates for devices that have one, or had one.

Over MQTT while the old one is good; over HTTPS after a long absence, when it no longer opens the
broker. Both times the request is signed with the device's report key, so that neither the broker
nor whoever repeats an old request gets a certificate. The new certificate is *pending* until the
device comes with it; then the old one is retired. Asked again with the same key, the answer is
the same, so that a lost answer costs nothing.
"""

import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from edgepack.errors import IntegrityError, UsageError
from edgepack.messages import CertHint, CertReply, CertRequest, Renewal
from edgepack.signed import public_key, public_pem, read_renewal, unsigned_renewal
from edgepack_fleet.adapters.certificates import csr_key, half_gone, serial_of
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.tables import DeviceRow

__all__ = ["GRACE_DAYS", "Renewals", "retire", "seen_with"]

GRACE_DAYS = 730
"""Days after the end of its certificate in which a device may still renew it."""
CHALLENGE_S = 300


class Renewals:
    """Judges requests for certificates.

    Args:
        database: Where devices are kept.
        pki: Issues the certificates.
        secret: The fleet's; seals challenges.
        clock: Unix seconds.
        grace_days: Days after the end of a certificate in which it may be renewed over HTTPS.
    """

    def __init__(
        self,
        database: Database,
        pki: Pki,
        secret: bytes,
        clock: Callable[[], float],
        grace_days: float = GRACE_DAYS,
    ) -> None:
        self._database, self._pki, self._secret = database, pki, secret
        self._clock, self._grace = clock, timedelta(days=grace_days)
        self.hint = CertHint()
        """How devices are told to ask for a certificate soon."""

    def over_mqtt(self, device: DeviceRow, request: CertRequest) -> CertReply:
        """Return a new certificate for DEVICE, whose row belongs to an open transaction.

        Raises:
            IntegrityError: it is not signed as it must be, or asks for no certificate.
        """
        return self._answer(device, request, self._proven(device, request))

    def outdated(self, device: DeviceRow) -> bool:
        """Return whether DEVICE does not know our authorities, or is not certified by the newest.

        One that tells nothing about it cannot be helped.
        """
        if not device.trusts:
            return False
        pem = device.pending_certificate or device.certificate
        current = bool(pem) and self._pki.issued_last(_load(pem))
        return device.trusts != self._pki.bundle_sha256 or not current

    def challenge(self) -> str:
        """Return what a renewal over HTTPS must repeat."""
        said = f"{int(self._clock())}.{secrets.token_hex(8)}"
        return f"{said}.{self._seal(said)}"

    def over_https(self, request: CertRequest) -> CertReply:
        """Return a new certificate for the device that REQUEST names and that has signed it.

        Raises:
            UsageError: the challenge is old, or the certificate has expired too long ago (reason
                `certificate_expired`).
            IntegrityError: the device is unknown or revoked, or has not signed it.
        """
        claimed = unsigned_renewal(request.request)
        self._check_challenge(claimed.challenge)
        with self._database.write() as session:
            device = session.get(DeviceRow, claimed.device)
            # One answer for all: who may not renew is told nothing about who exists.
            if device is None or device.revoked is not None or not device.report_key:
                raise IntegrityError(
                    "this device cannot renew its certificate here",
                    why="it is unknown, revoked, or has no report key",
                    fix=_ENROLL,
                    reason="not_renewable",
                )
            renewal = read_renewal(request.request, public_key(device.report_key))
            self._check_grace(device)
            return self._answer(device, request, renewal)

    def _proven(self, device: DeviceRow, request: CertRequest) -> Renewal:
        if device.report_key:
            renewal = read_renewal(request.request, public_key(device.report_key))
        else:
            # One that enrolled without a report key tells it now, signed with its TLS key.
            claimed = unsigned_renewal(request.request)
            renewal = read_renewal(request.request, self._certified(device, claimed.certificate))
            if renewal.report_key:
                device.report_key = public_pem(public_key(renewal.report_key))
        if renewal.device != device.id:
            raise IntegrityError("it was signed for another device", reason="bad_signature")
        return renewal

    def _certified(self, device: DeviceRow, pem: str) -> ec.EllipticCurvePublicKey:
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
        except ValueError as error:
            raise IntegrityError("no certificate", why=str(error), reason="bad_message") from error
        key = certificate.public_key()
        if not self._pki.knows(certificate, device.id) or not isinstance(
            key, ec.EllipticCurvePublicKey
        ):
            raise IntegrityError("not a certificate of this device", reason="bad_signature")
        return key

    def _answer(self, device: DeviceRow, request: CertRequest, renewal: Renewal) -> CertReply:
        key = csr_key(renewal.csr)
        now = datetime.fromtimestamp(self._clock(), UTC)
        pem = self._still_good(device, key, now)
        if pem is None:
            pem = self._pki.issue(renewal.csr, device.id, now).pem
            if device.pending_certificate:
                retire(device, _load(device.pending_certificate))
            device.pending_certificate = pem
        return CertReply(token=request.token, certificate=pem, authorities=self._pki.announcement())

    def _still_good(
        self, device: DeviceRow, key: ec.EllipticCurvePublicKey, now: datetime
    ) -> str | None:
        for pem in filter(None, (device.pending_certificate, device.certificate)):
            certificate = _load(pem)
            same = certificate.public_key() == key
            if same and not half_gone(certificate, now) and self._pki.issued_last(certificate):
                return pem
        return None

    def _check_grace(self, device: DeviceRow) -> None:
        pem = device.pending_certificate or device.certificate
        expired = _load(pem).not_valid_after_utc if pem else datetime.fromtimestamp(0, UTC)
        if datetime.fromtimestamp(self._clock(), UTC) > expired + self._grace:
            raise UsageError(
                "the certificate has expired too long ago to be renewed",
                why=f"it ended on {expired:%Y-%m-%d}; {self._grace.days} days are allowed",
                fix=_ENROLL,
                reason="certificate_expired",
            )

    def _check_challenge(self, challenge: str) -> None:
        said, _, seal = challenge.rpartition(".")
        moment = said.partition(".")[0]
        genuine = hmac.compare_digest(seal.encode(), self._seal(said).encode())
        if not genuine or self._clock() - int(moment) > CHALLENGE_S:
            raise UsageError(
                "the challenge is not of the last minutes",
                fix="ask for a new one: GET /renew",
                reason="stale_challenge",
            )

    def _seal(self, said: str) -> str:
        return hmac.new(self._secret, f"renewal {said}".encode(), "sha256").hexdigest()

    def revoke_retired(self) -> None:
        """Put what devices have replaced on the revocation list, all in one."""
        with self._database.write() as session:
            rows = session.scalars(select(DeviceRow).where(DeviceRow.retired != "")).all()
            self._pki.revoke(*(serial for row in rows for serial in row.retired.split()))
            for row in rows:
                row.retired = ""


_ENROLL = (
    "move the device's identity directory away, then: edgepack-agent enroll TOKEN --root FILE, "
    "with a token of `edgepack fleet tokens create --group G`"
)


def seen_with(device: DeviceRow, serial: str) -> None:
    """Note that DEVICE has come with the certificate SERIAL: the one before is retired."""
    if not device.pending_certificate or serial_of(_load(device.pending_certificate)) != serial:
        return
    device.retired = f"{device.retired} {device.certificate_serial}".strip()
    device.certificate_serial, device.certificate = serial, device.pending_certificate
    device.pending_certificate = ""


def retire(device: DeviceRow, certificate: x509.Certificate) -> None:
    """Let CERTIFICATE of DEVICE be revoked with the next ones."""
    device.retired = f"{device.retired} {serial_of(certificate)}".strip()


def _load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())
