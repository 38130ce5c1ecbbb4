"""Every message between a device and the fleet, as JSON with a version field `v`.

Read with `decode`, which checks types and bounds; unknown fields are ignored so that an older
side can read a newer one. Written with `encode`. Says nothing of topics (see `topics`).
"""

import zlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edgepack.errors import IntegrityError

__all__ = [
    "DAYS",
    "MAX_MESSAGE",
    "Ack",
    "BlobRequest",
    "Carried",
    "CertHint",
    "CertReply",
    "CertRequest",
    "Challenge",
    "Conn",
    "EnrollPending",
    "EnrollReply",
    "EnrollRequest",
    "Event",
    "Export",
    "Head",
    "Histogram",
    "Inventory",
    "Job",
    "JobGet",
    "JobReply",
    "JobStatus",
    "JobUpdate",
    "MetaRequest",
    "Rejected",
    "Renewal",
    "Report",
    "Shadow",
    "Telemetry",
    "Window",
    "decode",
    "decode_batch",
    "encode",
    "encode_batch",
]

MAX_MESSAGE = 256 * 1024
"""Bytes a JSON message may have after inflating; more is refused before it is parsed."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}(?![\s\S])")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""As large as every database and every JSON reader of ours can take."""

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9](?![\s\S])")]

JobStatus = Literal[
    "QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "CANCELED"
]
"""The states of AWS IoT Jobs, which IoT engineers know; REJECTED means: do not retry."""


Span = tuple[Count, Count]
MAX_SPANS = 2000


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A versioned message."""

    v: Literal[1] = 1


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is, as far as choosing a variant needs it."""

    agent: Text = ""
    arch: Text = ""
    os: Text = ""
    cpu_features: tuple[str, ...] = ()
    ram_mb: Count = 0
    disk_free_mb: Count = 0
    runtimes: dict[str, str] = {}
    """Runtime name (`onnx`, `openvino`, `tflite`) to installed version, best first."""
    host: Text = ""
    """The same for all agents of one box, and says nothing else of it; empty: not known."""


class Conn(Message, frozen=True, kw_only=True):
    """Birth (online) and will (offline) of a connection, retained. `conn` tells them apart."""

    online: bool
    conn: Id
    boot: Id = "-"
    agent: Text = ""
    bundle: Text | None = None
    """`name@version` of the active bundle."""
    cert: Text = ""
    """Serial number, in hex, of the certificate of this connection."""
    trusts: Text = ""
    """SHA-256 of the authorities the device believes."""


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Counts between fixed edges; `len(counts) == len(edges) + 1`, the ends are open.

    Histograms with the same edges merge by addition.
    """

    edges: tuple[float, ...]
    counts: tuple[Count, ...]


class Telemetry(Message, frozen=True, kw_only=True):
    """What happened on a device between `start` and `end` (Unix seconds of the device)."""

    boot: Id
    seq: Count
    start: float
    end: float
    bundle: Text | None = None
    digest: Text | None = None
    inferences: Count = 0
    errors: dict[str, Count] = {}
    latency_ms: Histogram | None = None
    confidence: Histogram | None = None
    classes: dict[str, Count] = {}
    features: Annotated[
        dict[str, Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]],
        msgspec.Meta(max_length=64),
    ] = {}
    """What inputs and outputs look like: counts in the bins of the bundle's baseline, by feature
    (`inputs.image.mean`); bins at the end that are empty may be left out."""
    rss_mb: float = 0.0
    cpu_percent: float = 0.0
    temperature_c: float | None = None
    throttled_s: Count | None = None
    """Seconds, one a beat of the runner, in which the processor was slowed down by heat or for want
    of power; None: the machine does not say."""
    lost: Count = 0
    """Rows the device had to throw away before they were acknowledged."""
    supersedes: Annotated[tuple[Span, ...], msgspec.Meta(max_length=MAX_SPANS)] = ()
    """Numbers of rows that never come, first and last: added up into this one, or lost."""


class Event(Message, frozen=True, kw_only=True):
    """Something that happened once: `activated`, `rejected`, `rolled_back`, `inventory`, ..."""

    boot: Id
    seq: Count
    ts: float
    type: Id
    bundle: Text | None = None
    digest: Text | None = None
    reason: Text = ""
    detail: dict[str, Any] = {}


class Ack(Message, frozen=True, kw_only=True):
    """What the fleet has committed: everything up to `upto` but `missing`, of one boot."""

    boot: Id
    upto: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
    missing: tuple[Span, ...] = ()
    """Ranges of numbers, first and last."""


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """A report that a person carries instead of the broker, exactly as it would be published."""

    kind: Literal["tele", "evt"]
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE)]
    """Base64 in JSON; signed with the device's report key."""


