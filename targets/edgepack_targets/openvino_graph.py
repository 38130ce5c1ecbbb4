"""What is in an OpenVINO model: its layers by the source's names, how weights are stored.

A layer is what the source called one: the operator that gives a tensor with a name, and the
unnamed ones before it that a conversion made of it (a Gemm becomes MatMul and Add). It is named
after its tensor, because tensors keep the source's names in every format.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgepack_targets.interface import Applied
from edgepack_targets.silence import no_telemetry
from edgepack_targets.weights import Stored, int4_values, tally

with no_telemetry():
    import openvino as ov

__all__ = ["WITH_WEIGHTS", "Found", "applied", "layers", "rename"]

PLUMBING = {"Parameter", "Result", "Constant", "FakeQuantize", "Convert", "ReadValue", "Assign"}
# What NNCF leaves between stored int8 weights and the operator that uses them.
DEQUANTIZE = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose"}
STORED: dict[ov.Type, Literal["float", "float16", "int8", "int4"]] = {
    ov.Type.f32: "float", ov.Type.f64: "float", ov.Type.f16: "float16", ov.Type.bf16: "float16",
    ov.Type.i8: "int8", ov.Type.u8: "int8", ov.Type.i4: "int4", ov.Type.u4: "int4",
}  # fmt: skip
INTEGER = ("int8", "int4")
WITH_WEIGHTS = (
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
    "MatMul",
)  # fmt: skip


class Found:
    """One layer of a model: its operators, of which the last gives the output."""

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes

    @property
    def kind(self) -> str:
        """The operator with weights if there is one, else the last."""
        kinds = [node.get_type_name() for node in self.nodes]
        return str(next((kind for kind in kinds if kind in WITH_WEIGHTS), kinds[-1]))

    @property
    def output(self) -> Any:
        """The port that gives what the source's layer gave."""
        return self.nodes[-1].output(0)


def layers(model: ov.Model) -> dict[str, Found]:
    """Return the layers of MODEL that compute something, by name, in order."""
    found: dict[str, list[Any]] = {}
    for node, owner in _owners(model):
        if not _is_plumbing(node):
            found.setdefault(owner, []).append(node)
    return {name: Found(nodes) for name, nodes in found.items() if _tensor_name(nodes[-1]) == name}


def rename(model: ov.Model) -> None:
    """Name operators after their layer.

    OpenVINO numbers unnamed ones with a counter of the process, so the same conversion would
    give another file the second time. Tensor names, which the binding uses, stay.
    """
    taken: dict[str, int] = {}
    for node, owner in _owners(model):
        plain = owner if _tensor_name(node) == owner else f"{owner}/{node.get_type_name()}"
        count = taken[plain] = taken.get(plain, 0) + 1
        node.set_friendly_name(plain if count == 1 else f"{plain}_{count}")


def applied(path: Path) -> Applied:
    """Return what is really in the model in PATH; see `interface.Target`."""
    model = ov.Core().read_model(path)
    nodes = model.get_ordered_ops()
    workers = [node for node in nodes if not _is_plumbing(node)]
    weights = [n for n in nodes if _is_weight(n)]
    return Applied(
        operators=len(workers),
        quantized_operators=sum(any(map(_gives_int8, _sources(n))) for n in workers),
        **tally(_stored(n) for n in weights),
    )


def _owners(model: ov.Model) -> list[tuple[Any, str]]:
    """Return every operator in order, with the layer it belongs to.

    That is its own tensor's name, else the layer of the first operator that reads it.
    """
    owners: dict[str, str] = {}
    ordered = model.get_ordered_ops()
    for node in reversed(ordered):
        name = _tensor_name(node)
        if not name:
            read_by = (owners[reader.get_name()] for reader in _readers(node))
            name = min(read_by, default=node.get_type_name())
        owners[node.get_name()] = name
    return [(node, owners[node.get_name()]) for node in ordered]


def _tensor_name(node: Any) -> str:
    """Return the name of what NODE gives; results and constants give nothing of their own."""
    if node.get_type_name() in {"Result", "Constant"} or not node.get_output_size():
        return ""
    # A tensor may have several names in no fixed order; the first by alphabet is ours.
    return str(min(node.output(0).get_names(), default=""))


def _is_plumbing(node: Any) -> bool:
    """Say whether NODE only moves or scales: no work that is or is not quantised."""
    kind = node.get_type_name()
    return kind in PLUMBING or (kind in DEQUANTIZE and _from_constant(node))


def _readers(node: Any) -> list[Any]:
    return [i.get_node() for port in node.outputs() for i in port.get_target_inputs()]


def _dequantizes(node: Any) -> bool:
    """Say whether NODE scales or shifts stored integers: its floats are no weights."""
    return node.get_type_name() in {"Multiply", "Subtract"} and _from_constant(node)


def _sources(node: Any) -> list[Any]:
    return [value.get_source_output().get_node() for value in node.inputs()]


def _from_constant(node: Any) -> bool:
    """Say whether everything that NODE reads is constant."""
    return all(
        source.get_type_name() == "Constant"
        or (source.get_type_name() in DEQUANTIZE and _from_constant(source))
        for source in _sources(node)
    )


def _gives_int8(node: Any) -> bool:
    """Say whether what NODE gives is quantised: activations, or weights stored as int8."""
    kind = node.get_type_name()
    if kind in DEQUANTIZE and _from_constant(node):
        return any(map(_gives_int8, _sources(node)))
    stored = kind == "Constant" and STORED.get(node.get_element_type()) in INTEGER
    return bool(stored) or kind == "FakeQuantize"


def _is_weight(node: Any) -> bool:
    """Say whether NODE is a stored weight: at least two axes that are not 1 wide."""
    if node.get_type_name() != "Constant" or node.get_element_type() not in STORED:
        return False
    if node.get_element_type().is_real() and any(map(_dequantizes, _readers(node))):
        return False
    return bool(sum(size > 1 for size in node.get_output_shape(0)) > 1)


def _stored(node: Any) -> Stored:
    """Return how the constant NODE is stored; the integers of symmetric weights have 0 at 0."""
    kind, count = STORED[node.get_element_type()], math.prod(node.get_output_shape(0))
    values = int4_values(node.data.view(np.uint8), count) if kind == "int4" else node.data
    return Stored(kind, count, count - int(np.count_nonzero(values)))
