"""What `--json` prints, one type per document; `schemas` publishes them.

Keys are added within `v1`, never renamed or taken away; readers must skip what they do not know.
Every number says its unit in its name; what was not measured is null.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from edgepack.manifest import Count
from edgepack_packager.core.answer_document import AnswerFacts
from edgepack_targets.machine import Machine
from edgepack_targets.measure import EffectiveFacts, Latency

__all__ = [
    "Build",
    "Compare",
    "Difference",
    "Doctor",
    "DoctorCheck",
    "DoctorRoute",
    "Inspect",
    "KeysCreated",
    "OutputAgreement",
    "PairedFacts",
    "Published",
    "RepoCreated",
    "Report",
    "RunAnswer",
    "Side",
    "Toolchains",
    "Unpacked",
    "Verified",
]

ManifestFacts = Annotated[
    dict[str, Any], msgspec.Meta(extra_json_schema={"$ref": "manifest.schema.json"})
]
Digest = Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
Ms = Annotated[float, msgspec.Meta(ge=0)]


class ErrorFacts(TypedDict):
    """An error: its exit code, a stable reason, and its words."""

    code: int
    reason: str
    message: str
    why: NotRequired[str]
    fix: NotRequired[str]


# -- build and report


class Metrics(TypedDict):
    """The metric of the source and of this artefact; null without evaluation data."""

    reference: float | None
    this: float | None
    drop: float | None


class ParityFacts(TypedDict):
    """Distance to the source's answers: largest difference, and the lowest cosine."""

    max_abs: float
    cosine: float


class BuiltBundle(TypedDict):
    """One bundle that a build wrote."""

    path: str
    target: str
    precision: str
    size_bytes: Count
    model_bytes: Count
    digest: Digest
    metrics: Metrics
    parity: ParityFacts
    latency_ms: Latency


class LayerLoss(TypedDict):
    """A layer and the relative RMS error of its output against fp32."""

    name: str
    operator: str
    loss: float


class FailedVariant(TypedDict):
    """One variant that was not built, and the layers that lose the accuracy, where it is that."""

    target: str
    precision: str
    code: int
    reason: str
    message: str
    layers: NotRequired[list[LayerLoss]]


class StepCounts(TypedDict):
    """Workers that were started, and steps that came from the cache instead."""

    run: Count
    cached: Count


class CrossedVariants(TypedDict):
    """Two variants of one build on the same samples."""

    variants: list[str]
    max_abs: float
    cosine: float
    samples: Count
    different: Count | None
    """Samples that they decide differently; null: no classifier."""
    agreement: float | None


class Build(TypedDict):
    """What `edgepack build --json` prints."""

    schema: Literal["edgepack.build/v1"]
    bundles: list[BuiltBundle]
    failed: list[FailedVariant]
    steps: NotRequired[StepCounts]
    crosscheck: NotRequired[list[CrossedVariants]]
    """The variants pair by pair, the least alike first."""


class Resolution(TypedDict):
    """What the evaluation can tell: one sample changes the metric by `one_is`."""

    samples: Count
    one_is: float


class MeasuredOn(TypedDict):
    """Whether the numbers are of a machine that the bundle is for."""

    machine: str
    native: bool
    note: str


class BudgetFacts(TypedDict):
    """Where latency and memory were judged: on a device, by its profile, or on this host."""

    judged_on: Literal["device", "host"]
    machine: str
    same_bundle: bool
    latency_ms: float
    peak_rss_mb: float
    note: str


class PairedFacts(TypedDict):
    """Labelled samples that only A (or the source), and only B (or this artefact), gets right.

    `interval95` is of the drop; `p_value` is of McNemar's exact test.
    """

    samples: Count
    lost: Count
    gained: Count
    interval95: list[float]
    p_value: float


class SourceFacts(TypedDict):
    """What was built."""

    name: str
    format: str
    sha256: str


class Fp32Facts(TypedDict):
    """The fp32 artefact of the same target: what every comparison is with."""

    latency_ms: Ms
    model_bytes: Count


class Timings(TypedDict):
    """Milliseconds to load and for the first inference, and samples per second."""

    load: float
    first: float
    throughput: float


class Report(BuiltBundle):
    """`report.json` beside a bundle: what was done and measured; never part of the bundle."""

    schema: Literal["edgepack.report/v1"]
    bundle: str
    metric: str | None
    samples: int | None
    evaluation: Resolution | None
    paired: PairedFacts | None
    search: dict[str, Any] | None
    fp32: Fp32Facts
    source: SourceFacts | None
    settings: dict[str, Any]
    compression: list[dict[str, Any]]
    effective: dict[str, Any]
    applied: dict[str, Any]
    layers: list[LayerLoss] | None
    budget: BudgetFacts | None
    measured_on: MeasuredOn
    peak_rss_mb: float
    measured: Timings
    host: dict[str, Any]
    tools: dict[str, str]
    command: list[str]
    warnings: list[str]


# -- run, compare


class PictureAnswer(TypedDict):
    """The answer for one image."""

    source: str
    answer: AnswerFacts
    annotated: NotRequired[str]
    """The image with the answer drawn on it."""


class RunAnswer(TypedDict):
    """What `edgepack run --json` prints: a file of outputs, or an answer per image."""

    schema: Literal["edgepack.run/v1"]
    bundle: str
    digest: Digest
    effective: EffectiveFacts
    out: NotRequired[str]
    samples: NotRequired[Count]
    results: NotRequired[list[PictureAnswer]]