class Export(Message, frozen=True, kw_only=True):
    """What `edgepack-agent export` writes, for a site without a link: reports and the status."""

    schema: Literal["edgepack.agent.export/v1"] = "edgepack.agent.export/v1"
    device: Id
    time: float
    """Unix seconds, by the device's clock."""
    status: dict[str, Any] = {}
    messages: tuple[Carried, ...] = ()


class JobGet(Message, frozen=True, kw_only=True):
    """Ask for the next job; `token` comes back in the answer."""

    token: Id


class Window(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"start": "from", "end": "to"},
):
    """When updates are welcome: from one time of day to another, on each of `days`, in `zone`."""

    days: Annotated[tuple[Day, ...], msgspec.Meta(min_length=1, max_length=7)] = DAYS
    """Days on which it begins."""
    start: TimeOfDay
    end: TimeOfDay
    """If it is not later than `from`, it is on the next day."""
    zone: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "UTC"
    """Name in the IANA list."""


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """Before it answers anybody, a new model answers beside the old one, and both are compared."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] = 60.0
    """That it lasts at least."""
    min_samples: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 20
    """Inputs that both have answered, before there is a verdict."""
    min_agreement: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Mean agreement of their answers by the task's rule; None: any."""
    max_p95_ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Of the new model's 95 % latency to the old one's, on the same inputs; None: any."""
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] = 600.0
    """Seconds after which too few samples are too few; never less than `seconds`."""
    on_missing: Literal["pass", "fail"] = "pass"
    """What becomes of a model that could not be compared, or not often enough."""
    per_s: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 5.0
    """Inputs a second that are compared, at most: the box has other work."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One update for one device. The server's copy is the truth."""

    job: Id
    version: Count
    """Optimistic lock: goes up by one with every accepted update."""
    status: JobStatus
    release: Text
    """`name@version`."""
    target: Text
    """Path of the model's target in the image repository."""
    rollout: Id | None = None
    probation_s: Count = 5
    """Seconds the new model must stay healthy before it is committed."""
    timeout_s: Count = 3600
    """Seconds it may come no step further before it is given up."""
    link: Text = ""
    """Where the model's files are over HTTPS, for a while, with `{sha256}` for the digest; only in
    the answer to `JobGet`."""
    total_s: Count = 86400
    """Seconds the work may take in all, deferral not counted."""
    max_defer_s: Count = 7 * 86400
    """Seconds it may be deferred in all."""
    windows: tuple[Window, ...] = ()
    """When it may be done, beside the device's own windows; empty: at any time."""
    max_p95_ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Of the new model's 95 % latency to the old one's on probation; None: the device's rule."""
    shadow: Shadow | None = None
    """How the new model is compared with the old one before it answers; None: the device's rule."""


class JobUpdate(Message, frozen=True, kw_only=True):
    """A device's word on its job. `version` must be the version last seen."""

    token: Id
    job: Id
    version: Count
    status: JobStatus
    state: Text = ""
    reason: Text = ""
    detail: dict[str, Any] = {}
    progress: float = 0.0


class JobReply(Message, frozen=True, kw_only=True):
    """Answer to JobGet and JobUpdate: the job as the server has it; None: nothing to do."""

    token: Id
    job: Job | None = None


class Rejected(Message, frozen=True, kw_only=True):
    """Refusal of a request: `version_mismatch`, `unknown_job`, `terminal`, `bad_message`."""

    token: Id
    code: Id
    message: Text = ""
    job: Job | None = None


class MetaRequest(Message, frozen=True, kw_only=True):
    """Ask for a metadata file (`timestamp.json`, `3.root.json`) of one repository."""

    xfer: Id
    repo: Literal["image", "director"]
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._@-]{1,160}(?![\s\S])")]


class BlobRequest(Message, frozen=True, kw_only=True):
    """Ask for `n` blocks of 64 KiB from block index `start`, of the blob SHA256 of `size` bytes."""

    xfer: Id
    sha256: Sha256
    size: Count
    start: Count
    n: Annotated[int, msgspec.Meta(ge=1, le=64)]


class Head(Message, frozen=True, kw_only=True):
    """Start of an answer: 200 and the bytes to come, or why there are none (404, 413, 416)."""

    status: int
    size: Count = 0


