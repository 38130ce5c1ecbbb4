"""An opened PyTorch model: what it takes and gives, by public name, with static shapes.

Inputs are called as the arguments of `forward`, outputs as the keys of the returned dictionary
or `output_0`, `output_1`, ... Exports nothing.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers import torch_safety as safety

__all__ = [
    "Model",
    "load_program",
    "load_python",
    "make_module",
    "name_outputs",
    "open_model",
    "tensors_of",
]

Tensor = Any
Tensors = dict[str, Tensor]
EXAMPLE = "example_input_array"
"""Where Lightning modules keep an example of their input."""


@dataclass(frozen=True, slots=True)
class Model:
    """An opened model in evaluation mode."""

    module: Any
    """The `torch.nn.Module` that CALL runs."""
    examples: Tensors
    """One tensor per input, in order: the static shapes and types."""
    call: Callable[[Tensors], Tensors]
    """From tensors by public input name to tensors by public output name."""


def open_model(args: Mapping[str, Any]) -> Model:
    """Return the model that ARGS (see `interfaces` of a source step) name, on the CPU.

    Raises:
        UsageError: a broken file, wrong weights, an unknown or missing shape.
        UnsupportedError: it could run code, or has inputs that are no tensors.
    """
    if not args.get("trust"):
        safety.unpickle_only_tensors()
    torch.manual_seed(0)
    opened = {"torch_module": _module, "torch_program": _program, "torchscript": _script}
    return opened[args["kind"]](args)


# -- module.py:factory


def _module(args: Mapping[str, Any]) -> Model:
    module = make_module(Path(args["source"]), args["factory"])
    if args.get("weights"):
        _fill(module, Path(args["weights"]), trust=bool(args.get("trust")))
    module.eval()
    examples = _module_examples(module, args["shapes"])

    def call(tensors: Tensors) -> Tensors:
        return name_outputs(module(**tensors))

    return Model(module, examples, call)


def load_python(path: Path) -> Any:
    """Return the Python module in PATH, having run it.

    Raises:
        UsageError: it does not run.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path.name} is not a Python module", reason="bad_module")
    python = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = python
    try:
        spec.loader.exec_module(python)
    except (Exception, SystemExit) as error:
        raise _broken_module(path, error) from error
    return python


def make_module(path: Path, factory: str) -> Any:
    """Return the `torch.nn.Module` that FACTORY in PATH makes.

    Raises:
        UsageError: PATH does not run, or FACTORY is missing or makes something else.
    """
    python = load_python(path)
    make = getattr(python, factory, None)
    if not callable(make):
        raise UsageError(
            f"{path.name} has no function {factory}",
            fix="name one that takes nothing and returns the torch.nn.Module",
            reason="no_factory",
        )
    try:
        made = make()
    except (Exception, SystemExit) as error:
        raise _broken_module(path, error) from error
    if not isinstance(made, torch.nn.Module):
        what = f"{factory} in {path.name} returns {type(made).__name__}, not a torch.nn.Module"
        raise UsageError(what, reason="no_factory")
    return made


def _broken_module(path: Path, error: BaseException) -> UsageError:
    fix = ""
    if isinstance(error, ImportError):
        fix = "keep the model in one file that imports nothing but torch, or save it as .pt2"
    why = f"{type(error).__name__}: {error}"[:300]
    return UsageError(f"{path.name} does not run", why=why, fix=fix, reason="bad_module")


def _fill(module: Any, path: Path, *, trust: bool) -> None:
    weights = safety.load_weights(path, trust=trust)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise UsageError(
            f"the weights in {path.name} are not those of the module",
            why=" ".join(lines)[:400],
            reason="wrong_weights",
        ) from error


def _module_examples(module: Any, shapes: Mapping[str, list[int]]) -> Tensors:
    wanted = _arguments(module)
    given = _own_examples(module, list(wanted))
    unknown = (shapes.keys() | given.keys()) - wanted.keys()
    if unknown:
        raise _unknown_input(unknown, wanted)
    missing = [name for name, need in wanted.items() if need and name not in {*shapes, *given}]
    if missing:
        raise _no_shape(
            missing[0], f"the module has no {EXAMPLE}, and code does not say its shapes"
        )
    return {
        name: _example(given.get(name), shapes.get(name))
        for name in wanted
        if name in shapes or name in given
    }


