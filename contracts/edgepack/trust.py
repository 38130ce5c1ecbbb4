"""What makes a model fit to run: target paths, signed facts, the cross-check. Does no I/O.

Two repositories speak about a model. The *image repository* is signed offline by the publisher:
it says what exists. The *director* is signed online by the fleet: it says what one device shall
run. A device believes neither alone:

1. the director speaks of this device, wants at most one model and delegates to nobody;
2. the image repository's line of that model lists the same path, length, digest and facts;
3. the model fits the device: architecture, CPU features, runtime and its version;
4. its epoch is not below the line's signed floor, nor below the floor the device remembers.

Signatures, versions and expiry are the business of TUF, which runs before these rules.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from edgepack.errors import IntegrityError
from edgepack.manifest import Count, Manifest, Name, Precision, Semver

__all__ = [
    "DEVICE",
    "EXPORT",
    "ISSUED",
    "MAX_MODEL_BYTES",
    "MIN_EPOCH",
    "ON_REVOKED",
    "Approved",
    "DeviceFacts",
    "DirectorWord",
    "ExamCustom",
    "ExamTarget",
    "ImageWord",
    "ModelCustom",
    "OnRevoked",
    "Reason",
    "Standing",
    "TargetInfo",
    "TrustError",
    "cross_check",
    "exam_path",
    "exam_target",
    "line_paths",
    "line_role",
    "misfit",
    "model_path",
    "model_target",
    "parse_model_path",
]

DEVICE = "x-edgepack-device"
"""Field of the director's targets: the one device they are for."""
EXPORT = "x-edgepack-export"
"""Field of a snapshot and timestamp that were signed offline for a mirror: true. Devices count
their versions apart, and take them from a mirror only."""
ISSUED = "x-edgepack-issued"
"""Field of what is signed online: when, in Unix seconds. Raises a device's time floor."""
MIN_EPOCH = "x-edgepack-min-epoch"
"""Field of a line's role: the lowest epoch its publisher still wants to see running."""
ON_REVOKED = "x-edgepack-on-revoked"
"""Field of a line's role: `keep` or `stop`, what a device does with a model below that epoch."""

MAX_MODEL_BYTES = 4 * 1024 * 1024
"""Size of a model's OCI manifest; what it lists may be far larger."""
MAX_EXAM_BYTES = 64 * 1024 * 1024

Reason = Literal[
    "bad_custom",
    "bad_metadata",
    "bad_path",
    "bad_root",
    "bad_signature",
    "clock",
    "endless_data",
    "epoch_below_floor",
    "floors_unreadable",
    "metadata_expired",
    "metadata_missing",
    "mismatch",
    "not_in_image_repo",
    "rollback",
    "storage",
    "wrong_device",
    "wrong_hardware",
    "wrong_runtime",
]

OnRevoked = Literal["keep", "stop"]
"""What a device does with a model that was revoked while it ran: go on until there is another,
or serve nothing rather than that."""

_Score = Annotated[str, msgspec.Meta(pattern=r"^(?:0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?)$")]
_VARIANT = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")


class TrustError(IntegrityError):
    """A repository, its metadata or the clock cannot be trusted; `reason` is one of `Reason`."""

    def __init__(self, reason: Reason, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix, reason=reason)


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused: a requirement we cannot read is one we cannot meet."""

    v: Literal[1] = 1


class ModelCustom(_Facts, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """What is signed about a model beside its length and digest."""

    name: Name
    version: Semver
    runtime: str
    precision: Precision
    arch: tuple[str, ...] = ()
    """Machine names it runs on; empty: any."""
    cpu_features: tuple[str, ...] = ()
    min_runtime: str = "0"
    epoch: Count = 0

    @property
    def release(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def path(self) -> str:
        """The one target path this model may have."""
        variant = "-".join((self.runtime, self.precision, *self.arch))
        return model_path(self.name, self.version, variant)


class ExamCustom(_Facts, frozen=True, kw_only=True, tag_field="kind", tag="exam"):
    """What is signed about the acceptance exam of a model line."""

    min_score: _Score
    """Share of right answers, as decimal text: TUF's canonical JSON has no floats."""
    samples: Annotated[int, msgspec.Meta(ge=1, le=64)]


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """A target as one repository states it: path, SHA-256 in hex, size in bytes, facts."""

    path: str
    sha256: str
    size: int
    custom: Mapping[str, Any]

    @property
    def model(self) -> ModelCustom:
        """The facts of a model.

        Raises:
            TrustError: they are of something else, or unreadable (reason `bad_custom`).
        """
        custom = _read_custom(self)
        if isinstance(custom, ModelCustom):
            return custom
        raise TrustError("bad_custom", f"{self.path} is not a model")

    @property
    def exam(self) -> ExamCustom:
        """The facts of an acceptance exam.

        Raises:
            TrustError: they are of something else, or unreadable (reason `bad_custom`).
        """
        custom = _read_custom(self)
        if isinstance(custom, ExamCustom):
            return custom
        raise TrustError("bad_custom", f"{self.path} is not an exam")


