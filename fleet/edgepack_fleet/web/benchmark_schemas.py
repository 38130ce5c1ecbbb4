"""The HTTP contract of measurements. Beside `schemas`."""

from typing import Any

from pydantic import Field

from edgepack_fleet.web.asking_schemas import DeviceRequest
from edgepack_fleet.web.schemas import Model

__all__ = ["LeftOut", "Measurement", "Measurements", "MeasuringAsked", "NewMeasuring"]


class NewMeasuring(Model):
    """Who is to measure a release: a group or a device."""

    group: str | None = Field(None, max_length=128)
    device: str | None = Field(None, max_length=128)
    each: int = Field(1, ge=1, le=100, description="Devices of every class")
    within_s: float = Field(
        3600.0, ge=1, le=7 * 86400, description="Seconds until nobody waits any more"
    )


class LeftOut(Model):
    """A device that does not measure."""

    device: str
    reason: str


class MeasuringAsked(Model):
    """What was asked of whom."""

    release: str
    requests: list[DeviceRequest]
    left_out: list[LeftOut]


class Measurement(Model):
    """How fast a release is on one device."""

    device: str
    release: str
    target: str = Field(description="Path of the variant")
    received: float = Field(description="Unix seconds")
    verified: bool = Field(description="Whether the device has signed it")
    document: dict[str, Any] = Field(description="An `edgepack.benchmark/v1` document")


class Measurements(Model):
    """What was measured of one release, newest first."""

    release: str
    measurements: list[Measurement]
