"""The tables of the database: rows only. What a row means is in `core.model`."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AnswerRow",
    "ApiToken",
    "AuditRow",
    "Base",
    "ChangeRow",
    "DecisionRow",
    "DeliveryRow",
    "DeviceRow",
    "EnrolToken",
    "EventRow",
    "GroupRow",
    "JobRow",
    "OutboxRow",
    "RolloutRow",
    "StreamRow",
    "TelemetryRow",
    "WebhookRow",
]

Id = String(128)
RowId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself only where the type is exactly INTEGER."""


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, str: Text}  # noqa: RUF012


class GroupRow(Base):
    """A named set of devices."""

    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    created: Mapped[float]
    filter: Mapped[str] = mapped_column(default="")
    """Which devices are in it; empty: those that were put into it."""


class DeviceRow(Base):
    """An enrolled device and the last that is known of it."""

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"), index=True)
    enrolled: Mapped[float]
    certificate_serial: Mapped[str]
    """Hexadecimal."""
    certificate: Mapped[str] = mapped_column(default="")
    """PEM; empty for a device that enrolled before it was kept."""
    pending_certificate: Mapped[str] = mapped_column(default="")
    """PEM of a newer one that the device has not been seen with yet."""
    retired: Mapped[str] = mapped_column(default="")
    """Serial number of the one before, until it is on the revocation list."""
    report_key: Mapped[str] = mapped_column(default="")
    """PEM of the public key that signs its reports; empty: it has none."""
    enrol_token: Mapped[str] = mapped_column(default="")
    """Id of the token it enrolled with."""
    trusts: Mapped[str] = mapped_column(default="")
    """SHA-256 of the bundle of authorities it says it believes."""
    revoked: Mapped[float | None]
    """Unix seconds; nothing of a revoked device is taken, and nothing is said to it."""
    fenced: Mapped[float | None]
    """When its open session on the broker was ended."""
    inventory: Mapped[dict[str, Any]]
    online: Mapped[bool] = mapped_column(default=False)
    conn: Mapped[str] = mapped_column(default="")
    """The connection the last birth spoke of; a will of another one is old news."""
    boot: Mapped[str] = mapped_column(default="")
    agent: Mapped[str] = mapped_column(default="")
    bundle: Mapped[str | None]
    digest: Mapped[str | None]
    seen: Mapped[float] = mapped_column(default=0.0)
    inferences: Mapped[int] = mapped_column(BigInteger, default=0)
    errors: Mapped[int] = mapped_column(BigInteger, default=0)
    override: Mapped[bool] = mapped_column(default=False)
    """Whether it runs what a person installed at the device."""
    measured_job: Mapped[str] = mapped_column(default="")
    """Id of the job whose model is measured now; empty: none."""
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Text by key; given by people."""
    name: Mapped[str] = mapped_column(default="")
    """What people call it."""
    notes: Mapped[str] = mapped_column(default="")


class RolloutRow(Base):
    """A rollout; its release is kept as it was when it was created, so that it can be replayed."""

    __tablename__ = "rollouts"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    """Counts up; the higher number is the newer intent."""
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"), index=True)
    release: Mapped[str]
    variants: Mapped[list[Any]]
    waves: Mapped[str]
    policy: Mapped[dict[str, Any]]
    forgiven: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(default="")
    created: Mapped[float]
    updated: Mapped[float]
    version: Mapped[int] = mapped_column(default=0)
    """Optimistic lock."""
    priority: Mapped[int] = mapped_column(default=0)
    """The higher one goes first on a device, then the newer one."""
    waived: Mapped[list[Any]] = mapped_column(default=list)
    """Breached gates that an operator accepted: `WAVE:METRIC`."""
    approved_by: Mapped[str] = mapped_column(default="")
    stopped: Mapped[str] = mapped_column(default="")
    """The sentence with which it began to turn back."""


class DecisionRow(Base):
    """One decision with everything it was made of, or what an operator decided."""

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), index=True)
    at: Mapped[float]
    by: Mapped[str] = mapped_column(default="")
    """Who, if it was a person."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the inputs as JSON; empty for a person's."""
    inputs: Mapped[bytes] = mapped_column(LargeBinary)
    actions: Mapped[list[Any]]
    sentence: Mapped[str]


class JobRow(Base):
    """One update for one device: the truth the device pulls."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_device_status", "device_id", "status"),
        Index("ux_jobs_attempt", "rollout_id", "device_id", "attempt", unique=True),
        Index(
            "ux_jobs_one_open",
            "device_id",
            unique=True,
            sqlite_where=text("status IN ('QUEUED', 'IN_PROGRESS')"),
            postgresql_where=text("status IN ('QUEUED', 'IN_PROGRESS')"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.id"))
    wave: Mapped[int]
    release: Mapped[str]
    target: Mapped[str]
    version: Mapped[int] = mapped_column(default=0)
    status: Mapped[str] = mapped_column(String(16), default="QUEUED")
    state: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    detail: Mapped[dict[str, Any]]
    probation_s: Mapped[int]
    timeout_s: Mapped[int]
    created: Mapped[float]
    updated: Mapped[float]
    kind: Mapped[str] = mapped_column(String(16), default="install")
    attempt: Mapped[int] = mapped_column(default=1)
    started: Mapped[float | None]
    """When the device took it up."""
    image: Mapped[str] = mapped_column(default="")
    """SHA-256 of the target."""
    terms: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What else the device is told: time limits, windows, shadow."""
    before: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the device ran before the rollout came: release and target; empty: not known."""
    measured: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What was added up of the telemetry about its model."""


