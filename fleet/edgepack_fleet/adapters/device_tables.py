"""The tables of what people arrange around devices: groups they are put into, who may join."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from edgepack_fleet.adapters.tables import Base, Id, RowId

__all__ = ["ApplicantRow", "ConnectionRow", "ExpectedRow", "GroupMember"]


class GroupMember(Base):
    """A device that was put into a group, beside the one it enrolled into."""

    __tablename__ = "group_members"

    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True, index=True)


class ApplicantRow(Base):
    """Somebody who asked to become a device and waits for a person to decide."""

    __tablename__ = "applicants"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("enrol_tokens.id"))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    """SHA-256 of its public key, in hex."""
    name: Mapped[str]
    """The device id it would like."""
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"))
    inventory: Mapped[dict[str, Any]]
    created: Mapped[float]
    deadline: Mapped[float]
    """Unix seconds; nobody decided until then: it is refused."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    """`pending`, `accepted`, `rejected` or `expired`."""
    by: Mapped[str] = mapped_column(default="")
    """Who decided."""
    decided: Mapped[float | None]


class ExpectedRow(Base):
    """A device that is known beforehand: let in without asking, once."""

    __tablename__ = "expected"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    device: Mapped[str] = mapped_column(Id, index=True)
    """The device id it asks for; empty: any."""
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    """SHA-256 of its public key, in hex; empty: any."""
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"))
    tags: Mapped[dict[str, Any]]
    created: Mapped[float]
    by: Mapped[str]
    used_by: Mapped[str] = mapped_column(default="")
    """The device it has become; empty: nobody has come yet."""


class ConnectionRow(Base):
    """A device came online or went offline."""

    __tablename__ = "connections"
    __table_args__ = (Index("ix_connections_device_time", "device_id", "time"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    device_id: Mapped[str] = mapped_column(Id)
    time: Mapped[float] = mapped_column(index=True)
    online: Mapped[bool]
