"""Which operators of a model onnxruntime does not have: all of them at once.

onnxruntime itself stops at the first one. A custom operator has no schema there; others have
one, but no implementation for a CPU.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import onnx

from edgepack.errors import UnsupportedError
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import onnxruntime.capi.onnxruntime_pybind11_state as runtime

__all__ = ["refuse_unknown", "unknown_operators"]

OWN = {"": "ai.onnx", "ai.onnx": "ai.onnx"}
OLDEST = 7
"""Older operators are upgraded to this opset before they are run."""


def refuse_unknown(model: onnx.ModelProto) -> None:
    """Check that onnxruntime has every operator of MODEL.

    Raises:
        UnsupportedError: it has not; the message names all that are missing.
    """
    missing = unknown_operators(model)
    if missing:
        raise UnsupportedError(
            f"onnxruntime does not have {len(missing)} of the model's operators",
            why=f"missing: {', '.join(missing)}",
            fix="replace them by standard ones, or export the model without custom operators",
            reason="unsupported_operator",
        )


def unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Return, sorted, `domain:Operator` of all that onnxruntime's CPU provider does not have."""
    opsets = {_plain(o.domain): o.version for o in model.opset_import}
    own = {(_plain(f.domain), f.name) for f in model.functions}
    nodes = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    kinds = {(_plain(node.domain), node.op_type) for node in _every(nodes)} - own
    return sorted(
        f"{OWN.get(domain, domain)}:{kind}"
        for domain, kind in kinds
        if not _runs(domain, kind, opsets.get(domain, 1))
    )


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _every(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield NODES and those in their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _every(body.node)


def _runs(domain: str, kind: str, opset: int) -> bool:
    versions = _schemas().get((domain, kind), ())
    opset = max(opset, OLDEST) if not domain else opset
    since = max((version for version in versions if version <= opset), default=0)
    if domain or kind == "Constant" or not since:
        return bool(since)
    kernels = _kernels().get((domain, kind), ())
    return any(first <= since <= last for first, last in kernels) or _is_function(kind, opset)


def _is_function(kind: str, opset: int) -> bool:
    """Say whether ONNX defines KIND by other operators, so that nobody has to implement it."""
    schema = onnx.defs.get_schema(kind, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)


@cache
def _schemas() -> dict[tuple[str, str], set[int]]:
    found: dict[tuple[str, str], set[int]] = {}
    for schema in runtime.get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    return found


@cache
def _kernels() -> dict[tuple[str, str], set[tuple[int, int]]]:
    found: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for kernel in runtime.get_all_opkernel_def():
        versions = kernel.version_range
        found.setdefault((kernel.domain, kernel.op_name), set()).add((versions[0], versions[1]))
    return found
