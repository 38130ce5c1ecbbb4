"""The token of the inference API over TCP: made once, kept in a file that only its owner reads."""

import secrets
from pathlib import Path

from edgepack.durable import write_file
from edgepack.errors import UsageError

__all__ = ["api_token"]

MIN_LENGTH = 16


def api_token(path: Path) -> str:
    """Return the token in PATH; if there is none, a new one, which is there from now on.

    Raises:
        UsageError: the file cannot be read or written, or holds no token (reason `bad_token`).
    """
    try:
        if not path.exists():
            write_file(path, f"{secrets.token_urlsafe(32)}\n".encode(), 0o600)
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, str(error)) from error
    if len(token) < MIN_LENGTH or not token.isprintable() or " " in token:
        raise _bad(path, f"a token is a word of {MIN_LENGTH} characters or more")
    return token


def _bad(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the token of the inference API in {path} cannot be used",
        why=why,
        fix="remove the file: a new one is made at the next start",
        reason="bad_token",
    )
