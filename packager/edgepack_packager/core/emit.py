"""What other servers want to be told about a model: Frigate, Triton and OpenVINO Model Server.

Pure text from a manifest. All of them feed the model itself, so they speak its native names and
layouts; only OVMS can be told to give them the source's. What a consumer cannot take is an error:
a configuration that loads and detects garbage is worse than none.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Manifest, Preprocess, TensorSpec

__all__ = ["KINDS", "Emission", "emission"]

TRITON_BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "openvino": ("openvino", "model.xml")}
TRITON_TYPES = {
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip
OVMS_RUNTIMES = ("openvino", "onnx", "tflite")
# Frigate's detector by runtime, and the file it opens.
DETECTORS = {
    "openvino": ("openvino", "model.xml"),
    "onnx": ("onnx", "model.onnx"),
    "tflite": ("cpu", "model.tflite"),
}
AXES = "NCHWD"
"""Letters that OVMS knows for axes; each once."""


@dataclass(frozen=True, slots=True)
class Emission:
    """A folder for a consumer: texts by path, and where the model's files go."""

    texts: dict[str, str]
    models: str
    """Folder of the model's files; empty: beside the texts."""


def emission(kind: str, manifest: Manifest, aliases: Mapping[str, str] | None = None) -> Emission:
    """Return what KIND needs to serve the model of MANIFEST.

    Args:
        kind: One of `KINDS`.
        manifest: Of the bundle.
        aliases: What other readers of the model's format call its native names, where that
            differs.

    Raises:
        UsageError: there is no such kind.
        UnsupportedError: the consumer cannot take this model.
    """
    if kind not in KINDS:
        raise UsageError(
            f"there is no consumer `{kind}`",
            fix=f"choose from: {', '.join(KINDS)}",
            reason="unknown_consumer",
        )
    return KINDS[kind](manifest, aliases or {})


def native_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of SPEC in the model's own layout."""
    order = spec.binding.permutation or range(len(spec.shape))
    return tuple(spec.shape[axis] for axis in order)


# -- Triton


def _triton(manifest: Manifest, _: Mapping[str, str]) -> Emission:
    runtime = manifest.target.runtime
    if runtime not in TRITON_BACKENDS:
        raise _refuse("Triton", manifest, f"it has no backend for {runtime}", "onnx or openvino")
    backend, file = TRITON_BACKENDS[runtime]
    home = manifest.name
    classes = manifest.agreement.output if manifest.labels else ""
    tensors = [_triton_tensor("input", spec, "") for spec in manifest.inputs]
    tensors += [
        _triton_tensor("output", spec, "labels.txt" if spec.name == classes else "")
        for spec in manifest.outputs
    ]
    lines = [
        f"# {manifest.release}: tensors have the model's own names and layouts.",
        f'name: "{home}"',
        f'backend: "{backend}"',
        f'default_model_filename: "{file}"',
        "max_batch_size: 0",
        *tensors,
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
    ]
    texts = {f"{home}/config.pbtxt": "\n".join(lines) + "\n"}
    if classes:
        texts[f"{home}/labels.txt"] = "".join(f"{label}\n" for label in manifest.labels)
    return Emission(texts, f"{home}/1")


def _triton_tensor(side: str, spec: TensorSpec, labels: str) -> str:
    # JSON's escapes are also those of the text format.
    name = json.dumps(spec.binding.native_name)
    dims = ", ".join(map(str, native_shape(spec)))
    extra = f' label_filename: "{labels}"' if labels else ""
    kind = TRITON_TYPES[spec.dtype]
    return f"{side} [ {{ name: {name} data_type: TYPE_{kind} dims: [ {dims} ]{extra} }} ]"


# -- OpenVINO Model Server


def _ovms(manifest: Manifest, aliases: Mapping[str, str]) -> Emission:
    if manifest.target.runtime not in OVMS_RUNTIMES:
        raise _refuse(
            "OpenVINO Model Server", manifest,
            f"it does not read {manifest.target.runtime}", " or ".join(OVMS_RUNTIMES),
        )  # fmt: skip
    config: dict[str, object] = {
        "name": manifest.name,
        "base_path": manifest.name,
        # Left to itself it runs in bf16 or f16 where the CPU has it.
        "plugin_config": {"INFERENCE_PRECISION_HINT": manifest.target.execution_precision},
    }
    layouts = {
        spec.name: _ovms_layout(spec)
        for spec in (*manifest.inputs, *manifest.outputs)
        if spec.binding.permutation is not None
    }
    if layouts:
        config["layout"] = layouts
    names = {
        side: {
            aliases.get(spec.binding.native_name, spec.binding.native_name): spec.name
            for spec in specs
        }
        for side, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs))
    }
    version = f"{manifest.name}/1"
    return Emission(
        {
            "model_config.json": _json({"model_config_list": [{"config": config}]}),
            f"{version}/mapping_config.json": _json(names),
        },
        version,
    )


def _ovms_layout(spec: TensorSpec) -> str:
    """Return `PUBLIC:NATIVE`: what clients send, and what the model has."""
    rank, order = len(spec.shape), spec.binding.permutation or ()
    if rank > len(AXES):
        raise UnsupportedError(
            f"OpenVINO Model Server cannot turn the {rank} axes of `{spec.name}`",
            why=f"it has letters for {len(AXES)}",
            fix="leave out --emit ovms",
            reason="not_for_consumer",
        )
    public = spec.layout if spec.layout and len(set(spec.layout)) == rank else AXES[:rank]
    return f"{public}:{''.join(public[axis] for axis in order)}"


