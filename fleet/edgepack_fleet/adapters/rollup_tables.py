"""The tables of what telemetry comes to: rows only. What is in a row is in `core.sums`."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from edgepack_fleet.adapters.tables import Base, Id

__all__ = ["EVER", "DeviceRollup", "GroupRollup", "Rollup"]

EVER = 0
"""Span of a row that holds everything since the beginning; its start is 0."""


class Rollup:
    """Sums of one stretch of time; a device, or a group, adds who they are about."""

    span: Mapped[int] = mapped_column(primary_key=True)
    """Seconds; `EVER`: all time."""
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Unix seconds, a multiple of the span."""
    bundle: Mapped[str] = mapped_column(String(256), primary_key=True)
    """`name@version`; empty: no model was active."""
    digest: Mapped[str] = mapped_column(Id, primary_key=True)
    """Of the variant: bins of features are those of its baseline."""
    reports: Mapped[int] = mapped_column(BigInteger)
    inferences: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    reasons: Mapped[dict[str, Any]]
    latency: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    confidence: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    classes: Mapped[dict[str, Any]]
    features: Mapped[dict[str, Any]]
    rss_mb: Mapped[float]
    cpu_percent: Mapped[float]
    temperature_c: Mapped[float | None]
    throttled_s: Mapped[int] = mapped_column(BigInteger)
    lost: Mapped[int] = mapped_column(BigInteger)


class DeviceRollup(Rollup, Base):
    """What one bundle did on one device."""

    __tablename__ = "device_rollups"
    __table_args__ = (Index("ix_device_rollups_bundle", "bundle", "start"),
                      Index("ix_device_rollups_age", "span", "start"))  # fmt: skip

    device_id: Mapped[str] = mapped_column(Id, primary_key=True)


class GroupRollup(Rollup, Base):
    """What one bundle did in one group: the group a device was in when it was counted."""

    __tablename__ = "group_rollups"
    __table_args__ = (Index("ix_group_rollups_bundle", "bundle", "start"),
                      Index("ix_group_rollups_age", "span", "start"))  # fmt: skip

    group_id: Mapped[str] = mapped_column(Id, primary_key=True)
