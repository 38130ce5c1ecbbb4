"""Steps on a ready OpenVINO IR: look at what it is, take it as it is, and ask OpenVINO.

Asked in f32 on one thread, whatever the CPU would rather take.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.ready import (
    answer_samples,
    corrupt,
    precision_of,
    random,
    stateful,
    tensors,
)
from edgepack_targets import registry
from edgepack_targets.openvino_session import sound
from edgepack_targets.shapes import static_shapes
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import openvino as ov

__all__ = ["open", "reference"]

KIND = "an OpenVINO IR"
STATE = {"ReadValue", "Assign"}
RANDOM = {"RandomUniform", "Multinomial"}
NO_OPERATOR = ("doesn't contain the operation", "Cannot create", "unsupported opset")


def open(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:  # noqa: A001
    """Write the source to OUT/model.xml and .bin; return its tensors and its `precision`.

    Raises:
        UsageError: no IR, its weights are not beside it, or `--shape` does not fit it.
        UnsupportedError: operators that OpenVINO does not have, state, or randomness.
    """
    source = Path(args["source"])
    say("opening the model")
    model = _read(source)
    found = {node.get_type_name() for node in _every(model)}
    if found & STATE:
        raise stateful(found & STATE)
    if found & RANDOM:
        raise random(found & RANDOM)
    _reshape(model, args["shapes"])
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)
    target = registry.find("openvino")
    try:
        inputs, outputs = target.describe(out)
    except IntegrityError as error:
        raise corrupt(source, KIND, error.why) from error
    dynamic = any(native.shape[:1] == (-1,) for native in inputs)
    return {
        "inputs": tensors(inputs, dynamic_batch=dynamic),
        "outputs": tensors(outputs, dynamic_batch=dynamic),
        "precision": precision_of(target.applied(out), integer_activations="FakeQuantize" in found),
        "versions": installed_versions(["openvino"]),
    }


def reference(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write OpenVINO's answers to the samples in `args["samples"]` to OUT/outputs.npz."""
    say("asking the source model")
    model = _read(Path(args["source"]))
    _reshape(model, args["shapes"])
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": ov.Type.f32,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
    }
    outputs = [min(port.get_names()) for port in model.outputs]
    compiled = ov.Core().compile_model(sound(model, alone=True), "CPU", config)
    request = compiled.create_infer_request()

    def answer(sample: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        results = request.infer(sample)
        return {name: results[compiled.output(name)].copy() for name in outputs}

    answer_samples(args, out, [min(port.get_names()) for port in model.inputs], answer)
    return {"versions": installed_versions(["openvino"])}


def _read(source: Path) -> ov.Model:
    weights = source.with_suffix(".bin")
    if not weights.is_file():
        raise UsageError(
            f"the weights of {source.name} are missing",
            why=f"there is no {weights.name} beside it",
            fix="put the .bin file that was written with the .xml beside it",
            reason="no_weights",
        )
    try:
        model = ov.Core().read_model(source, weights)
    except (RuntimeError, OSError, ValueError) as error:  # ValueError: no UTF-8
        raise _unreadable(source, str(error)) from error
    unnamed = [port for port in (*model.inputs, *model.outputs) if not port.get_names()]
    for index, port in enumerate(unnamed):
        port.set_names({f"tensor_{index}"})
    return model


def _unreadable(source: Path, error: str) -> UsageError | UnsupportedError:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if not any(words in error for words in NO_OPERATOR):
        return corrupt(source, KIND, lines[-1])
    # OpenVINO names only the first; those of extensions carry no opset.
    text = source.read_text(errors="replace")
    own = sorted(set(re.findall(r'type="(\w+)"\s+version="(?!opset)\w+"', text)))
    return UnsupportedError(
        f"OpenVINO does not have {len(own) or 1} of the model's operators",
        why=f"missing: {', '.join(own)}" if own else lines[-1],
        fix="convert the original model again, with the installed OpenVINO and its own operators",
        reason="unsupported_operator",
    )


def _every(model: ov.Model) -> list[Any]:
    """Return the operators of MODEL and of the bodies of its loops and branches."""
    found = []
    todo = [model]
    while todo:
        for node in todo.pop().get_ordered_ops():
            found.append(node)
            if node.get_type_name() in {"If", "Loop", "TensorIterator"}:
                todo += _bodies(node)
    return found


def _bodies(node: Any) -> list[Any]:
    if node.get_type_name() == "If":
        return [node.get_function(0), node.get_function(1)]
    return [node.get_function()]


def _reshape(model: ov.Model, asked: Mapping[str, list[int]]) -> None:
    known = {
        min(port.get_names()): tuple(
            -1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape()
        )
        for port in model.inputs
    }
    shapes = static_shapes(
        known, {name: tuple(shape) for name, shape in asked.items()}, dynamic_batch=True
    )
    if shapes != known:
        try:
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        except RuntimeError as error:
            why = str(error).strip().splitlines()[-1]
            raise UsageError(
                "the model does not take this shape", why=why, reason="bad_shape"
            ) from error
