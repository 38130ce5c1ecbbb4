"""The bundle's manifest: every field, its meaning and its check. Reads and writes no archive.

Canonical JSON, schema `edgepack.bundle/v1`. Field names follow what the neighbouring formats
call the same thing. Nothing dated or measured in time is in here: two builds of the same
input give the same bytes, and measurements live in `report.json` beside the bundle.
"""

from typing import Annotated, Any, Literal

import msgspec

from edgepack import canonical
from edgepack.decoders import Postprocess
from edgepack.errors import IntegrityError

__all__ = [
    "SCHEMA",
    "Agreement",
    "Binding",
    "Calibration",
    "FileEntry",
    "Golden",
    "Manifest",
    "Metrics",
    "Postprocess",
    "Preprocess",
    "Provenance",
    "Resize",
    "Target",
    "TensorSpec",
    "json_schema",
    "read_manifest",
    "write_manifest",
]

SCHEMA = "edgepack.bundle/v1"

# Patterns end in `(?![\s\S])`, nothing follows: to Python, `$` also matches before a newline.
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?(?![\s\S])")]
Semver = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?:(?:0|[1-9][0-9]*)\.){2}(?:0|[1-9][0-9]*)"
        r"(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?(?![\s\S])",
        max_length=64,
    ),
]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}(?![\s\S])")]
FilePath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?!\.)[A-Za-z0-9_.-]+(?:/(?!\.)[A-Za-z0-9_.-]+)*(?![\s\S])", max_length=200
    ),
]
Count = Annotated[int, msgspec.Meta(ge=0)]
Dim = Annotated[int, msgspec.Meta(ge=-1)]
Task = Literal["classify", "detect", "segment", "embed", "raw"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "w8", "w4"]
Role = Literal["model", "golden", "labels", "asset", "chunks", "doc"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of the manifest; unknown fields are refused, so that nothing is ignored."""


class Target(_Part, frozen=True, kw_only=True):
    """What the bundle runs on."""

    runtime: Literal["openvino", "tflite", "onnx", "onnx-mobile"]
    min_runtime: str
    """Lowest runtime version it was proven on, `major.minor`."""
    precision: Precision
    execution_precision: str
    """What the Session must set: `f32`, unless a lower one was proven."""
    arch: tuple[str, ...] = ()
    """Machine names (`x86_64`, `aarch64`); empty: any."""
    cpu_features: tuple[str, ...] = ()
    ram_mb: Count = 0
    disk_bytes: Count = 0


class Binding(_Part, frozen=True, kw_only=True):
    """How a public tensor maps to the runtime's own."""

    native_name: str
    permutation: tuple[Count, ...] | None = None
    """`native = public.transpose(permutation)`; None: the same layout."""


class TensorSpec(_Part, frozen=True, kw_only=True):
    """One input or output under the names, shapes and layouts of the source model."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    shape: tuple[Dim, ...]
    """-1 is a dynamic axis."""
    dtype: Literal[
        "float32", "float16", "float64", "bool",
        "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    ]  # fmt: skip
    binding: Binding
    layout: str | None = None
    """`NHWC`, `NCHW`, `NC`, ... where it is known."""


class Resize(_Part, frozen=True, kw_only=True):
    """How an image gets the model's size."""

    mode: Literal["stretch", "letterbox", "crop"] = "stretch"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114


class Preprocess(_Part, frozen=True, kw_only=True):
    """From an image to the input tensor: colour, resize, then `(x / scale - mean) / std`.

    `x` is in 0..255; `mean` and `std` are in units after the division by `scale`, one number
    per channel or one for all.
    """

    input: str
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Resize = Resize()
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Calibration(_Part, frozen=True, kw_only=True):
    """Where the quantisation ranges come from."""

    method: str
    samples: Count
    dataset_digest: Sha256
    seed: int = 0
    tools: dict[str, str] = {}


class Metrics(_Part, frozen=True, kw_only=True):
    """The task metric of the source and of this artefact, on the same evaluation set."""

    name: str
    reference: float
    this: float
    drop: float
    samples: Count
    dataset_digest: Sha256
    limit: float | None = None


class Agreement(_Part, frozen=True, kw_only=True):
    """When two answers count as the same decision.

    `top1`: the same best class; `f1`: the same objects, each of one class and at an IoU of at
    least 0.5; `miou`: the same regions; `cosine`: outputs in nearly one direction.
    """

    rule: Literal["top1", "cosine", "f1", "miou"]
    output: str
    min_share: float = 1.0
    """Share of golden samples that must agree; for `f1` and `miou` their mean over the samples."""
    min_cosine: float = 0.99
    """Of the output, for `top1` and `cosine`."""


class Golden(_Part, frozen=True, kw_only=True):
    """What the host saw in the device's runtime: inputs and outputs by public name."""

    inputs: FilePath
    outputs: FilePath
    samples: Count


class Provenance(_Part, frozen=True, kw_only=True):
    """Where the model comes from."""

    source_sha256: Sha256
    source_format: str
    tools: dict[str, str] = {}
    steps: tuple[str, ...] = ()


class FileEntry(_Part, frozen=True, kw_only=True):
    """One file of the bundle beside the manifest itself."""

    path: FilePath
    role: Role
    size: Count
    sha256: Sha256


class Manifest(_Part, frozen=True, kw_only=True):
    """The contract between whoever built a model and whatever runs it."""

    schema: Literal["edgepack.bundle/v1"]
    name: Name
    version: Semver
    build_id: str
    """First 16 hex digits of the SHA-256 of the manifest without this field."""
    task: Task
    target: Target
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    agreement: Agreement
    golden: Golden
    provenance: Provenance
    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(min_length=1)]
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    labels: tuple[str, ...] = ()
    calibration: Calibration | None = None
    metrics: Metrics | None = None
    drift: dict[str, Any] | None = None
    security_epoch: Count = 0
    """A device never runs an epoch below its floor; independent of the version."""
    license: str | None = None

    @property
    def release(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def variant(self) -> str:
        """`target-precision[-arch]`: what tells the bundles of one release apart."""
        arch = "-".join(self.target.arch)
        return f"{self.target.runtime}-{self.target.precision}" + (f"-{arch}" if arch else "")

    @property
    def file_name(self) -> str:
        """`NAME-VERSION-TARGET-PRECISION[-ARCH].edgepack`."""
        return f"{self.name}-{self.version}-{self.variant}.edgepack"


def read_manifest(data: bytes) -> Manifest:
    """Return the manifest in DATA.

    Raises:
        IntegrityError: not canonical JSON, an unknown field, or a value out of range.
    """
    value = canonical.loads(data, what="manifest.json")
    try:
        return msgspec.convert(value, Manifest)
    except msgspec.ValidationError as error:
        raise IntegrityError(
            "manifest.json does not follow its schema", why=str(error), reason="bad_manifest"
        ) from error


def write_manifest(manifest: Manifest) -> bytes:
    """Return MANIFEST as canonical JSON; fields that are at their default are left out of none."""
    return canonical.dumps(msgspec.to_builtins(manifest))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the manifest."""
    schema = msgspec.json.schema(Manifest)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA} | schema
