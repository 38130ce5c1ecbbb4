"""Who changed what: one row for every change that a person or a program asked for.

No secret is in it: of what was sent only the fields in `TOLD` are kept, and nothing of answers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete

from edgepack_fleet.access import Caller
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import AuditRow

__all__ = ["Audit", "Deed"]

KEPT_S = 400 * 86_400.0
LONGEST = 200
PLAIN = (str, bool, int, float)
TOKENS = re.compile(r"(epf_|ep1\.|whsec_)[\w+/=-]+")
TOLD = (
    "id", "name", "role", "group", "release", "waves", "uses", "ttl_s", "force", "kind",
    "filter", "purge",
)  # fmt: skip
"""Fields of a request that say what is changed; none of them is ever secret."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What was asked for, and what came of it."""

    action: str
    path: str
    status: int
    """Of HTTP; below 400 it is done."""
    reason: str = ""
    """Code of the refusal; empty: it is done."""


class Audit:
    """Keeps the record.

    Args:
        database: Where it is kept.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def record(self, caller: Caller, address: str, deed: Deed, sent: Any) -> None:
        """Write down that CALLER, from ADDRESS, did DEED with what was SENT (parsed JSON)."""
        now = self._clock()
        with self._database.write() as session:
            session.execute(delete(AuditRow).where(AuditRow.time <= now - KEPT_S))
            session.add(
                AuditRow(
                    time=now,
                    who=caller.id,
                    name=caller.name,
                    role=caller.role,
                    address=address,
                    action=deed.action,
                    path=_without_secrets(deed.path)[:LONGEST],
                    status=deed.status,
                    reason=deed.reason,
                    detail=_told(sent),
                )
            )


def _told(sent: Any) -> dict[str, Any]:
    """Return those facts of what was SENT that may be read by others."""
    facts = sent if isinstance(sent, Mapping) else {}
    return {name: _short(facts[name]) for name in TOLD if isinstance(facts.get(name), PLAIN)}


def _short(value: Any) -> Any:
    return _without_secrets(value)[:LONGEST] if isinstance(value, str) else value


def _without_secrets(text: str) -> str:
    """Return TEXT without tokens that somebody gave where a name belongs."""
    return TOKENS.sub(r"\1...", text)
