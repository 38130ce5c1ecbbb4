"""Tables of what the fleet asks of devices, and sets on them: rows only, beside `tables`."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from edgepack_fleet.adapters.tables import Base, Id, RowId

__all__ = ["DeviceSettingsRow", "MeasurementRow", "RequestRow", "SettingsRow"]


class RequestRow(Base):
    """Something asked of one device, and the answer."""

    __tablename__ = "requests"
    __table_args__ = (Index("ix_requests_device_status", "device_id", "status"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    kind: Mapped[str] = mapped_column(String(16))
    args: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    result: Mapped[dict[str, Any]]
    verified: Mapped[bool] = mapped_column(default=False)
    """Whether the answer was signed with the device's report key."""
    by: Mapped[str] = mapped_column(default="")
    """Id of the access token of who asked."""
    created: Mapped[float]
    updated: Mapped[float]
    deadline: Mapped[float]
    took_s: Mapped[float] = mapped_column(default=0.0)


class SettingsRow(Base):
    """What is set on the devices of a group, or on one device."""

    __tablename__ = "settings"

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    """`group` or `device`."""
    name: Mapped[str] = mapped_column(Id, primary_key=True)
    document: Mapped[dict[str, Any]]
    """Value by dotted key."""
    by: Mapped[str] = mapped_column(default="")
    updated: Mapped[float]


class DeviceSettingsRow(Base):
    """What the director says to one device of its settings, and what the device says to that."""

    __tablename__ = "device_settings"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    wanted: Mapped[dict[str, Any]]
    """Value by dotted key."""
    version: Mapped[int] = mapped_column(BigInteger)
    """Goes up with every change of `wanted`."""
    changed: Mapped[float]
    reported: Mapped[int] = mapped_column(BigInteger, default=0)
    """Version the device has spoken of last."""
    status: Mapped[str] = mapped_column(String(16), default="")
    """`applied` or `rejected`; empty: it has not said."""
    reason: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    pinned: Mapped[list[Any]]
    """Keys where a file on the device says otherwise, and wins."""
    told: Mapped[float] = mapped_column(default=0.0)


class MeasurementRow(Base):
    """How fast a release is on one device, as that device has measured."""

    __tablename__ = "measurements"
    __table_args__ = (Index("ix_measurements_release_device", "release", "device_id"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    release: Mapped[str]
    target: Mapped[str]
    digest: Mapped[str]
    received: Mapped[float]
    verified: Mapped[bool] = mapped_column(default=False)
    document: Mapped[dict[str, Any]]
    """An `edgepack.benchmark/v1` document."""
