"""The HTTP contract of groups, tags and who may join. Beside `schemas`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from edgepack_fleet.core.filters import LONGEST
from edgepack_fleet.web.schemas import Digest, Model, Page

__all__ = [
    "Added",
    "Applicant",
    "Applicants",
    "Decommissioned",
    "Description",
    "Expected",
    "ExpectedDevices",
    "Farewell",
    "Happening",
    "NamedDevices",
    "NewExpected",
    "NewExpectedDevices",
    "NewFilter",
    "Timeline",
]

Name = Annotated[str, Field(max_length=200)]
Tags = dict[str, str]


class NewFilter(Model):
    """Which devices are in a group."""

    filter: str = Field(max_length=LONGEST, min_length=1)


class NamedDevices(Model):
    """Devices to put into a group, or to take out of it."""

    devices: list[Name] = Field(min_length=1, max_length=10_000)


class Description(Model):
    """What shall be changed about a device; what is left out stays."""

    name: str | None = Field(
        None, max_length=200, pattern=r"^[^\x00-\x1f]*$", description="What people call it"
    )
    notes: str | None = Field(None, max_length=4000, pattern=r"^[^\x00]*$")
    group: Name | None = Field(None, description="In place of the group it enrolled into")
    tags: dict[Name, str | None] | None = Field(
        None, max_length=64, description="Values by key; null takes a tag away"
    )


class Applicant(Model):
    """A device that asks to join."""

    id: str
    name: str = Field(description="The device id it would like")
    fingerprint: str = Field(description="SHA-256 of its public key as PEM: compare it")
    group: str
    token: str = Field(description="Id of the enrolment token")
    inventory: dict[str, Any]
    created: float = Field(description="Unix seconds")
    deadline: float = Field(description="Unix seconds; its request is over then")
    state: Literal["pending", "accepted", "rejected", "expired", "enrolled"]
    by: str = Field(description="Who decided")
    decided: float | None


class Applicants(Page[Applicant]):
    """A page of applicants."""


class NewExpected(Model):
    """A device to expect: by the fingerprint of its key, else by its id."""

    id: Name = Field("", description="The id it gets; without a fingerprint, the one it asks for")
    fingerprint: Digest | Literal[""] = ""
    group: Name
    tags: Tags = Field({}, max_length=64)


class NewExpectedDevices(Model):
    """Devices to expect, all or none."""

    devices: list[NewExpected] = Field(min_length=1, max_length=10_000)


class Added(Model):
    """How many are expected now that were not before, or otherwise."""

    added: int


class Expected(Model):
    """A device that is let in without asking."""

    id: str = Field(description="Of this entry")
    device: str
    fingerprint: str
    group: str
    tags: dict[str, str]
    created: float
    by: str
    used_by: str = Field(description="The device it has become; empty: it has not come yet")


class ExpectedDevices(Page[Expected]):
    """A page of devices that are expected."""


class Farewell(Model):
    """How a device is taken out of service."""

    purge: bool = Field(False, description="Whether all that it has told goes, too")


class Decommissioned(Model):
    """A device that is no more."""

    device: str
    kept_as: str | None = Field(description="Where what it told can be looked up; null: it is gone")


class Happening(Model):
    """Something that happened to a device."""

    time: float = Field(description="Unix seconds of the fleet's clock")
    kind: Literal["connection", "event", "job", "audit"]
    sentence: str
    facts: dict[str, Any] = Field(description="What the sentence is made of")


class Timeline(Page[Happening]):
    """A page of a device's timeline."""
