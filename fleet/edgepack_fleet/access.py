"""Who may use the REST interface and the pages: bearer tokens with roles, sessions of a browser.

Of a token only its hash is kept. The bootstrap tokens are derived from the secret in the data
directory: whoever can read that file is an administrator anyway.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from sqlalchemy import delete

from edgepack.durable import write_file
from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.lock import alone
from edgepack_fleet.adapters.tables import ApiToken

__all__ = ["ROLES", "Access", "Caller", "Role", "bootstrap_token", "fleet_secret"]

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""Each may do what the ones before it may."""
BOOTSTRAP = "bootstrap"
"""Name of the tokens that follow from the secret."""
SESSION_S = 12 * 3600


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token it is."""

    id: str
    """Of the token; it says nothing about the token itself."""
    name: str
    role: Role


def fleet_secret(data: Path, *, create: bool) -> bytes:
    """Return the secret of the data directory, making it on first use if CREATE.

    Raises:
        UsageError: there is none.
    """
    path = data / "secret"
    if create and not path.exists():
        with alone(data):
            if not path.exists():
                write_file(path, secrets.token_hex(32).encode(), mode=0o600)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"no fleet has been served from {data} yet",
            why=error.strerror or "",
            fix=f"edgepack fleet serve --data {data}",
            reason="no_fleet",
        ) from error


def bootstrap_token(secret: bytes, role: Role) -> str:
    """Return the token for ROLE that follows from the fleet's SECRET."""
    return f"epf_{hmac.new(secret, f'bootstrap {role}'.encode(), 'sha256').hexdigest()}"


class Access:
    """Checks tokens and sessions.

    Args:
        database: Where hashes of tokens are kept.
        secret: The fleet's secret.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, secret: bytes, clock: Callable[[], float]) -> None:
        self._database, self._secret, self._clock = database, secret, clock

    def install_bootstrap(self) -> None:
        """Let the tokens of today's secret in, and those of an earlier one no more."""
        with self._database.write() as session:
            session.execute(delete(ApiToken).where(ApiToken.name == BOOTSTRAP))
            for role in ROLES:
                digest = _digest(bootstrap_token(self._secret, role))
                now = self._clock()
                session.add(
                    ApiToken(
                        digest=digest,
                        id=f"{BOOTSTRAP}-{role}",
                        name=BOOTSTRAP,
                        role=role,
                        created=now,
                    )
                )

    def caller(self, token: str) -> Caller | None:
        """Return whose TOKEN it is; None if it is not one of ours, or not good any more."""
        return self._find(_digest(token))

    def open_session(self, token: str) -> str | None:
        """Return what a browser keeps instead of TOKEN; None if it is not one of ours."""
        digest = _digest(token)
        if self._find(digest) is None:
            return None
        expires = int(self._clock()) + SESSION_S
        return f"{digest}.{expires}.{self._seal(digest, expires)}"

    def session_caller(self, value: str) -> Caller | None:
        """Return whose session VALUE of a browser is; None if it is over or forged."""
        digest, _, rest = value.partition(".")
        expires, _, seal = rest.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 15):
            return None
        wanted = self._seal(digest, int(expires))
        if not hmac.compare_digest(seal.encode(), wanted.encode()):
            return None
        return self._find(digest) if self._clock() < int(expires) else None

    def _find(self, digest: str) -> Caller | None:
        # The lookup is by hash: its timing says nothing about the token.
        with self._database.read() as session:
            row = session.get(ApiToken, digest)
        if row is None or (row.expires is not None and self._clock() >= row.expires):
            return None
        return Caller(row.id, row.name, cast("Role", row.role))

    def _seal(self, digest: str, expires: int) -> str:
        message = f"session {digest} {expires}".encode()
        return hmac.new(self._secret, message, "sha256").hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