# -- Frigate


def _frigate(manifest: Manifest, _: Mapping[str, str]) -> Emission:
    rule, spec = _frigate_input(manifest)
    detector, file = DETECTORS[manifest.target.runtime]
    nchw = native_shape(spec)[1] == 3
    height, width = native_shape(spec)[2:] if nchw else native_shape(spec)[1:3]
    home = f"/config/model_cache/{manifest.name}"
    device = "" if detector == "cpu" else "    device: CPU\n"
    config = (
        f"# {manifest.release} for Frigate: copy this folder to {home}\n"
        "# and put these lines into Frigate's config.yml.\n"
        f"detectors:\n  {detector}:\n    type: {detector}\n{device}"
        "model:\n"
        f"  path: {home}/{file}\n"
        f"  labelmap_path: {home}/labelmap.txt\n"
        f"  width: {width}\n"
        f"  height: {height}\n"
        f"  input_tensor: {'nchw' if nchw else 'nhwc'}\n"
        f"  input_pixel_format: {rule.color}\n"
        f"  input_dtype: {_frigate_dtype(manifest, rule, spec)}\n"
        f"  model_type: {_frigate_model(manifest)}\n"
    )
    # With numbers, because Frigate takes a first label like `2 wheeler` for a numbered one.
    labels = "".join(f"{number} {label}\n" for number, label in enumerate(manifest.labels))
    return Emission({"config.yml": config, "labelmap.txt": labels}, "")


def _frigate_input(manifest: Manifest) -> tuple[Preprocess, TensorSpec]:
    """Return how an image becomes the one input, if Frigate can do that."""
    rule, specs = manifest.preprocess, manifest.inputs
    faults = {
        f"it has no detector for {manifest.target.runtime}": manifest.target.runtime
        not in DETECTORS,
        f"it detects objects, and the task is {manifest.task}": manifest.task != "detect",
        "there are no labels": not manifest.labels,
        "the manifest does not say how an image becomes the input": rule is None,
        f"it feeds one image, and there are {len(specs)} inputs": len(specs) != 1,
        f"it feeds images of 3 colours, not {list(specs[0].shape)}": not _is_image(specs[0]),
        "it feeds colours, not gray": rule is not None and rule.color == "gray",
    }
    found = [fault for fault, holds in faults.items() if holds]
    if found or rule is None:
        raise _refuse("Frigate", manifest, "; ".join(found), "openvino, onnx or tflite")
    return rule, specs[0]


def _is_image(spec: TensorSpec) -> bool:
    shape = native_shape(spec)
    return len(shape) == 4 and min(shape) > 0 and 3 in (shape[1], shape[3])


def _frigate_dtype(manifest: Manifest, rule: Preprocess, spec: TensorSpec) -> str:
    """Return Frigate's word for what pixels become: it divides by 255, or does nothing."""
    centred = set(rule.mean) == {0.0} and set(rule.std) == {1.0}
    known = {("uint8", 1.0): "int", ("float32", 255.0): "float", ("float32", 1.0): "float_denorm"}
    word = known.get((spec.dtype, rule.scale)) if centred else None
    if word is None:
        raise _refuse(
            "Frigate", manifest, "it cannot subtract a mean or divide by anything but 255",
            "a model that takes 0..255 or 0..1",
        )  # fmt: skip
    return word


def _frigate_model(manifest: Manifest) -> str:
    """Return which of Frigate's decoders reads the outputs, by their shapes."""
    shapes = [native_shape(spec) for spec in manifest.outputs]
    classes, runtime = len(manifest.labels), manifest.target.runtime
    fits = []
    if runtime == "tflite":
        fits = ["ssd"] if _is_tflite_ssd(shapes) else []
    elif len(shapes) == 1:
        shape = shapes[0]
        fits += ["ssd"] if runtime == "openvino" and _matches(shape, (1, 1, None, 7)) else []
        fits += ["yolo-generic"] if _matches(shape, (1, 4 + classes, None)) else []
        fits += ["yolox"] if _matches(shape, (1, None, 5 + classes)) else []
        fits += ["yolonas"] if _matches(shape, (None, 7)) else []
    if len(fits) != 1:
        raise _refuse(
            "Frigate", manifest,
            f"{len(fits)} of its decoders read outputs {[list(shape) for shape in shapes]} "
            f"with {classes} labels",
            "YOLO (1, 4 + labels, N), YOLOX (1, N, 5 + labels), YOLO-NAS (N, 7) or SSD outputs",
        )  # fmt: skip
    return fits[0]


def _is_tflite_ssd(shapes: list[tuple[int, ...]]) -> bool:
    """Say whether they are boxes, classes, scores and their number, in this order."""
    wanted = [(1, None, 4), (1, None), (1, None), (1,)]
    return len(shapes) == 4 and all(map(_matches, shapes, wanted))


def _matches(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or size == want for size, want in zip(shape, wanted, strict=True)
    )


# -- all of them


def _refuse(consumer: str, manifest: Manifest, why: str, instead: str) -> UnsupportedError:
    return UnsupportedError(
        f"{consumer} cannot take {manifest.release} ({manifest.variant})",
        why=why,
        fix=f"it takes {instead}; or leave out --emit",
        reason="not_for_consumer",
    )


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


KINDS: dict[str, Callable[[Manifest, Mapping[str, str]], Emission]] = {
    "frigate": _frigate,
    "triton": _triton,
    "ovms": _ovms,
}
"""What `--emit` takes."""
