"""Look into PyTorch files before PyTorch does: what could run code is refused, not opened.

`torch.export.load` falls back to plain pickle, evaluates the text of symbolic sizes and looks
operators up by any dotted name; TorchScript can write files while it loads. So archives are
read by PyTorch's own reader first (no second parser that could see something else), and
PyTorch is then told to unpickle nothing but tensors.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import PT2ArchiveReader

from edgepack.errors import UnsupportedError, UsageError

__all__ = ["check_program", "check_script", "corrupt", "load_weights", "unpickle_only_tensors"]

MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json"
    r"|data/(weights|constants)/model_\w+_config\.json|data/weights/weight_\d+"
    r"|data/constants/tensor_\d+|data/sample_inputs/model\.pt|extra/.*"
)
"""What an exported program of plain tensors consists of; objects and compiled code are not."""
OPERATORS = re.compile(
    r"torch\.ops\.[a-z]\w*\.\w+(\.\w+)?|torch\.sym_\w+|torch\._sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge"
    r"|and_|or_|not_|lshift|rshift)"
)
FILES = frozenset({"from_file", "save", "load_tensor", "load_library"})
"""Operators and functions beside them that read or write files."""
SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, \w+=(True|False))*\)|Float\('[\d.e+-]+'(, \w+=\d+)?\)")
SIZE_NAMES = re.compile(r"(zuf|zf|[suz])\d+|oo|int_oo|zoo|nan|True|False")
PICKLE = "Weights only load failed"
"""How PyTorch begins when it would have to unpickle more than tensors."""
CUSTOM = "custom operator: "
SIZE_CALLS = frozenset(
    {
        "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt",
        "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
        "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
        "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "Max", "Min", "Eq", "Ne", "Lt", "Le",
        "Gt", "Ge", "And", "Or", "Not", "Abs", "Pow", "Add", "Mul", "Integer", "Rational",
        "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
        "GreaterThan", "floor", "ceiling",
    }
)  # fmt: skip
TREE_CODE = ("__enum__", "default_factory_module")
"""In the description of nested inputs: names of modules to import."""
SCRIPT_CODE = re.compile(
    r"\b(from_file|save)\b|\btorch[\s\\]*\.[\s\\]*(classes)\b"
    r"|(?<![\w.])(ops\b(?!\.(?:aten|prim)\.)[\w.]*)",
    re.ASCII,
)
"""Words, not calls: blanks, comments and other names for a function stand between no two of them.
Only `ops` is looked at with what follows, because PyTorch writes `ops.aten.` in one piece."""


def unpickle_only_tensors() -> None:
    """Make every `torch.load` of this process refuse anything but tensors and plain containers."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def check_program(path: Path) -> None:
    """Refuse the exported program at PATH if opening it could run code.

    Raises:
        UsageError: it is broken, or written by another version of PyTorch.
        UnsupportedError: pickles, compiled code, foreign names where code is looked up by name.
    """
    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
        if "models/model.json" not in names:
            raise _other_format(path)
        found = set(_strange_members(names))
        for name in names:
            if name.endswith("_config.json"):
                found |= set(_pickles(json.loads(reader.read_bytes(name))))
        graph = json.loads(reader.read_bytes("models/model.json"))
        found |= set(_strange_names(graph))
        missing = sorted(set(_missing(graph["graph_module"])))
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(path, error) from error
    if found:
        raise unsafe(path, "; ".join(sorted(found)))
    if any(text.startswith(CUSTOM) for text in missing):
        raise UnsupportedError(
            "the model does what cannot be converted",
            why="; ".join(missing),
            fix="export it without operators of its own, in evaluation mode and without state",
            reason="unsupported_model",
        )


def _missing(module: Any) -> Iterator[str]:
    """Yield operators that PyTorch does not have here, and the state that the graph changes.

    With the first, PyTorch cannot even read the graph; so the second is told from its text.
    """
    specs = [spec["buffer"] for spec in module["signature"]["input_specs"] if "buffer" in spec]
    state = {buffer["arg"]["name"]: buffer["buffer_name"] for buffer in specs}
    for node in _walk(module["graph"]):
        target = node.get("target")
        if not isinstance(target, str) or not target.startswith("torch.ops."):
            continue
        space, name = target.split(".")[2:4]
        if space != "higher_order" and not hasattr(getattr(torch.ops, space), name):
            yield f"{CUSTOM}{space}::{name}"
        first = (node["inputs"] or [{"arg": {}}])[0]["arg"].get("as_tensor", {}).get("name")
        if name.endswith("_") and first in state:
            yield f"state: {state[first]} changes"


