"""A request that is sent twice is done once: what was answered is kept for a day.

What is kept is sealed with the asker's token and key, neither of which is kept: an answer may hold
a secret that is shown only once.
"""

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete

from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import AnswerRow

__all__ = ["Answer", "Answers"]

KEPT_S = 86_400.0
BUSY_S = 120.0
"""Seconds after which a request that has no answer is taken for one that was cut short."""
NONCE = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered."""

    status: int
    media_type: str
    body: bytes


class Answers:
    """Remembers answers by who asked and under which key.

    Args:
        database: Where they are kept.
        secret: The fleet's.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, secret: bytes, clock: Callable[[], float]) -> None:
        self._database, self._secret, self._clock = database, secret, clock

    def begin(self, token: str, key: str, request: bytes) -> Answer | None:
        """Return the answer to the REQUEST that TOKEN has sent under KEY before; None: do it now.

        Raises:
            UsageError: another request had that key (`idempotency_mismatch`), or that one is not
                finished (`idempotency_busy`).
        """
        name, fingerprint = self._name(token, key), hashlib.sha256(request).hexdigest()
        now = self._clock()
        with self._database.write() as session:
            session.execute(delete(AnswerRow).where(AnswerRow.created <= now - KEPT_S))
            row = session.get(AnswerRow, name)
            if row is not None and row.status is None and row.created <= now - BUSY_S:
                # Whoever did it was ended in the middle: let the asker do it again.
                session.delete(row)
                session.flush()
                row = None
            if row is None:
                session.add(AnswerRow(id=name, fingerprint=fingerprint, created=now))
                return None
            if row.fingerprint != fingerprint:
                raise UsageError(
                    "this Idempotency-Key was used for another request",
                    fix="take a new key for every new request",
                    reason="idempotency_mismatch",
                )
            if row.status is None or row.body is None:
                raise UsageError(
                    "the request with this Idempotency-Key is not finished",
                    why="it is under way, or the fleet was ended in the middle of it",
                    fix=f"look whether it is done; after {BUSY_S:.0f} s it can be sent again",
                    reason="idempotency_busy",
                )
            return Answer(row.status, row.media_type, self._open(token, key, row.body))

    def finish(self, token: str, key: str, answer: Answer) -> None:
        """Keep ANSWER for who sends the same again."""
        with self._database.write() as session:
            row = session.get(AnswerRow, self._name(token, key))
            if row is not None:
                row.status, row.media_type = answer.status, answer.media_type
                row.body = self._close(token, key, answer.body)

    def forget(self, token: str, key: str) -> None:
        """Let the request be sent again: nothing has come of it."""
        with self._database.write() as session:
            session.execute(delete(AnswerRow).where(AnswerRow.id == self._name(token, key)))

    def _name(self, token: str, key: str) -> str:
        return self._derive("name", token, key).hex()

    def _derive(self, purpose: str, token: str, key: str) -> bytes:
        # A zero byte is in neither.
        message = f"answer {purpose}\0{token}\0{key}".encode()
        return hmac.new(self._secret, message, "sha256").digest()

    def _close(self, token: str, key: str, body: bytes) -> bytes:
        nonce = os.urandom(NONCE)
        return nonce + AESGCM(self._derive("seal", token, key)).encrypt(nonce, body, None)

    def _open(self, token: str, key: str, sealed: bytes) -> bytes:
        cipher = AESGCM(self._derive("seal", token, key))
        return cipher.decrypt(sealed[:NONCE], sealed[NONCE:], None)
