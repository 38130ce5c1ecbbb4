"""The HTTP contract: what requests and answers look like."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from edgepack.offers import MAX_OFFERS
from edgepack_fleet.access import Role
from edgepack_fleet.core.filters import LONGEST

__all__ = [
    "Authorities",
    "Decision",
    "Decisions",
    "Device",
    "Devices",
    "EnrolToken",
    "EnrolTokenCreated",
    "EnrolTokens",
    "Event",
    "Events",
    "Failure",
    "Group",
    "Groups",
    "Health",
    "Job",
    "Member",
    "NewEnrolToken",
    "NewGroup",
    "NewRollout",
    "OfferedPatch",
    "OfferedPatches",
    "Page",
    "Part",
    "Problem",
    "Published",
    "Push",
    "Rehearsal",
    "Release",
    "Releases",
    "RevokedDevice",
    "Rollout",
    "Rollouts",
    "Session",
    "Step",
    "Variant",
    "Wave",
    "Window",
    "Wrong",
]

GroupId = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$")]
TIME_OF_DAY = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
T = TypeVar("T")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    """Base: unknown fields are refused, so that a misspelt one does not pass unseen."""

    model_config = ConfigDict(extra="forbid")


class Wrong(Model):
    """What is wrong with one field."""

    where: str = Field(description="`body` or `query`, and the path to the field")
    why: str


class Problem(BaseModel):
    """Why something was refused (RFC 9457)."""

    type: str = Field("about:blank", description="Always the same: `reason` tells them apart")
    title: str
    status: int
    detail: str = Field(description="What happened, in one sentence")
    code: int = Field(0, description="Exit code of the command line for it")
    reason: str = Field("", description="A stable code, e.g. `unknown_device`")
    why: str = ""
    fix: str = Field("", description="What to do about it")
    errors: list[Wrong] = Field([], description="Every field that is wrong")


class Page(Model, Generic[T]):
    """A part of a list."""

    items: list[T]
    next: str | None = Field(description="Cursor of the next page; null: this is the last one")


class Job(Model):
    """The newest job of a device."""

    id: str
    release: str
    status: str
    state: str
    reason: str
    progress: float
    rollout: str
    updated: float


class Device(Model):
    """A device: what it should run, what it runs, how it is."""

    id: str
    group: str
    groups: list[str] = Field(description="All it is in; `group` is the one it enrolled into")
    name: str = Field(description="What people call it")
    notes: str
    tags: dict[str, str]
    online: bool
    desired: str | None = Field(
        description="`name@version` that the rollout it follows wants; see docs/reference/rollouts"
    )
    bundle: str | None = Field(description="`name@version` it reports")
    standing: str = Field(description="One sentence: why it does not run what it shall")
    digest: str | None
    target: str | None = Field(description="Runtime of the active variant, else its preferred one")
    agent: str
    inventory: dict[str, Any]
    enrolled: float = Field(description="Unix seconds")
    last_seen: float | None = Field(description="Unix seconds; null: never")
    revoked: float | None = Field(description="Unix seconds; null: it is not")
    signs_reports: bool = Field(
        description="Whether it signs what it reports with a key of its own"
    )
    certificate_expires: float | None = Field(description="Unix seconds; null: not known")
    job: Job | None
    inferences: int
    errors: int


class Devices(Page[Device]):
    """A page of devices."""


class Event(Model):
    """Something that happened once on a device."""

    device: str
    boot: str = Field(description="A number counts within one boot")
    seq: int
    received: float = Field(description="Unix seconds")
    type: str
    verified: bool = Field(description="Whether it was signed with the device's report key")
    body: dict[str, Any] = Field(description="As the device said it")


class Events(Page[Event]):
    """A page of events."""


class Authorities(Model):
    """Where a replacement of the certificate authority is."""

    issuing: str
    trusted: list[str]
    next: str | None = Field(description="Announced to devices, not issuing yet")
    sha256: str = Field(description="Of the one that issues: what new enrolment tokens pin")
    devices: int
    behind: list[str] = Field(description="Devices that have not followed the last step")


class Step(Model):
    """A step of the replacement."""

    force: bool = Field(False, description="Leave devices behind; they must enrol anew")


class CarriedReports(Model):
    """A message of a device that a person carried here."""

    kind: Literal["tele", "evt"]
    payload: Base64Bytes = Field(description="As the device would publish it")


class TakenReports(Model):
    """What became of it."""

    taken: bool
    refused: str = Field(description="Reason code; empty: it is taken, or was here already")


class RevokedDevice(Model):
    """A device that was revoked."""

    device: str
    revoked: float = Field(description="Unix seconds")
    session: Literal["ended", "list_ignored", "unreachable"] = Field(
        description="`unreachable`: the broker does not answer, it is tried again; "
        "`list_ignored`: ended, but the broker does not read the revocation list"
    )


class NewGroup(Model):
    """A group to create."""

    id: GroupId
    filter: str = Field("", max_length=LONGEST, description="Which devices; empty: those put in")


class Group(Model):
    """A group and how many devices are in it."""

    id: str
    filter: str | None = Field(description="Which devices are in it; null: those put into it")
    devices: int
    online: int
    release: str | None = Field(description="What the rollout that goes first in it wants")


class Groups(Page[Group]):
    """A page of groups."""


class Variant(Model):
    """A bundle of a release."""

    path: str
    sha256: str
    size: int
    runtime: str
    precision: str
    min_runtime: str
    arch: list[str]
    cpu_features: list[str]
    epoch: int


class Release(Model):
    """A published version of a model."""

    id: str
    name: str
    version: str
    variants: list[Variant]


class Releases(Page[Release]):
    """A page of releases."""


class Window(Model):
    """When devices may do it."""

    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = Field(
        ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], min_length=1, max_length=7
    )
    start: str = Field(alias="from", pattern=TIME_OF_DAY)
    end: str = Field(alias="to", pattern=TIME_OF_DAY)
    zone: str = Field("UTC", min_length=1, max_length=64, description="Name in the IANA list")


class NewRollout(Model):
    """A rollout to create."""

    release: str = Field(description="`name@version`", max_length=200)
    group: str = Field(max_length=64)
    waves: str = Field("1,10%,100%", description="Cumulative sizes", max_length=200)
    max_failures: int = Field(1, ge=1, description="Pause when this many devices failed")
    max_failure_percent: float = Field(20.0, ge=0, le=100)
    min_sample: int = Field(5, ge=1)
    quorum: float = Field(0.9, gt=0, le=1)
    soak_s: float = Field(0.0, ge=0, le=30 * 86400)
    timeout_s: float = Field(900.0, ge=1, le=7 * 86400)
    probation_s: int = Field(5, ge=0, le=86400)
    on_breach: Literal["pause", "cancel", "revert"] = "pause"
    gates: list[Annotated[str, Field(max_length=200)]] = Field([], max_length=20)
    gate_wait_s: float = Field(86400.0, ge=0, le=30 * 86400)
    shadow_s: int = Field(0, ge=0, le=7 * 86400)
    total_s: int = Field(86400, ge=1, le=30 * 86400)
    max_defer_s: int = Field(7 * 86400, ge=0, le=90 * 86400)
    windows: list[Window] = Field([], max_length=20)
    max_in_flight: int = Field(200, ge=1, description="Devices with an unfinished job at once")
    max_per_minute: int = Field(0, ge=0, description="Jobs given within a minute; 0: no limit")
    max_attempts: int = Field(3, ge=1, le=10)
    retry_s: float = Field(300.0, ge=0, le=86400)
    penalty_failures: int = Field(3, ge=0, le=100)
    penalty_s: float = Field(86400.0, ge=0, le=30 * 86400)
    overrides: Literal["accept", "replace"] = "replace"
    approval: bool = Field(False, description="Somebody must approve it before it starts")
    priority: int = Field(0, ge=-1000, le=1000)
    draft: bool = Field(False, description="It waits for somebody to start it")


class Part(Model):
    """A device's part in a rollout that was not made."""

    device: str
    target: str | None
    wave: int | None = Field(description="Index of its wave; null: it would not get it")
    why: str