@dataclass(frozen=True, slots=True)
class Standing:
    """What the publisher of a model line says about models of it that are installed."""

    line: str
    min_epoch: int = 0
    on_revoked: OnRevoked = "keep"

    def revokes(self, epoch: int) -> bool:
        """Return whether a model of EPOCH must not be installed, nor gone back to."""
        return epoch < self.min_epoch

    def stops(self, epoch: int) -> bool:
        """Return whether a model of EPOCH that serves now must stop."""
        return self.revokes(epoch) and self.on_revoked == "stop"


@dataclass(frozen=True, slots=True)
class ImageWord:
    """What the image repository's line says, after TUF has verified it."""

    target: TargetInfo | None
    exam: TargetInfo | None
    min_epoch: int


@dataclass(frozen=True, slots=True)
class DirectorWord:
    """What the director says to one device, after TUF has verified it."""

    device: str
    targets: tuple[TargetInfo, ...]
    delegates: bool

    def wanted(self, device: str) -> TargetInfo | None:
        """Return the model DEVICE shall run; None: none.

        Raises:
            TrustError: it speaks of another device, of several models, or for somebody else.
        """
        if self.device != device:
            raise TrustError(
                "wrong_device", f"the director's word is for {self.device!r}, not for {device!r}"
            )
        if self.delegates:
            raise TrustError("mismatch", "the director delegates, which it must not")
        if len(self.targets) > 1:
            raise TrustError("mismatch", f"the director wants {len(self.targets)} models at once")
        return self.targets[0] if self.targets else None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device can run: runtime name to installed version, machine name, CPU features."""

    runtimes: Mapping[str, str]
    arch: str
    cpu_features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ExamTarget:
    """The exam a model has to pass on the device; `min_score` is a share in 0..1."""

    path: str
    sha256: str
    size: int
    min_score: float


@dataclass(frozen=True, slots=True)
class Approved:
    """A model both repositories agree on, that fits this device. Its blob is an OCI manifest."""

    path: str
    name: str
    version: str
    sha256: str
    size: int
    custom: ModelCustom
    exam: ExamTarget | None
    epoch: int


def model_path(name: str, version: str, variant: str) -> str:
    """Return the target path of one variant of a release.

    Raises:
        TrustError: a part cannot stand in a path (reason `bad_path`).
    """
    path = f"models/{name}/{version}/{variant}.json"
    parse_model_path(path)
    return path


def parse_model_path(path: str) -> tuple[str, str, str]:
    """Return name, version and variant of the model at PATH.

    Raises:
        TrustError: it is not the path of a model (reason `bad_path`).
    """
    parts = path.split("/")
    if len(parts) != 4 or parts[0] != "models" or not parts[3].endswith(".json"):
        raise _bad_path(path)
    name, version, variant = parts[1], parts[2], parts[3].removesuffix(".json")
    try:
        msgspec.convert(name, Name)
        msgspec.convert(version, Semver)
    except msgspec.ValidationError as error:
        raise _bad_path(path) from error
    # The patterns of the manifest end in `$`, which lets a line feed follow.
    if not _VARIANT.fullmatch(variant) or "\n" in path:
        raise _bad_path(path)
    return name, version, variant


def exam_path(name: str) -> str:
    """Return the target path of the acceptance exam of the model line NAME."""
    return f"models/{name}/exam.npz"


def line_role(name: str) -> str:
    """Return the name of the role that signs the model line NAME."""
    return f"line-{name}"


def line_paths(name: str) -> list[str]:
    """Return the only patterns the model line NAME may be delegated, in their order."""
    return [f"models/{name}/*/*", exam_path(name)]


def model_target(manifest: Manifest, oci_manifest: bytes) -> TargetInfo:
    """Return the target that the bundle of MANIFEST is, whose OCI manifest is OCI_MANIFEST.

    A publisher signs it; a device that fetched an approved bundle, or was handed a file,
    compares it with what was signed.
    """
    target = manifest.target
    custom = ModelCustom(
        name=manifest.name,
        version=manifest.version,
        runtime=target.runtime,
        precision=target.precision,
        arch=target.arch,
        cpu_features=target.cpu_features,
        min_runtime=target.min_runtime,
        epoch=manifest.security_epoch,
    )
    digest = hashlib.sha256(oci_manifest).hexdigest()
    return TargetInfo(custom.path, digest, len(oci_manifest), _as_read(custom))


def exam_target(name: str, exam: bytes, min_score: float, samples: int) -> TargetInfo:
    """Return the target that the file EXAM is, as acceptance exam of the model line NAME.

    Args:
        name: The model line.
        exam: Content of the `.npz` file.
        min_score: Share of right answers that passes, 0..1, kept to six digits.
        samples: How many labelled samples it holds.
    """
    custom = ExamCustom(min_score=f"{min_score:.6f}", samples=samples)
    digest = hashlib.sha256(exam).hexdigest()
    return TargetInfo(exam_path(name), digest, len(exam), _as_read(custom))


def _as_read(custom: ModelCustom | ExamCustom) -> dict[str, Any]:
    """Return CUSTOM as it looks after a trip through JSON, so that it compares with one."""
    facts: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(custom))
    return facts


def misfit(model: ModelCustom, facts: DeviceFacts) -> tuple[Reason, str] | None:
    """Return why MODEL does not fit a device of FACTS, reason and sentence; None if it does."""
    if model.arch and facts.arch not in model.arch:
        return "wrong_hardware", f"it is for {', '.join(model.arch)}, not for {facts.arch}"
    if missing := sorted(set(model.cpu_features) - facts.cpu_features):
        return "wrong_hardware", f"it needs the CPU features {', '.join(missing)}"
    installed = facts.runtimes.get(model.runtime)
    if installed is None:
        return "wrong_runtime", f"it needs the runtime {model.runtime}, which is not installed"
    if _version(installed) < _version(model.min_runtime):
        return "wrong_runtime", f"it needs {model.runtime} {model.min_runtime}, not {installed}"
    return None


def cross_check(
    wanted: TargetInfo, image: ImageWord, facts: DeviceFacts, *, epoch_floor: int
) -> Approved:
    """Return the model WANTED, if IMAGE approves exactly that and it fits.

    Args:
        wanted: What the director wants; for a local install, what the bundle at hand is.
        image: What the image repository says of the same path.
        facts: What this device can run.
        epoch_floor: The epoch this device has confirmed for the model line.

    Raises:
        TrustError: one of the rules does not hold; `reason` says which.
    """
    if image.target is None:
        raise TrustError(
            "not_in_image_repo",
            f"{wanted.path} is not approved by its publisher",
            fix="publish the bundle first: edgepack repo publish",
        )
    if wanted != image.target:
        raise TrustError(
            "mismatch",
            f"{wanted.path} is not what its publisher approved",
            why="path, length, digest or signed facts differ",
            fix="the fleet or the file may have been tampered with; nothing was installed",
        )
    model = _model(image.target)
    _check_fit(model, facts)
    _check_epoch(model, max(image.min_epoch, epoch_floor))
    exam = _exam(image.exam) if image.exam is not None else None
    return Approved(
        wanted.path, model.name, model.version, wanted.sha256, wanted.size, model, exam, model.epoch
    )


def _model(target: TargetInfo) -> ModelCustom:
    model = target.model
    if model.path != target.path or target.size > MAX_MODEL_BYTES:
        raise TrustError("bad_custom", f"the signed facts of {target.path} do not belong to it")
    return model


def _check_fit(model: ModelCustom, facts: DeviceFacts) -> None:
    if problem := misfit(model, facts):
        reason, why = problem
        raise TrustError(reason, f"{model.release} does not fit this device", why=why)


def _check_epoch(model: ModelCustom, floor: int) -> None:
    if model.epoch < floor:
        raise TrustError(
            "epoch_below_floor",
            f"{model.release} has been revoked",
            why=f"its epoch is {model.epoch}, the floor is {floor}",
        )


def _exam(target: TargetInfo) -> ExamTarget:
    if target.size > MAX_EXAM_BYTES:
        raise TrustError("bad_custom", f"the exam {target.path} is too large")
    return ExamTarget(target.path, target.sha256, target.size, float(target.exam.min_score))


def _read_custom(target: TargetInfo) -> ModelCustom | ExamCustom:
    try:
        return msgspec.convert(target.custom, ModelCustom | ExamCustom)
    except msgspec.ValidationError as error:
        raise TrustError(
            "bad_custom",
            f"the signed facts of {target.path} cannot be read",
            why=str(error),
            fix="a newer agent may be needed",
        ) from error


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of TEXT, without trailing zeros: `2025.4.0-20398` is 2025.4."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9}){0,7}", text, re.ASCII)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _bad_path(path: str) -> TrustError:
    return TrustError("bad_path", f"{path[:200]!r} is not the path of a model")