def _arguments(module: Any) -> dict[str, bool]:
    """Return the arguments of forward and whether each is needed."""
    found = inspect.signature(module.forward).parameters.values()
    if any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY} for p in found):
        raise UnsupportedError(
            "the module's forward does not name its inputs",
            fix="give it one argument per tensor, without * and **",
            reason="unnamed_inputs",
        )
    return {p.name: p.default is p.empty for p in found}


def _own_examples(module: Any, names: list[str]) -> Tensors:
    own = getattr(module, EXAMPLE, None)
    if own is None:
        return {}
    given = own if isinstance(own, dict) else dict(zip(names, _listed(own), strict=False))
    if not all(isinstance(tensor, torch.Tensor) for tensor in given.values()):
        raise UnsupportedError(
            f"{EXAMPLE} holds something else than tensors",
            fix="let forward take one tensor per argument",
            reason="nested_inputs",
        )
    # A batch in the example is an example of a batch; one sample at a time is what is built.
    return {name: tensor[:1] if tensor.ndim else tensor for name, tensor in given.items()}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _example(own: Tensor | None, shape: list[int] | None) -> Tensor:
    if own is not None and (shape is None or list(own.shape) == shape):
        # A copy: a tensor given twice is taken by the exporter for one input.
        return own.detach().cpu().clone()
    return torch.zeros(shape or [], dtype=own.dtype if own is not None else torch.float32)


def _no_shape(name: str, why: str) -> UsageError:
    return UsageError(
        f"the shape of input {name} is not known",
        why=why,
        fix=f"give it: --shape {name}=1,3,224,224",
        reason="unknown_shape",
    )


def _unknown_input(names: Any, known: Any) -> UsageError:
    return UsageError(
        f"--shape names an input that is not there: {', '.join(sorted(names))}",
        fix=f"inputs are: {', '.join(known)}",
        reason="unknown_input",
    )


# -- program.pt2


def load_program(path: Path, *, trust: bool = False) -> Any:
    """Return the `torch.export.ExportedProgram` in PATH.

    Raises:
        UsageError: it is broken.
        UnsupportedError: opening it could run code, unless TRUST.
    """
    if not trust:
        safety.check_program(path)
    try:
        return load_pt2(str(path)).exported_programs["model"]
    except Exception as error:
        raise safety.corrupt(path, error) from error


