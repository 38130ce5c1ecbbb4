"""The HTTP contract of settings. Beside `schemas`."""

from typing import Any, Literal

from pydantic import Field

from edgepack_fleet.web.schemas import Model

__all__ = ["ChangedSettings", "DeviceSettings", "SettingsOf"]


class ChangedSettings(Model):
    """What to set and what to unset, by dotted key of the agent's configuration."""

    set: dict[str, Any] = Field({}, max_length=100, description="Value by key")
    unset: list[str] = Field([], max_length=100, description="Keys: the device decides again")


class DeviceSettings(Model):
    """Where one device stands with its settings."""

    device: str
    wanted: dict[str, Any] = Field(description="Value by key, of its group and itself")
    version: int = Field(description="Of `wanted`, as the director says it")
    reported: int = Field(description="Version the device has spoken of last; 0: none")
    status: Literal["", "applied", "rejected"] = Field(description="What it said; empty: nothing")
    reason: str = Field(description="Why it has rejected them")
    message: str
    pinned: list[str] = Field(description="Keys where a file on the device says otherwise and wins")
    told: float | None = Field(description="Unix seconds; null: never")


class SettingsOf(Model):
    """What is set on a group or a device, and where the devices concerned stand."""

    scope: Literal["group", "device"]
    name: str
    values: dict[str, Any] = Field(description="Value by key")
    devices: list[DeviceSettings]
