"""Who may use the REST interface and the pages: bearer tokens with roles, sessions of a browser.

Of a token only its hash is kept. The bootstrap tokens are derived from the secret in the data
directory: whoever can read that file is an administrator anyway.
"""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from sqlalchemy import delete, select, update

from edgepack.durable import write_file
from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.lock import alone
from edgepack_fleet.adapters.tables import ApiToken

__all__ = [
    "COOKIE",
    "ROLES",
    "SESSION_S",
    "Access",
    "Caller",
    "Role",
    "bootstrap_token",
    "fleet_id",
    "fleet_secret",
]

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""Each may do what the ones before it may."""
BOOTSTRAP = "bootstrap"
"""Name of the tokens that follow from the secret."""
USED_S = 60.0
"""How exact the last use of a token is."""
SESSION_S = 12 * 3600
COOKIE = "edgepack_session"
"""Name of what a browser keeps instead of a token."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token it is."""

    id: str
    """Of the token; it says nothing about the token itself."""
    name: str
    role: Role

    @property
    def known_as(self) -> str:
        """Return who it is for the record; a bootstrap token is nobody's: its role says more."""
        return self.role if self.name == BOOTSTRAP else self.name


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


def fleet_id(secret: bytes) -> str:
    """Return what tells the fleet of SECRET from all others; the secret does not follow from it."""
    return hmac.new(secret, b"fleet id", "sha256").hexdigest()[:16]


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
        self._used: dict[str, float] = {}
        self._used_lock = threading.Lock()

    def install_bootstrap(self) -> None:
        """Let the tokens of today's secret in, and those of an earlier one no more."""
        with self._database.write() as session:
            session.execute(delete(ApiToken).where(ApiToken.id.startswith(f"{BOOTSTRAP}-")))
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

    def create(self, name: str, role: Role, ttl_s: float | None) -> tuple[ApiToken, str]:
        """Return a new token for ROLE and its secret text, which is nowhere else.

        Args:
            name: What it is for.
            role: What its bearer may do.
            ttl_s: Seconds it is good; None: for ever.
        """
        token, now = f"epf_{secrets.token_hex(32)}", self._clock()
        row = ApiToken(
            digest=_digest(token),
            id=f"t-{secrets.token_hex(4)}",
            name=name,
            role=role,
            created=now,
            expires=None if ttl_s is None else now + ttl_s,
        )
        with self._database.write() as session:
            session.add(row)
        return row, token

    def revoke(self, token_id: str) -> None:
        """Let the token of TOKEN_ID, and browsers that logged in with it, in no more.

        Raises:
            UsageError: there is none (`unknown_token`), or it follows from the fleet's secret.
        """
        with self._database.write() as session:
            row = session.scalar(select(ApiToken).where(ApiToken.id == token_id))
            if row is None:
                raise UsageError(
                    f"no access token {token_id!r}",
                    fix="edgepack fleet access list",
                    reason="unknown_token",
                )
            if token_id.startswith(f"{BOOTSTRAP}-"):
                raise UsageError(
                    "a bootstrap token cannot be revoked",
                    why="it follows from the file `secret` in the fleet's data directory",
                    fix="stop the fleet, delete that file, start it again",
                    reason="wrong_state",
                )
            session.delete(row)

    def save_used(self) -> None:
        """Write down which tokens were used since the last call."""
        with self._used_lock:
            used, self._used = self._used, {}
        if used:
            with self._database.write() as session:
                for digest, moment in used.items():
                    where = ApiToken.digest == digest
                    session.execute(update(ApiToken).where(where).values(used=moment))

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
        self._note_use(row)
        return Caller(row.id, row.name, cast("Role", row.role))

    def _note_use(self, row: ApiToken) -> None:
        """Remember that the token of ROW is used: to write it now would let readers wait."""
        now = self._clock()
        if row.used is not None and now - row.used < USED_S:
            return
        with self._used_lock:
            self._used[row.digest] = now

    def _seal(self, digest: str, expires: int) -> str:
        message = f"session {digest} {expires}".encode()
        return hmac.new(self._secret, message, "sha256").hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
