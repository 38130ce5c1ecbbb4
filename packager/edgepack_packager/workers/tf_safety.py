"""Look into a SavedModel before TensorFlow runs it: operators that reach outside are refused.

A graph is a program. Most operators only compute; a few call the caller's Python, and some read
or write whatever file they name. The saver's own are needed, but only by the saver. Runs nothing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepack.errors import UnsupportedError, UsageError

__all__ = ["check_saved_model", "unsafe"]

FOREIGN = re.compile(
    r"\w*PyFunc\w*|LoadLibrary|ReadFile|WriteFile|MatchingFiles|ImmutableConst|\w*Reader\w*"
    r"|\w*Dataset\w*|\w*Iterator\w*|\w*Summary\w*Writer|Write\w*Summary|ImportEvent|Debug\w+"
    r"|(De|En)codeProto\w*|LoadAndRemapMatrix|GenerateVocabRemapping|FileSystem\w*|\w*Rpc\w*"
    r"|DistributedSave|RaiseException"
)
"""Run the caller's code, or read and write files wherever they like."""
WRITES = frozenset({"Save", "SaveSlices", "SaveV2", "MergeV2Checkpoints"})
SAVER = WRITES | {"Restore", "RestoreSlice", "RestoreV2"}
"""What a saver is made of: for TensorFlow, not for the model."""
TABLES = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"})
"""Read a file, which has to be one of the model's assets."""


def check_saved_model(path: Path, *, trust: bool = False) -> None:
    """Refuse the SavedModel in PATH if it is broken, or could run code or reach other files.

    With TRUST it may do the latter.

    Raises:
        UsageError: it is broken.
        UnsupportedError: it could; the operators are named.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString((path / "saved_model.pb").read_bytes())
    except (DecodeError, OSError) as error:
        what = f"{path.name} is not a SavedModel"
        raise UsageError(what, why=str(error), reason="corrupt_model") from error
    found = {name for meta in model.meta_graphs for name in _foreign(meta)}
    if found and not trust:
        raise unsafe(path, f"it reaches outside: {', '.join(sorted(found))}")


def unsafe(path: Path, why: str) -> UnsupportedError:
    """Return the error for a file that would run code."""
    return UnsupportedError(
        f"{path.name} holds code, and code from a model file is not run",
        why=why,
        fix="replace the layer by a built-in one; or if you trust the file: --trust-source",
        reason="unsafe_layer",
    )


def _foreign(meta: Any) -> Iterator[str]:
    """Yield the operators in one graph and its functions that reach outside."""
    graph = meta.graph_def
    functions = list(graph.library.function)
    for node in (*graph.node, *(node for one in functions for node in one.node_def)):
        if FOREIGN.fullmatch(node.op) or _prints_to_file(node):
            yield node.op
    savers = {f.signature.name for f in functions if any(n.op in SAVER for n in f.node_def)}
    writers = {f.signature.name for f in functions if any(n.op in WRITES for n in f.node_def)}
    called = {name for f in functions for node in f.node_def for name in _calls(node)}
    if savers & (called | set(meta.object_graph_def.concrete_functions)):
        yield "saving or restoring outside of the saver"
    for node in _run_at_top(meta):
        if node.op in WRITES or writers & set(_calls(node)):
            yield node.op
    yield from _strange_tables(meta)
    for asset in meta.asset_file_def:
        place = Path(asset.filename)
        if place.is_absolute() or ".." in place.parts:
            yield f"asset {asset.filename}"


def _prints_to_file(node: Any) -> bool:
    return node.op == "PrintV2" and bool(node.attr["output_stream"].s.startswith(b"file:"))


def _calls(node: Any) -> Iterator[str]:
    """Yield the functions that NODE may call."""
    for value in node.attr.values():
        yield from (one.name for one in (value.func, *value.list.func) if one.name)


def _run_at_top(meta: Any) -> Iterator[Any]:
    """Yield the nodes outside of functions that loading or a signature of a TF 1 model runs."""
    nodes = {node.name: node for node in meta.graph_def.node}
    waiting = [out.name for one in meta.signature_def.values() for out in one.outputs.values()]
    waiting += [name for one in meta.collection_def.values() for name in one.node_list.value]
    waiting.append(meta.saver_def.restore_op_name)
    seen: set[str] = set()
    while waiting:
        name = _node_name(waiting.pop())
        if name in nodes and name not in seen:
            seen.add(name)
            waiting += nodes[name].input
            yield nodes[name]


def _strange_tables(meta: Any) -> Iterator[str]:
    """Yield what reads a table from a file that is not handed to it as an asset."""
    assets = {_node_name(one.tensor_info.name) for one in meta.asset_file_def}
    bodies = [(assets, meta.graph_def.node)]
    bodies += [
        ({argument.name for argument in one.signature.input_arg}, one.node_def)
        for one in meta.graph_def.library.function
    ]
    for known, nodes in bodies:
        for node in nodes:
            if node.op in TABLES and _node_name(node.input[1]) not in known:
                yield node.op


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]
