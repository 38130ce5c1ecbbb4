"""What an app has to know to feed a model by itself: `model.json` of `unpack --flat`. Pure.

An app has no session of ours: it calls the runtime, so everything here is native, the names,
shapes and layouts of the model file, with the public name beside it.
"""

from collections.abc import Mapping

import msgspec

from edgepack.decoders import OUTPUT_FIELDS, Postprocess
from edgepack.errors import IntegrityError
from edgepack.manifest import Manifest, Preprocess, Resize, TensorSpec
from edgepack_targets.interface import MODEL_FILES

__all__ = ["SCHEMA", "EmbeddedModel", "Steps", "Tensor", "embedded"]

SCHEMA = "edgepack.model/v1"


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """How the integers of a quantised tensor stand for numbers: `(value - zero_point) * scale`."""

    scale: float
    zero_point: int


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output as the runtime knows it."""

    name: str
    public_name: str
    """What the model's author called it."""
    shape: tuple[int, ...]
    """-1 is a dynamic axis."""
    dtype: str
    layout: str | None
    """`NHWC`, `NCHW`, ... where it is known."""
    quantization: Steps | None
    """Set if the app has to quantise or dequantise itself."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """From an image to a tensor: resize, order the colours, then `(x / scale - mean) / std`."""

    input: str
    width: int
    height: int
    color: str
    resize: Resize
    scale: float
    mean: tuple[float, ...]
    """One number per channel."""
    std: tuple[float, ...]
    """One number per channel."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file beside `model.json`."""

    path: str
    size: int
    sha256: str


class EmbeddedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `model.json`."""

    schema: str
    name: str
    version: str
    digest: str
    """Of the bundle: says which build an app ships."""
    task: str
    runtime: str
    min_runtime: str
    arch: tuple[str, ...]
    precision: str
    model: str
    """The file that the runtime opens."""
    files: tuple[File, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocess: Image | None
    postprocess: Postprocess | None
    """As in the manifest, with native names for the outputs."""
    labels: str | None
    license: str | None


def embedded(
    manifest: Manifest, digest: str, integers: Mapping[str, tuple[str, Steps]]
) -> EmbeddedModel:
    """Return what an app has to know of MANIFEST.

    Args:
        manifest: Of the bundle.
        digest: Of the bundle.
        integers: By native name: type and steps of tensors that are integers in the model and
            floats in the manifest.

    Raises:
        IntegrityError: the manifest speaks of an input that it does not have.
    """
    names = {spec.name: spec.binding.native_name for spec in (*manifest.inputs, *manifest.outputs)}
    rule, answer, target = manifest.preprocess, manifest.postprocess, manifest.target
    return EmbeddedModel(
        schema=SCHEMA,
        name=manifest.name,
        version=manifest.version,
        digest=digest,
        task=manifest.task,
        runtime=target.runtime,
        min_runtime=target.min_runtime,
        arch=target.arch,
        precision=target.precision,
        model=MODEL_FILES[target.runtime][0],
        files=tuple(
            File(path=entry.path.rpartition("/")[2], size=entry.size, sha256=entry.sha256)
            for entry in manifest.files
            if entry.role == "model"
        ),
        inputs=tuple(_tensor(spec, integers) for spec in manifest.inputs),
        outputs=tuple(_tensor(spec, integers) for spec in manifest.outputs),
        preprocess=_image(rule, manifest) if rule else None,
        postprocess=_native(answer, names) if answer else None,
        labels="labels.txt" if manifest.labels else None,
        license=manifest.license,
    )


def _native(answer: Postprocess, names: Mapping[str, str]) -> Postprocess:
    said = {field: getattr(answer, field, "") for field in OUTPUT_FIELDS}
    return msgspec.structs.replace(
        answer, **{field: names[name] for field, name in said.items() if name in names}
    )


def _tensor(spec: TensorSpec, integers: Mapping[str, tuple[str, Steps]]) -> Tensor:
    name = spec.binding.native_name
    dtype, steps = integers.get(name, (spec.dtype, None))
    order = spec.binding.permutation or tuple(range(len(spec.shape)))
    return Tensor(
        name=name,
        public_name=spec.name,
        shape=tuple(spec.shape[axis] for axis in order),
        dtype=dtype,
        layout=_turned(spec.layout, order),
        quantization=steps,
    )


def _turned(layout: str | None, order: tuple[int, ...]) -> str | None:
    if layout is None or len(layout) != len(order):
        return None
    return "".join(layout[axis] for axis in order)


def _image(rule: Preprocess, manifest: Manifest) -> Image:
    spec = next((spec for spec in manifest.inputs if spec.name == rule.input), None)
    if spec is None:
        raise IntegrityError(
            f"the manifest turns images into the input {rule.input}, which is not there",
            reason="bad_manifest",
        )
    height, width = _size(spec)
    channels = 1 if rule.color == "gray" else 3
    return Image(
        input=spec.binding.native_name,
        width=width,
        height=height,
        color=rule.color,
        resize=rule.resize,
        scale=rule.scale,
        mean=rule.mean * channels if len(rule.mean) == 1 else rule.mean,
        std=rule.std * channels if len(rule.std) == 1 else rule.std,
    )


def _size(spec: TensorSpec) -> tuple[int, int]:
    """Return height and width of the images that SPEC holds, in its public layout."""
    axes = spec.layout or "NHWC"
    sizes = dict(zip(axes, spec.shape, strict=True)) if len(axes) == len(spec.shape) else {}
    return sizes.get("H", -1), sizes.get("W", -1)
