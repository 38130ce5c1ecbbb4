"""Keeps this device's certificate from ending: over MQTT in time, over HTTPS when it is too late.

A request is signed with the report key. The answer is kept beside the pair in use, and the link
tries it; only when a connection with it has come up is the old pair gone. Nothing here stops
inference: a device whose certificate cannot be renewed says so in its status and goes on.
"""

import contextlib
import hashlib
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from edgepack.errors import EdgepackError, UnreachableError
from edgepack.messages import (
    CertHint,
    CertReply,
    CertRequest,
    Challenge,
    Rejected,
    Renewal,
    decode,
    encode,
)
from edgepack.signed import public_pem, sign_renewal
from edgepack_agent.adapters.download import disk_errors
from edgepack_agent.adapters.identity import Identity
from edgepack_agent.adapters.listener import listener_at, trusting
from edgepack_agent.core.renewal import Life, Phase, phase

__all__ = ["Renewer"]

ASK_S = 60.0
"""Seconds in which an answer over MQTT is waited for."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0

log = logging.getLogger(__name__)


class Renewer:
    """Renews the certificate of IDENTITY.

    Args:
        identity: Whose.
        say: Sends a payload about a kind; False: the link is down.
        reconnect: Lets the link come again, with the new pair.
        post: Lets something be done by the thread that owns this.
        clock: Monotonic seconds.
        wall: Unix seconds.

    Attributes:
        trouble: Why there is no new certificate, and what to do; None: there is no trouble.
    """

    def __init__(
        self,
        identity: Identity,
        say: Callable[[str, bytes], bool],
        reconnect: Callable[[], None],
        post: Callable[[Callable[[], None]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._identity, self._say, self._reconnect = identity, say, reconnect
        self._post, self._clock, self._wall = post, clock, wall
        self._token, self._tells = "", False
        self._next_try, self._pause = 0.0, FIRST_PAUSE_S
        self._wanted = math.inf
        """When the fleet's wish for a new certificate is done."""
        self._thread: threading.Thread | None = None
        self.trouble: dict[str, str] | None = None

    @property
    def phase(self) -> Phase:
        """What the certificate in use is now."""
        validity = self._identity.validity()
        serial = int(validity.serial, 16).to_bytes(20, "big")
        place = int(hashlib.sha256(serial).hexdigest()[:8], 16)
        life = Life(validity.begin, validity.end, place / 2**32)
        return phase(life, self._wall())

    def describe(self) -> dict[str, Any]:
        """Return what a person at the device may want to know of the certificate."""
        until = self._identity.validity().end
        return {"until": until, "phase": self.phase, "trouble": self.trouble}

    def tick(self, *, connected: bool, idle: bool) -> None:
        """Do what is due; IDLE: no update would be disturbed by a new connection."""
        with self._noted():
            self._tick(connected=connected, idle=idle)

    def _tick(self, *, connected: bool, idle: bool) -> None:
        if self._identity.has_newer:
            if connected and idle and self._clock() >= self._next_try:
                # A pair that does not work, or that cannot be kept, must not cost the link.
                self._next_try = self._clock() + ASK_S
                self._reconnect()
            return
        wanted = self._untold or self._clock() >= self._wanted
        if self._clock() < self._next_try or (self.phase == "fresh" and not wanted):
            return
        if connected:
            self._ask()
        elif self.phase == "expired" and self._identity.url and not self._untold:
            self._call()

    def heard(self, kind: str, payload: bytes) -> None:
        """Take an answer over MQTT, `cert/accepted` or `cert/rejected`; or a hint to ask."""
        with self._noted():
            if kind == "cert/notify":
                within = decode(payload, CertHint).within_s
                soon = self._clock() + random.uniform(0, within)  # noqa: S311  no secret
                self._wanted = min(self._wanted, soon)
            elif kind == "cert/rejected":
                self._refused(decode(payload, Rejected))
            elif (reply := decode(payload, CertReply)).token == self._token:
                self._keep(reply)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Note what goes wrong: neither a disk that fails nor a damaged file stops inference."""
        try:
            with disk_errors():
                yield
        except EdgepackError as error:
            self._failed(error)
        except ValueError as error:
            self._note("bad_identity", str(error), "enrol this device anew")

    @property
    def _untold(self) -> bool:
        """Whether the fleet has to be told a report key: this device enrolled without one."""
        return not self._identity.has_report_key

    def _ask(self) -> None:
        self._next_try = self._clock() + ASK_S
        self._token = secrets.token_hex(8)
        self._say("cert", encode(CertRequest(token=self._token, request=self._signed())))

    def _signed(self) -> str:
        """Return the request for a new certificate, signed with the report key.

        A device that enrolled without one tells it now, signed with its TLS key; every other time
        as if that had been heard, because the answer may have got lost.
        """
        identity, key = self._identity, self._identity.report_key()
        if key is not None:
            return sign_renewal(self._renewal(), key)
        key, self._tells = identity.next_report_key(), not self._tells
        if not self._tells:
            return sign_renewal(self._renewal(), key)
        told = msgspec.structs.replace(
            self._renewal(),
            report_key=public_pem(key.public_key()),
            certificate=identity.certificate_pem(),
        )
        return sign_renewal(told, identity.key())

    def _renewal(self, challenge: str = "") -> Renewal:
        device = self._identity.device
        from edgepack_agent.adapters.credentials import request_pem

        csr = request_pem(self._identity.next_key(), device)
        return Renewal(device=device, csr=csr, challenge=challenge)

    def _call(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._next_try = self._clock() + self._pause * random.uniform(0.5, 1)  # noqa: S311
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        self._thread = threading.Thread(target=self._over_https, name="renewal", daemon=True)
        self._thread.start()

    def _over_https(self) -> None:
        try:
            reply = self._answer_over_https()
        except EdgepackError as error:
            failure = error
            self._post(lambda: self._failed(failure))
        else:
            self._post(lambda: self._keep_noted(reply))

    def _answer_over_https(self) -> CertReply:
        key = self._identity.report_key()
        assert key is not None
        listener = listener_at(self._identity.url)
        context = trusting(self._identity.authorities)
        challenge = decode(listener.call(context, "GET", "/renew"), Challenge).challenge
        request = sign_renewal(self._renewal(challenge), key)
        body = encode(CertRequest(token=secrets.token_hex(8), request=request))
        return decode(listener.call(context, "POST", "/renew", body), CertReply)

    def _keep_noted(self, reply: CertReply) -> None:
        with self._noted():
            self._keep(reply)

    def _keep(self, reply: CertReply) -> None:
        from edgepack_agent.adapters.credentials import check_certificate, read_authorities

        identity = self._identity
        authorities = read_authorities(reply.authorities, identity.authorities)
        check_certificate(reply.certificate, identity.device, identity.next_key(), authorities)
        identity.keep(reply.certificate, authorities)
        self._token, self.trouble, self._pause = "", None, FIRST_PAUSE_S
        self._wanted, self._next_try = math.inf, 0.0
        log.info("there is a new certificate; it is used from the next connection on")
        if self.phase == "expired":
            self._reconnect()

    def _refused(self, refusal: Rejected) -> None:
        if refusal.token == self._token:
            self._note(refusal.code, refusal.message, "ask the operator of the fleet")

    def _failed(self, error: EdgepackError) -> None:
        if isinstance(error, UnreachableError) and self.trouble is not None:
            return  # what was said before still holds, and says more
        self._note(error.reason, error.why or error.what, error.fix)

    def _note(self, reason: str, why: str, fix: str) -> None:
        said = {"reason": reason, "why": why, "fix": fix}
        if said != self.trouble:
            log.warning("the certificate is not renewed: %s: %s; %s", reason, why, fix)
        self.trouble = said