class CertRequest(Message, frozen=True, kw_only=True):
    """Ask for a new certificate: over MQTT, or over HTTPS when the old one has expired."""

    token: Id
    request: Annotated[str, msgspec.Meta(max_length=65536)]
    """A DSSE envelope around a `Renewal`, signed with the device's report key."""


class Renewal(Message, frozen=True, kw_only=True):
    """What a device signs to get a new certificate."""

    device: Id
    csr: Annotated[str, msgspec.Meta(max_length=16384)]
    challenge: Text = ""
    """Over HTTPS: what the fleet has handed out for this, so that no old request can be used."""
    report_key: Text = ""
    """PEM of the public report key, of a device that has not told it yet; it then signs with the
    key of `certificate`."""
    certificate: Annotated[str, msgspec.Meta(max_length=16384)] = ""


class Challenge(Message, frozen=True, kw_only=True):
    """What a renewal over HTTPS must repeat, within minutes."""

    challenge: Id


class CertHint(Message, frozen=True, kw_only=True):
    """Ask for a new certificate soon: the authority that issues them changes."""

    within_s: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 600
    """Devices spread over this many seconds."""


class CertReply(Message, frozen=True, kw_only=True):
    """A new certificate, and the authorities to believe from now on."""

    token: Id
    certificate: str
    authorities: str
    """A DSSE envelope around PEM certificates, signed with the key of a trusted authority."""


class Report(Message, frozen=True, kw_only=True):
    """What a device signs of what it says: rows of its outbox, the state of its job."""

    device: Id
    kind: Id
    """`tele`, `evt`, `job/update` or `req/answer`."""
    nonce: Id
    time: float
    """Unix seconds of the device."""
    body: Any
    """The message itself, as JSON. Its own numbers make a repeat harmless."""


class EnrollRequest(Message, frozen=True, kw_only=True):
    """First contact over HTTPS: the secret of the token, a CSR and what the device is."""

    secret: Id
    csr: Annotated[str, msgspec.Meta(max_length=16384)]
    name: Text = ""
    """The device id it would like; the server chooses."""
    report_key: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    """PEM of the public half of the key it will sign reports with."""
    inventory: Inventory = Inventory()


class EnrollReply(Message, frozen=True, kw_only=True):
    """What an enrolled device needs to connect: identity, broker, director's root."""

    device: Id
    group: Id
    certificate: str
    ca: str
    broker_host: str
    broker_port: int
    director_root: str
    """The director's root metadata, as text."""


class EnrollPending(Message, frozen=True, kw_only=True):
    """A person must accept the device first (status 202): ask the same again later."""

    applicant: Id
    fingerprint: Text
    """SHA-256 of the device's public key (PEM), in hex: for that person to compare."""
    deadline: float
    """Unix seconds of the fleet's clock; the request is over then."""
    retry_s: int = 15
    """Seconds after which to ask again."""


M = TypeVar("M")


def encode(message: Message) -> bytes:
    """Return MESSAGE as JSON."""
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[M]) -> M:
    """Return DATA as a message of KIND.

    Raises:
        IntegrityError: too long, not JSON, or not of that kind (reason `bad_message`).
    """
    if len(data) > MAX_MESSAGE:
        raise _bad(kind, f"{len(data)} bytes, at most {MAX_MESSAGE} are read")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(kind, str(error)) from error


def encode_batch(messages: list[Any]) -> bytes:
    """Return MESSAGES as one JSON array, deflated where that is shorter."""
    plain = msgspec.json.encode(messages)
    packed = zlib.compress(plain, 6)
    return packed if len(packed) < len(plain) else plain


def decode_batch(data: bytes, kind: type[M]) -> list[M]:
    """Return the messages of a batch; plain JSON starts with `[`, anything else is deflated.

    Raises:
        IntegrityError: as `decode`, or a deflate stream that is torn or too large.
    """
    if len(data) > MAX_MESSAGE:
        raise _bad(kind, f"{len(data)} bytes, at most {MAX_MESSAGE} are read")
    return decode(data if data[:1] == b"[" else _inflate(data, kind), list[kind])  # type: ignore[valid-type]


def _inflate(data: bytes, kind: type[object]) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MAX_MESSAGE)
    except zlib.error as error:
        raise _bad(kind, str(error)) from error
    if not stream.eof:
        raise _bad(kind, "deflate stream torn or too large")
    return plain


def _bad(kind: Any, why: str) -> IntegrityError:
    name = getattr(kind, "__name__", str(kind))
    return IntegrityError(f"not a valid {name} message", why=why, reason="bad_message")