def _program(args: Mapping[str, Any]) -> Model:
    program = load_program(Path(args["source"]), trust=bool(args.get("trust")))
    module = program.module()
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = [s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    slots = [_slot(spec, nodes) for spec in specs]
    own = {name: nodes[name].meta["val"] for name, _ in slots if _is_tensor(nodes, name)}
    unknown = args["shapes"].keys() - own.keys()
    if unknown:
        raise _unknown_input(unknown, own)
    examples = {
        name: torch.zeros(_fixed(name, fake.shape, args["shapes"].get(name)), dtype=fake.dtype)
        for name, fake in own.items()
    }

    def call(tensors: Tensors) -> Tensors:
        flat = [tensors.get(name, value) for name, value in slots]
        arguments, keywords = pytree.tree_unflatten(flat, program.call_spec.in_spec)
        return name_outputs(module(*arguments, **keywords))

    return Model(module, examples, call)


def _slot(spec: Any, nodes: Mapping[str, Any]) -> tuple[str, Any]:
    """Return (name, None) of a tensor, (name, value) of a constant."""
    name = spec.arg.name
    if _is_tensor(nodes, name):
        return name, None
    if hasattr(spec.arg, "value"):
        return name, spec.arg.value
    raise UnsupportedError(
        f"input {name} is no tensor",
        fix="export the model with that argument fixed",
        reason="nested_inputs",
    )


def _is_tensor(nodes: Mapping[str, Any], name: str) -> bool:
    return name in nodes and isinstance(nodes[name].meta.get("val"), torch.Tensor)


def _fixed(name: str, own: Any, wanted: list[int] | None) -> list[int]:
    """Return a static shape: the wanted one, or the own with an unknown batch of 1."""
    sizes = [size if isinstance(size, int) else -1 for size in own]
    chosen = list(wanted) if wanted else [1 if i == 0 and s < 0 else s for i, s in enumerate(sizes)]
    if min(chosen, default=1) < 1:
        raise UnsupportedError(
            f"the shape of input {name} is not fixed: {sizes} (-1: unknown)",
            why="only an unknown first axis, the batch, becomes 1 by itself",
            fix=f"give it: --shape {name}=" + ",".join(str(max(size, 1)) for size in chosen),
            reason="unknown_shape",
        )
    if len(chosen) != len(sizes) or any(
        s not in {-1, c} for s, c in zip(sizes, chosen, strict=True)
    ):
        raise UsageError(
            f"--shape {name} does not fit the model",
            why=f"it takes {sizes} (-1: any), chosen is {chosen}",
            reason="bad_shape",
        )
    return chosen


# -- TorchScript


def _script(args: Mapping[str, Any]) -> Model:
    path = Path(args["source"])
    if not args.get("trust"):
        safety.check_script(path)
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise safety.corrupt(path, error) from error
    names = [argument.name for argument in module.forward.schema.arguments][1:]
    shapes = args["shapes"]
    if shapes.keys() - set(names):
        raise _unknown_input(shapes.keys() - set(names), names)
    for name in names:
        if name not in shapes:
            raise _no_shape(name, "TorchScript does not keep the shapes of its inputs")

    def call(tensors: Tensors) -> Tensors:
        return name_outputs(module(*(tensors[name] for name in names)))

    return Model(module, _script_examples(call, {n: shapes[n] for n in names}), call)


def _script_examples(
    call: Callable[[Tensors], Tensors], shapes: Mapping[str, list[int]]
) -> Tensors:
    """Return zeros that the model takes: TorchScript does not say whether it reads tokens."""
    floats, whole = (
        {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
        for dtype in (torch.float32, torch.int64)
    )
    first: RuntimeError | None = None
    for examples in (floats, whole):
        try:
            with torch.no_grad():
                call(examples)
        except RuntimeError as error:
            first = first or error
        else:
            return examples
    lines = str(first).strip().splitlines()
    why = lines[-1][:300] if lines else ""
    raise UsageError("the model does not take these shapes", why=why, reason="bad_shape") from first


# -- outputs


def name_outputs(value: Any) -> Tensors:
    """Return the tensors in VALUE, whatever a model returned, by public output name.

    Raises:
        UnsupportedError: there is something else than tensors in it.
    """
    found: Tensors = {}
    paths = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(value)[0]]
    tensors = [(path, leaf) for path, leaf in paths if leaf is not None]
    for index, (path, leaf) in enumerate(tensors):
        name = _output_name(path, index)
        if not isinstance(leaf, torch.Tensor):
            raise UnsupportedError(
                f"output {name} is no tensor but {type(leaf).__name__}",
                fix="return tensors: one, a tuple, or a dictionary",
                reason="nested_outputs",
            )
        found[name if name not in found else f"output_{index}"] = leaf
    if not found:
        raise UnsupportedError("the model returns no tensor", reason="no_outputs")
    return found


def _output_name(path: tuple[Any, ...], index: int) -> str:
    parts = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    if all(part is None for part in parts):
        return f"output_{index}"
    sequence = (getattr(key, "idx", "") for key in path)
    return "_".join(str(i if p is None else p) for p, i in zip(parts, sequence, strict=True))


def tensors_of(tensors: Tensors) -> list[dict[str, Any]]:
    """Return name, key, shape and dtype of each of TENSORS, as an opening step says them.

    Raises:
        UnsupportedError: a type that no runtime takes, or a shape that depends on the data.
    """
    return [_described(name, tensor) for name, tensor in tensors.items()]


def _described(name: str, tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in {"bfloat16", "complex64", "complex128"} or "float8" in dtype:
        raise UnsupportedError(
            f"tensor {name} is {dtype}",
            fix="convert the model to float32 before exporting: model.float()",
            reason="dtype",
        )
    if not all(isinstance(size, int) for size in tensor.shape):
        raise UnsupportedError(
            f"tensor {name} has a shape that depends on the data: {list(tensor.shape)}",
            fix="give the model outputs of fixed size",
            reason="dynamic_output",
        )
    return {"name": name, "key": name, "shape": list(tensor.shape), "dtype": dtype}