def _strange_members(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not MEMBERS.fullmatch(name):
            yield f"member {name}"


def _pickles(config: Any) -> Iterator[str]:
    for name, payload in config["config"].items():
        if payload.get("use_pickle") and not payload["path_name"].startswith("weight_"):
            yield f"pickled object {name}"


def _strange_names(value: Any) -> Iterator[str]:
    """Yield every name in the graph that PyTorch would look up or evaluate, and should not."""
    for node in _walk(value):
        target, size, spec = (node.get(key) for key in ("target", "expr_str", "in_spec"))
        if isinstance(target, str) and "inputs" in node and not _known_operator(target):
            yield f"operator {target[:80]}"
        if isinstance(size, str) and not _plain_size(size):
            yield f"size {size[:80]}"
        specs = [spec, node.get("out_spec")]
        if any(code in text for text in specs if isinstance(text, str) for code in TREE_CODE):
            yield "a container with a type of its own"


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one


def _known_operator(target: str) -> bool:
    return bool(OPERATORS.fullmatch(target)) and not FILES & set(target.split("."))


def _plain_size(text: str) -> bool:
    """Return whether TEXT is arithmetic on sizes: it will be evaluated as Python."""
    text = SYMBOL.sub("1", text)
    if not re.fullmatch(r"[\w\s,()+*/%<>~&|.-]*", re.sub(r"[<>=!]=", "<", text)):
        return False
    if re.search(r"__|\.\s*[A-Za-z_]", text):
        return False
    calls = set(re.findall(r"([A-Za-z_]\w*)\s*\(", text))
    others = set(re.findall(r"[A-Za-z_]\w*(?!\w)(?!\s*\()", text))
    return calls <= SIZE_CALLS and all(SIZE_NAMES.fullmatch(name) for name in others - calls)


def check_script(path: Path) -> None:
    """Refuse the TorchScript archive at PATH if loading it could touch files or foreign code.

    Raises:
        UsageError: it is broken, or a pickle instead of TorchScript.
        UnsupportedError: it saves, reads files, or needs classes or operators of its own.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001  there is no public reader
        names = reader.get_all_records()
        if "constants.pkl" not in names:
            raise pickled(path)
        code = [
            reader.get_record(name).decode(errors="replace")
            for name in names
            if name.endswith(".py")
        ]
    except RuntimeError as error:
        raise corrupt(path, error) from error
    found = {next(filter(None, m)) for text in code for m in SCRIPT_CODE.findall(text)}
    if found:
        raise unsafe(path, ", ".join(sorted(found)))


def load_weights(path: Path, *, trust: bool) -> dict[str, Any]:
    """Return the tensors in PATH by name: safetensors, or a pickle of nothing but tensors.

    Raises:
        UsageError: it is broken, or holds no tensors.
        UnsupportedError: it holds objects and TRUST is false.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not trust or PICKLE not in str(error):
            raise corrupt(path, error) from error
        found = _unpickled(path)
    return _state(path, found)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise corrupt(path, error) from error


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise corrupt(path, error) from error


def _state(path: Path, found: Any) -> dict[str, Any]:
    if isinstance(found, torch.nn.Module):
        return dict(found.state_dict())
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        # A checkpoint of a trainer, for example Lightning.
        found = found["state_dict"]
    if isinstance(found, dict) and all(isinstance(t, torch.Tensor) for t in found.values()):
        return dict(found)
    raise UsageError(
        f"{path.name} holds no tensors by name",
        fix="save them: torch.save(model.state_dict(), FILE)",
        reason="bad_weights",
    )


def corrupt(path: Path, error: Exception) -> UsageError | UnsupportedError:
    """Return the error for a file that PyTorch cannot read, or does not without trust."""
    if PICKLE in str(error):
        return unsafe(path, "it pickles objects, not only tensors")
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return UsageError(f"{path.name} cannot be opened", why=why, reason="corrupt_model")


def pickled(path: Path) -> UsageError:
    """Return the error for weights or a module where a model was expected."""
    return UsageError(
        f"{path.name} is a pickle of weights or objects, not a model",
        why="it does not say what is computed",
        fix="build from the code: module.py:factory --weights "
        f"{path.name} --trust-source, or save torch.export.export(...) as .pt2",
        reason="pickled_model",
    )


def unsafe(path: Path, why: str) -> UnsupportedError:
    """Return the error for a file that would run code."""
    return UnsupportedError(
        f"{path.name} holds code or objects, and those are not opened",
        why=why[:400],
        fix="if you trust where it comes from: --trust-source",
        reason="unsafe_source",
    )


def _other_format(path: Path) -> UsageError:
    return UsageError(
        f"{path.name} is not an exported program as PyTorch 2.9 and later write it",
        fix="export it again: torch.export.save(torch.export.export(model.eval(), inputs), FILE)",
        reason="corrupt_model",
    )
