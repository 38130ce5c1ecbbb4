"""The HTTP contract of monitoring: health, drift, comparison. Beside `schemas`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgepack_fleet.web.queries import Moment, Name
from edgepack_fleet.web.schemas import Model

__all__ = [
    "CompareQuery",
    "Comparison",
    "DriftQuery",
    "DriftReport",
    "HealthQuery",
    "Lack",
    "ReleaseHealth",
    "WindowQuery",
]

Seconds = Annotated[float, Field(ge=60, le=800 * 86_400, description="Length of a window")]


class WindowQuery(BaseModel):
    """Which stretch of time, and of whom."""

    model_config = ConfigDict(extra="forbid")

    since: Moment | None = Field(None, description="Unix seconds; none: a day before `until`")
    until: Moment | None = Field(None, description="Unix seconds; none: now")
    group: Name | None = None


class HealthQuery(WindowQuery):
    """Which health."""

    device: Name | None = None
    step: Literal["5m", "1h", "1d"] | None = Field(
        None, description="Length of a point of the series; none: at most 300 points"
    )


class DriftQuery(WindowQuery):
    """Which drift."""

    device: Name | None = None
    against: Literal["baseline", "window"] = Field(
        "baseline", description="What the bundle was built with, or the same time `before`"
    )
    before: Seconds | None = Field(
        None, description="Seconds to go back with `window`; none: as long as the window is"
    )
    min_count: int = Field(1000, ge=1, le=10**9, description="Values a feature must have")
    psi: float = Field(0.1, ge=0, le=10, description="Corrected index that matters")
    p: float = Field(0.001, gt=0, lt=1, description="Chance of a false alarm in one look")


class CompareQuery(WindowQuery):
    """Which two releases."""

    other: Name = Field(description="The second, B: `name@version`")


class Quantile(Model):
    """A quantile of latency, milliseconds."""

    value: float = Field(description="Linear within its bin")
    low: float | None = Field(description="It is at least this; null: the bin is open")
    high: float | None = Field(description="It is less than this; null: the bin is open")


class Latency(Model):
    """Latencies of runtime calls."""

    p50: Quantile | None
    p95: Quantile | None
    p99: Quantile | None
    counted: int = Field(description="Calls they are told from")
    left_out: int = Field(description="Calls that were counted between other edges")


class Agreement(Model):
    """With the release before, where both answered the same inputs."""

    mean: float
    worst: float = Field(description="Of one device")
    devices: int


class Installs(Model):
    """What became of updates that ended in this time."""

    succeeded: int
    failed: dict[str, int] = Field(description="By reason")


class Point(Model):
    """One stretch of the series."""

    start: float = Field(description="Unix seconds")
    seconds: int
    inferences: int
    errors: int
    p50: float | None = Field(description="Milliseconds")
    p95: float | None = Field(description="Milliseconds")
    rss_mb: float
    throttled_s: int


class ReleaseHealth(Model):
    """How a release does."""

    release: str
    group: str | None
    device: str | None
    since: float = Field(description="Unix seconds, as asked")
    until: float
    first: float | None = Field(description="Begin of the first slot that counts; null: none")
    last: float | None = Field(description="End of the last; slots are 5 min, 1 h or 1 d long")
    devices: int = Field(description="That have reported")
    inferences: int
    errors: int = Field(description="Those that are held against the release")
    error_rate: float | None
    reasons: dict[str, int] = Field(description="Errors by reason, the most frequent first")
    others: dict[str, int] = Field(
        description="What clients, cameras or a full queue did wrong, by reason; no error of it"
    )
    latency: Latency
    classes: dict[str, int] = Field(description="Decisions by label, the most frequent first")
    confidence: dict[str, Any] | None = Field(description="Histogram: `edges`, `counts`")
    rss_mb: float | None = Field(description="Highest of any device")
    temperature_c: float | None
    throttled_s: int
    lost: int = Field(description="Rows of telemetry that devices had to throw away")
    installs: Installs
    rollbacks: int = Field(description="Times a device went back after it had answered")
    agreement: Agreement | None
    points: list[Point]


class Lack(Model):
    """Values that a feature has, and how many it takes to judge it."""

    side: Literal["now", "before"] = Field(description="`before`: what it is compared with")
    found: int
    needed: int


class FeatureDrift(Model):
    """What is said of one feature."""

    feature: str = Field(description="`classes`, `confidence`, `inputs.image.mean`, ...")
    verdict: Literal["drift", "none", "too_few"]
    psi: float = Field(
        description="Population stability index less what chance gives; 0 with `too_few`"
    )
    p: float = Field(description="G-test of this feature alone; 1 with `too_few`")
    adjusted: float = Field(description="The same, by Holm's correction for all of them")
    before: int = Field(description="Values compared with")
    now: int
    lack: Lack | None = Field(description="What it takes to judge it; null: it is judged")
    names: list[str] = Field(description="Of the bins: labels, or lower edges")
    counts_before: list[int]
    counts_now: list[int]


class VariantDrift(Model):
    """Drift of one variant: each has a baseline of its own."""

    digest: str
    against: Literal["baseline", "window", ""] = Field(description="Empty: nothing to compare with")
    features: list[FeatureDrift] = Field(description="The furthest away first")


class DriftReport(Model):
    """Whether what a release sees and says has changed."""

    release: str
    group: str | None
    device: str | None
    since: float
    until: float
    drifting: list[str] = Field(description="Features that drift in any variant")
    verdict: Literal["drift", "none", "partly", "too_few", "nothing"] = Field(
        description="Of all features; `partly`: of some there are too few values to say"
    )
    said: str = Field(description="The same in words")
    judged: int = Field(description="Features with enough values to be judged")
    features: int = Field(description="Features that are watched")
    variants: list[VariantDrift]


class Interval(Model):
    """An estimate, and where it is with 95 % confidence."""

    value: float
    low: float
    high: float


class Comparison(Model):
    """How release B differs from A."""

    a: str
    b: str
    group: str | None
    since: float
    until: float
    devices_a: int
    devices_b: int
    devices_both: int
    error_rate_a: float | None
    error_rate_b: float | None
    errors: Interval | None = Field(description="Error rate of B less that of A")
    p50_ratio: Interval | None = Field(description="Latency of B to that of A")
    p95_ratio: Interval | None
    agreement: Interval | None = Field(description="Of B with A, in shadow mode")
    said: list[str] = Field(description="The same in sentences")