class Difference(TypedDict):
    """Something that A and B say differently; null: one does not have it."""

    what: str
    a: str | None
    b: str | None


class Cosines(TypedDict):
    """Cosine similarity over the samples."""

    lowest: float
    mean: float


class OutputAgreement(TypedDict):
    """How far two answers agree in one output; `top1` is null where there is one number only."""

    name: str
    top1: float | None
    cosine: Cosines
    max_abs: float


class AnswerAgreement(TypedDict):
    """Answers of A and B to the same samples: the user's data, or A's golden inputs."""

    samples: Count
    data: Literal["given", "golden"]
    outputs: list[OutputAgreement]


class SideMetrics(TypedDict):
    """What the bundle says its build measured."""

    name: str
    reference: float
    this: float
    drop: float
    samples: Count
    dataset_digest: str


class Side(TypedDict):
    """One of two bundles."""

    path: str
    bundle: str
    digest: Digest
    signed: bool
    target: str
    precision: str
    execution_precision: str
    size_bytes: Count
    model_bytes: Count
    metrics: SideMetrics | None
    effective: EffectiveFacts
    load_ms: Ms
    first_ms: Ms
    latency_ms: Latency
    peak_rss_mb: float
    accuracy: float | None
    """Top-1 on the labels of `--data`."""


class Compare(TypedDict):
    """What `edgepack compare --json` prints; latencies are measured in turns."""

    schema: Literal["edgepack.compare/v1"]
    a: Side
    b: Side
    same_interface: bool
    differences: list[Difference]
    agreement: AnswerAgreement | None
    paired: PairedFacts | None
    latency_ratio: Annotated[float, msgspec.Meta(description="p50 of B / p50 of A")]
    host: Machine


# -- bundles


class SignatureFacts(TypedDict):
    """Whether there is a signature, and by which key it says it is; not checked."""

    signed: bool
    key_id: str | None


class Inspect(TypedDict):
    """What `edgepack inspect --json` prints."""

    schema: Literal["edgepack.inspect/v1"]
    path: str
    digest: Digest
    size_bytes: Count
    model_bytes: Count
    signature: SignatureFacts
    manifest: ManifestFacts


class Verified(TypedDict):
    """What `edgepack verify --json` prints; `error` if it does not hold."""

    schema: Literal["edgepack.verify/v1"]
    path: str
    verified: bool
    digest: NotRequired[Digest]
    key_id: NotRequired[str]
    files: NotRequired[Count]
    """Signed files, if PATH is a directory, which has no digest of its own."""
    error: NotRequired[ErrorFacts]


class Unpacked(TypedDict):
    """What `edgepack unpack --json` prints."""

    schema: Literal["edgepack.unpack/v1"]
    directory: str
    files: list[str]


# -- keys, repository, toolchains


class KeysCreated(TypedDict):
    """What `edgepack keys create --json` prints."""

    schema: Literal["edgepack.keys/v1"]
    private: str
    public: str
    key_id: str
    encrypted: bool


class RepoCreated(TypedDict):
    """What `edgepack repo init --json` prints."""

    schema: Literal["edgepack.repo/v1"]
    home: str
    root: str
    root_sha256: str
    encrypted: bool


class PublishedTarget(TypedDict):
    """One target of the repository."""

    path: str
    digest: Digest


class DeltaFacts(TypedDict):
    """The smallest way from one version of a file to another: a patch, or `full`.

    `ratio` is its share of the whole file; `tried` has the bytes of every patch that was made.
    """

    base: str
    target: str
    path: str
    codec: Literal["zstd", "bsdiff", "full"]
    bytes: Count
    ratio: float
    tried: dict[str, Count]


class Published(TypedDict):
    """What `edgepack repo publish --json` prints."""

    schema: Literal["edgepack.publish/v1"]
    repo: str
    releases: list[str]
    targets: list[PublishedTarget]
    snapshot: int
    uploaded_bytes: Count
    deltas: list[DeltaFacts]


class ToolchainFacts(TypedDict):
    """One toolchain: `install` tells whether it was installed now, `list` what it holds."""

    name: str
    python: str | None
    installed_now: NotRequired[bool]
    installed: NotRequired[bool]
    purpose: NotRequired[str]
    size_bytes: NotRequired[int | None]
    pins: NotRequired[list[str]]


class Toolchains(TypedDict):
    """What `edgepack toolchain install|list --json` print."""

    schema: Literal["edgepack.toolchains/v1"]
    toolchains: list[ToolchainFacts]


# -- doctor


class DoctorRoute(TypedDict):
    """Whether a kind of source can be built for a target here, and what it takes if not."""

    source: str
    target: str
    state: Literal["works", "installable", "missing", "none"]
    precisions: list[str]
    toolchains: list[str]
    fix: Annotated[str, msgspec.Meta(description="The one command that enables it, or empty")]


class DoctorCheck(TypedDict):
    """One look at this machine."""

    name: str
    ok: bool
    told: str
    fix: str


class Doctor(TypedDict):
    """What `edgepack doctor --json` prints."""

    schema: Literal["edgepack.doctor/v1"]
    ok: bool
    version: str
    python: str
    host: Machine
    runtimes: dict[str, str | None]
    toolchains: list[ToolchainFacts]
    routes: list[DoctorRoute]
    checks: list[DoctorCheck]
    fixes: list[str]