class Rehearsal(Model):
    """What a rollout would do."""

    devices: list[Part]


class Decision(Model):
    """A decision that was made, and whether its inputs lead to the same actions again."""

    at: float
    by: str = Field(description="Who, if it was a person")
    sentence: str
    actions: list[dict[str, Any]]
    digest: str = Field(description="SHA-256 of the inputs")
    same: bool | None = Field(description="null: a person decided")


class Decisions(Model):
    """The newest decisions about a rollout, newest first."""

    decisions: list[Decision]


class GateReading(Model):
    """What a gate says of a wave: now, or of one that was taken back, what it said."""

    gate: str = Field(description="As it was given: `agreement>=0.95`")
    verdict: Literal["holds", "breached", "missing", "waived"]
    value: float | None = Field(description="Null: not enough devices have been measured")
    measured: int = Field(description="Devices of which the metric is known")
    wanted: int = Field(description="Devices of which it must be known")
    said: str = Field(description="The same as part of a sentence")


class Wave(Model):
    """One wave in numbers; cumulative sizes are in `Rollout.plan`.

    Of a rollout that turns back: what the release had done on its devices.
    """

    size: int
    done: int
    failed: int
    pending: int = Field(description="Under way, or not reached")
    gates: list[GateReading] = []


class Member(Model):
    """A device's part in a rollout."""

    id: str
    status: str = Field(
        description="A job status; QUEUED: not reached yet; SKIPPED: no variant fits"
    )
    reason: str
    wave: int | None = Field(description="Index of its wave; null: not assigned yet")
    progress: float = 0.0
    state: str = ""
    way: Literal["install", "revert"] = Field(
        "install", description="`revert`: the status is that of its way back"
    )


