"""The tables of alerts and of who is to be told: rows only."""

from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from edgepack_fleet.adapters.tables import Base, Id, RowId

__all__ = ["AlertRow", "NoticeRow"]


class AlertRow(Base):
    """Where a rule stands with one thing it watches; there is none while nothing is wrong."""

    __tablename__ = "alerts"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    """Follows from the rule and what it is about."""
    rule: Mapped[str]
    severity: Mapped[str] = mapped_column(String(16))
    labels: Mapped[dict[str, Any]]
    """What it is about: group, release."""
    state: Mapped[str] = mapped_column(String(16))
    since: Mapped[float]
    value: Mapped[float | None]
    seen: Mapped[float]
    told: Mapped[float | None]
    silenced: Mapped[float]
    acknowledged: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    """Why it has ended; empty: its value is back, or it has not ended."""
    said: Mapped[str]
    """The last that was told: `firing`, `repeat`, `resolved`; empty: nothing."""


class NoticeRow(Base):
    """A message about alerts that must reach somebody: written with them, removed once sent."""

    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    channel: Mapped[str] = mapped_column(String(16))
    body: Mapped[dict[str, Any]]
    tries: Mapped[int]
    due: Mapped[float]
    created: Mapped[float]
