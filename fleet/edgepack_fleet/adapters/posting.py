"""Posts a message to a URL that somebody gave us, and to no other place.

The name is looked up once; what is connected to is the address that was checked. Redirects and
proxies are not followed.
"""

import contextlib
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult

import httpx

from edgepack.errors import UsageError
from edgepack_fleet.core.hooks import check_url, is_loopback, may_reach

__all__ = ["Outcome", "Poster"]

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a message."""

    taken: bool
    text: str
    """A status, or why there is none."""
    gone: bool = False
    """Whether the receiver says that it is no more."""


class Poster:
    """Posts messages; any thread may.

    Args:
        private: Whether addresses of private networks are allowed.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._client = httpx.Client(
            verify=ssl.create_default_context(),
            timeout=TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> Outcome:
        """Post BODY to URL; nothing is raised, whatever happens."""
        try:
            parts = check_url(url)
            address = self._look_up(parts)
            host = f"[{address}]" if ":" in address else address
            place = httpx.URL(url).copy_with(host=host)
            more = {"Host": parts.netloc, "User-Agent": "edgepack"}
            extensions = {"sni_hostname": parts.hostname}
            with self._client.stream(
                "POST", place, content=body, headers=headers | more, extensions=extensions
            ) as answer:
                status = answer.status_code
                return Outcome(answer.is_success, str(status), gone=status == 410)
        except UsageError as error:
            return Outcome(False, error.why or error.what)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return Outcome(False, f"{type(error).__name__}: {error}"[:200])

    def _look_up(self, parts: SplitResult) -> str:
        """Return the address of the host, every one of which must be allowed."""
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if not may_reach(address, loopback=is_loopback(host), private=self._private):
                raise UsageError("refused", why="its address is not a public one", reason="bad_url")
        with contextlib.suppress(StopIteration):
            # What listens on this machine most often does so over IPv4.
            return next(address for address in addresses if ":" not in address)
        return addresses[0]