class Failure(Model):
    """How many devices failed for one reason."""

    reason: str
    devices: list[str]


class Rollout(Model):
    """A rollout and where it stands."""

    id: str
    release: str
    group: str
    state: Literal[
        "draft",
        "awaiting_approval",
        "running",
        "paused",
        "reverting",
        "reverted",
        "completed",
        "cancelled",
    ]
    reason: str = Field(description="One sentence: why it waits, paused or ended")
    overtaken_by: str | None = Field(
        description="Newest rollout of the group that goes before it, so that it cannot be "
        "resumed; null: none, or it has ended"
    )
    plan: str = Field(description="The waves as they were given")
    policy: dict[str, Any]
    priority: int
    approved_by: str
    waves: list[Wave]
    devices: list[Member]
    failures: list[Failure]
    created: float
    updated: float


class Rollouts(Page[Rollout]):
    """A page of rollouts."""


class NewEnrolToken(Model):
    """An enrolment token to create."""

    group: str = Field(max_length=64)
    ttl_s: float = Field(3600.0, ge=1, le=30 * 86400)
    uses: int = Field(1, ge=1, le=10_000)
    tags: dict[str, str] = Field({}, max_length=64, description="Of every device that uses it")
    approval_s: float | None = Field(
        None, ge=60, le=30 * 86400, description="Seconds in which a person must accept each device"
    )


class EnrolTokenCreated(Model):
    """A new enrolment token; it is shown this once."""

    id: str
    token: str
    group: str
    expires: float
    uses: int


class EnrolToken(Model):
    """An enrolment token without its secret."""

    id: str
    group: str
    created: float
    expires: float
    uses: int
    used: int
    tags: dict[str, str]
    approval_s: float | None = Field(description="null: nobody has to accept its devices")


class EnrolTokens(Page[EnrolToken]):
    """A page of enrolment tokens."""


class Push(Model):
    """Metadata signed by the publisher, by file name."""

    metadata: dict[str, str] = Field(max_length=1000)


class OfferedPatch(Model):
    """A patch that was put as a blob: what it needs, and what it is."""

    base: Digest
    base_size: int = Field(ge=1)
    codec: str = Field(max_length=32)
    patch: Digest
    size: int = Field(ge=1)


class OfferedPatches(Model):
    """Patches to a blob of that many bytes."""

    target_size: int = Field(ge=1)
    offers: list[OfferedPatch] = Field(max_length=MAX_OFFERS)


class Published(Model):
    """What a push made new."""

    releases: list[str]
    snapshot: int


class Session(Model):
    """Who the bearer of a token is."""

    role: Role


class Health(Model):
    """Whether the fleet can do its work."""

    status: Literal["ok", "degraded"]
    broker: bool = Field(description="Connected to the MQTT broker")
    version: str
    refused: dict[str, int] = Field(description="Messages of devices that were not taken, by cause")
