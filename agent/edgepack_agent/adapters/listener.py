"""The fleet's device listener over HTTPS: one request, one answer, in this thread.

Trusts the authorities it is given and nothing else.
"""

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from edgepack.errors import EdgepackError, IntegrityError, UnreachableError, UsageError

__all__ = ["Listener", "listener_at", "trusting"]

TIMEOUT_S = 15.0
MAX_REPLY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Listener:
    """A device listener."""

    host: str
    port: int
    url: str

    def call(
        self, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None
    ) -> bytes:
        """Return the answer to METHOD on PATH; raises like `exchange`.

        Raises:
            UnreachableError: it has no answer yet, too.
        """
        data, ready = self.exchange(context, method, path, body)
        if not ready:
            raise UnreachableError(f"{self.url} has no answer yet")
        return data

    def exchange(
        self, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None
    ) -> tuple[bytes, bool]:
        """Return the answer to METHOD on PATH, and whether it is more than that we must wait.

        Raises:
            IntegrityError: its certificate is of none of the authorities (reason `wrong_ca`).
            UnreachableError: it does not answer, or cannot now.
            UsageError: it refuses, with its own reason.
        """
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=TIMEOUT_S, context=context
        )
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            connection.request(method, urlsplit(self.url).path + path, body, headers)
            response = connection.getresponse()
            data = response.read(MAX_REPLY + 1)
        except ssl.SSLCertVerificationError as error:
            raise self.wrong_ca(error.verify_message or str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"{self.url} does not answer",
                why=str(error),
                fix="check the network, and that the fleet runs",
            ) from error
        finally:
            connection.close()
        if response.status not in {http.HTTPStatus.OK, http.HTTPStatus.ACCEPTED}:
            raise self._refused(response.status, data)
        return data, response.status == http.HTTPStatus.OK

    def wrong_ca(self, why: str) -> IntegrityError:
        """Return the error for a listener that is not of the fleet we know."""
        return IntegrityError(
            f"{self.url} does not have the CA that this device was told",
            why=why,
            fix="somebody may be in between; ask the operator for a new token",
            reason="wrong_ca",
        )

    def _refused(self, status: int, data: bytes) -> EdgepackError:
        problem = _problem(data)
        why = str(problem.get("detail") or problem.get("message") or f"HTTP status {status}")
        reason = str(problem.get("reason") or "refused")
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnreachableError(f"{self.url} cannot serve this device now", why=why)
        return UsageError(
            "the fleet refuses this device",
            why=why,
            fix=str(problem.get("fix") or "ask for one: edgepack fleet tokens create --group G"),
            reason=reason,
        )


def listener_at(url: str) -> Listener:
    """Return the listener at URL.

    Raises:
        ValueError: it is not an https address.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or not url.isascii():
        raise ValueError(f"{url!r} is not an https address")
    parts.hostname.encode("idna")
    return Listener(parts.hostname, parts.port or 443, url.rstrip("/"))


def trusting(authorities: str) -> ssl.SSLContext:
    """Return a context that trusts AUTHORITIES, PEM, alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authorities)
    return context


def _problem(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
