"""Steps of the `torch` toolchain: open a PyTorch model, export it once, convert, refer.

A module or program becomes one exported program with static shapes, named inputs and a
dictionary of named outputs, from which ONNX and TFLite are made. TorchScript cannot become
such a program and goes straight to ONNX. Quantises nothing and compares nothing.
"""

import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils import _pytree as pytree

from edgepack.errors import UnsupportedError
from edgepack_packager.workers.arrays import read_arrays, write_npz
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.torch_model import (
    Model,
    load_program,
    name_outputs,
    open_model,
    tensors_of,
)

__all__ = ["export", "export_model", "fingerprint", "onnx", "reference", "script_to_onnx", "tflite"]

Say = Callable[[str], None]
OPSET = 18
"""What PyTorch's exporter writes without converting, and older runtimes read too."""
PLAIN = frozenset({"aten", "prim", "prims"})
TOOLS = ("torch", "onnx", "onnxscript", "litert-torch", "litert-converter")


def export(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Write the source as an exported program to OUT/program.pt2; return its tensors.

    Raises:
        UsageError: the file is broken, or a shape is missing or wrong.
        UnsupportedError: code without trust, state, control flow, foreign operators.
    """
    _be_quiet()
    say("opening the model")
    model = open_model(args)
    say("exporting")
    program, outputs = export_model(model)
    torch.export.save(program, out / "program.pt2")
    return {
        "inputs": tensors_of(model.examples),
        "outputs": tensors_of(outputs),
        "versions": installed_versions(["torch"]),
    }


def fingerprint(args: dict[str, Any], _out: Path, say: Say) -> dict[str, Any]:
    """Return `sha256` of what the factory made: layers, parameters and buffers.

    Code reads what it likes: weights that it loads itself change without a change in its file.

    Raises:
        UsageError: the file does not run, or a shape is missing or wrong.
    """
    _be_quiet()
    say("looking at the model")
    module = open_model(args).module
    whole = hashlib.sha256(repr(module).encode())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        whole.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
        whole.update(array.reshape(-1).view(torch.uint8).numpy())
    return {"sha256": whole.hexdigest()}


def export_model(model: Model) -> tuple[Any, dict[str, Any]]:
    """Return MODEL as an exported program by public names, and its outputs without values.

    Raises:
        UnsupportedError: it cannot be captured, or what was captured cannot be converted.
    """
    try:
        program = torch.export.export(_named(model), (), dict(model.examples))
    except Exception as error:
        raise _not_captured(error) from error
    _refuse(program)
    results = next(iter(reversed(program.graph.nodes))).args[0]
    spec = program.call_spec.out_spec
    values = pytree.tree_unflatten([one.meta["val"] for one in results], spec)
    return program, name_outputs(values)


def _named(model: Model) -> Any:
    """Return a module whose forward takes the public inputs as arguments."""

    def forward(_self: Any, **tensors: Any) -> dict[str, Any]:
        return model.call(tensors)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("_self", *model.examples)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper = type("Named", (torch.nn.Module,), {"forward": forward})()
    wrapper.inner = model.module
    # Not `eval()`: a program's own module refuses it, and every part is in that mode already.
    wrapper.training = False
    return wrapper


def _not_captured(error: Exception) -> UnsupportedError:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return UnsupportedError(
        "PyTorch cannot export the model",
        why=f"{type(error).__name__}: {lines[0] if lines else ''}"[:400],
        fix="its forward must not branch on values of tensors; try torch.export.export yourself",
        reason="export_failed",
    )


# -- what cannot be converted


def _refuse(program: Any) -> None:
    """Refuse everything that no target expresses, in one error."""
    found = sorted(set(_problems(program)))
    if found:
        raise UnsupportedError(
            "the model does what cannot be converted",
            why="; ".join(found),
            fix="export it in evaluation mode (model.eval()), without state, branches on values "
            "or operators of its own",
            reason="unsupported_model",
        )


def _problems(program: Any) -> Iterator[str]:
    signature = program.run_decompositions({}).graph_signature
    yield from (
        f"state: {name.removeprefix('inner.')} changes"
        for name in signature.buffers_to_mutate.values()
    )
    yield from (f"state: input {name} changes" for name in signature.user_inputs_to_mutate.values())
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op == "call_function":
                yield from _problem(node)


def _problem(node: Any) -> Iterator[str]:
    target = node.target
    if isinstance(target, HigherOrderOperator):
        if not target.name().startswith("wrap_"):
            yield f"control flow: {target.name()}"
    elif isinstance(target, OpOverload):
        if target.namespace not in PLAIN:
            yield f"custom operator: {target.name()}"
        elif torch.Tag.nondeterministic_seeded in target.tags and _draws(node):
            yield f"random numbers: {target.name()}"


def _draws(node: Any) -> bool:
    """Return whether a random operator is on; dropout in evaluation mode is not."""
    schema = node.target._schema.arguments  # noqa: SLF001  nothing public says it
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    defaults = {argument.name: argument.default_value for argument in schema}
    for switch in ("train", "training", "dropout_p"):
        if switch in defaults:
            return bool(given.get(switch, defaults[switch]))
    return True


# -- conversions


def onnx(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Convert the exported program in `args["from"]` to OUT/model.onnx in fp32."""
    _be_quiet()
    program = load_program(Path(args["from"]) / "program.pt2")
    say("converting to ONNX")
    _, outputs = _names(program)
    made = torch.onnx.export(
        program, (), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
        output_names=outputs,
    )  # fmt: skip
    made.save(out / "model.onnx", external_data=False)
    return {"versions": installed_versions(TOOLS[:3])}


def tflite(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Convert the exported program in `args["from"]` to OUT/model.tflite in fp32."""
    _be_quiet()
    program = load_program(Path(args["from"]) / "program.pt2")
    import litert_torch

    say("converting to TFLite")
    inputs, _ = _names(program)
    examples = _zeros(program)
    wide = any("64" in str(tensor.dtype) for tensor in examples.values())
    made = litert_torch.convert(
        program.module(), sample_kwargs={name: examples[name] for name in inputs}, enable_x64=wide
    )
    made.export(str(out / "model.tflite"))
    return {"versions": installed_versions((TOOLS[0], *TOOLS[3:]))}


def _names(program: Any) -> tuple[list[str], list[str]]:
    spec = program.call_spec.out_spec
    outputs = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    return list(program.graph_signature.user_inputs), list(outputs)


def _zeros(program: Any) -> dict[str, Any]:
    nodes = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    fakes = {name: nodes[name] for name in program.graph_signature.user_inputs}
    return {name: torch.zeros(tuple(f.shape), dtype=f.dtype) for name, f in fakes.items()}


def script_to_onnx(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Write a TorchScript source as ONNX with static shapes to OUT/model.onnx; return its tensors.

    Raises:
        UsageError: the file is broken, or a shape is missing or wrong.
        UnsupportedError: code without trust, state, operators that ONNX has not.
    """
    _be_quiet()
    say("opening the model")
    model = open_model(args)
    _refuse_script_state(model.module)
    with torch.no_grad():
        outputs = model.call(dict(model.examples))
    say("converting to ONNX")
    buffer, examples = io.BytesIO(), tuple(model.examples.values())
    try:
        torch.onnx.export(
            torch.jit.trace(_Listed(model), examples), examples, buffer, dynamo=False,
            opset_version=17, input_names=list(model.examples), output_names=list(outputs),
        )  # fmt: skip
    except Exception as error:
        raise _not_captured(error) from error
    (out / "model.onnx").write_bytes(buffer.getvalue())
    return {
        "inputs": tensors_of(model.examples),
        "outputs": tensors_of(outputs),
        "versions": installed_versions(["torch", "onnx"]),
    }


class _Listed(torch.nn.Module):  # type: ignore[misc]
    """A model that takes and gives its tensors in order."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner = model.module
        self.names, self.call = tuple(model.examples), model.call
        self.training = False

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        """Return the outputs in order."""
        return tuple(self.call(dict(zip(self.names, tensors, strict=True))).values())


def _refuse_script_state(module: Any) -> None:
    graph = module.inlined_graph
    changed = {node.s("name") for node in graph.findAllNodes("prim::SetAttr", recurse=True)}
    if changed:
        raise UnsupportedError(
            "the model keeps state between calls",
            why=f"it changes {', '.join(sorted(changed))}",
            fix="export it without state",
            reason="stateful",
        )


# -- reference


def reference(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Write what PyTorch itself answers to the samples in `args["samples"]` to OUT/outputs.npz.

    One sample at a time, as on the device: a module may treat a batch in its own way.
    """
    _be_quiet()
    torch.set_num_threads(1)
    model = open_model(args)
    given = read_arrays(args["samples"])
    samples = {name: torch.from_numpy(given[name]) for name in model.examples}
    say("asking the source framework")
    count = len(next(iter(samples.values())))
    with torch.no_grad():
        rows = [
            model.call({name: array[i : i + 1] for name, array in samples.items()})
            for i in range(count)
        ]
    answers = {name: np.concatenate([row[name].numpy() for row in rows]) for name in rows[0]}
    write_npz(out / "outputs.npz", answers)
    return {"versions": installed_versions(["torch"])}


def _be_quiet() -> None:
    """Keep converters from talking about themselves."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