class StreamRow(Base):
    """Which rows of one boot of one device have arrived."""

    __tablename__ = "streams"

    device_id: Mapped[str] = mapped_column(Id, primary_key=True)
    boot: Mapped[str] = mapped_column(Id, primary_key=True)
    upto: Mapped[int] = mapped_column(BigInteger)
    missing: Mapped[list[Any]]
    updated: Mapped[float]


class TelemetryRow(Base):
    """One telemetry interval of one device."""

    __tablename__ = "telemetry"

    device_id: Mapped[str] = mapped_column(Id, primary_key=True)
    boot: Mapped[str] = mapped_column(Id, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    received: Mapped[float] = mapped_column(index=True)
    bundle: Mapped[str | None]
    inferences: Mapped[int] = mapped_column(BigInteger)
    body: Mapped[dict[str, Any]]


class EventRow(Base):
    """Something that happened once on a device."""

    __tablename__ = "events"

    device_id: Mapped[str] = mapped_column(Id, primary_key=True)
    boot: Mapped[str] = mapped_column(Id, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    received: Mapped[float] = mapped_column(index=True)
    type: Mapped[str]
    body: Mapped[dict[str, Any]]
    verified: Mapped[bool] = mapped_column(default=False)
    """Whether it was signed with the device's report key."""


class OutboxRow(Base):
    """A message that must reach the broker: written with the decision, removed once sent."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    topic: Mapped[str]
    payload: Mapped[bytes]
    created: Mapped[float]


class ApiToken(Base):
    """A bearer token of the REST interface; only its hash is kept."""

    __tablename__ = "api_tokens"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(Id, unique=True)
    """What people call it by; the token does not follow from it."""
    name: Mapped[str]
    role: Mapped[str] = mapped_column(String(16))
    created: Mapped[float]
    expires: Mapped[float | None]
    """Unix seconds; None: never."""
    used: Mapped[float | None]
    """Unix seconds of its last use, to the minute."""


class AnswerRow(Base):
    """What was answered to a request with an idempotency key, sealed with that key."""

    __tablename__ = "answers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    """None: it is not answered yet."""
    media_type: Mapped[str] = mapped_column(default="")
    body: Mapped[bytes | None]
    created: Mapped[float] = mapped_column(index=True)


class EnrolToken(Base):
    """A device's one-time entrance; only the hash of its secret is kept."""

    __tablename__ = "enrol_tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"))
    created: Mapped[float]
    expires: Mapped[float]
    uses: Mapped[int]
    used: Mapped[int] = mapped_column(default=0)
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What every device gets that enrols with it."""
    approval_s: Mapped[float | None]
    """Seconds in which a person must accept each device; None: nobody has to."""


class AuditRow(Base):
    """Something that somebody changed, or tried to."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    time: Mapped[float] = mapped_column(index=True)
    who: Mapped[str] = mapped_column(Id, index=True)
    """Id of the access token; the token itself may be gone."""
    name: Mapped[str]
    role: Mapped[str] = mapped_column(String(16))
    address: Mapped[str]
    action: Mapped[str]
    path: Mapped[str]
    status: Mapped[int]
    reason: Mapped[str]
    detail: Mapped[dict[str, Any]]


class ChangeRow(Base):
    """A change that others are told of, in the order in which they happened."""

    __tablename__ = "changes"
    __table_args__ = ({"sqlite_autoincrement": True},)
    """A number is never given twice, even after all rows are gone."""

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    time: Mapped[float]
    type: Mapped[str]
    subject: Mapped[str]
    data: Mapped[dict[str, Any]]


class WebhookRow(Base):
    """A URL that changes are posted to; its key is derived, not kept."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    url: Mapped[str]
    types: Mapped[list[Any]]
    """Empty: all."""
    by: Mapped[str]
    created: Mapped[float]
    state: Mapped[str] = mapped_column(String(16))
    answer: Mapped[str] = mapped_column(default="")
    """The last: a status, or why there was none."""
    answered: Mapped[float | None]


class DeliveryRow(Base):
    """A message for a webhook: written with the change, posted until it is taken."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_state_due", "state", "due"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), index=True)
    event: Mapped[dict[str, Any]]
    tries: Mapped[int]
    due: Mapped[float]
    state: Mapped[str] = mapped_column(String(16))
    answer: Mapped[str]
    created: Mapped[float]
    updated: Mapped[float]
