"""TFLite on a host: checks and copies a model, and compares the layers of two."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_targets.interface import Layer
from edgepack_targets.layers import Losses
from edgepack_targets.samples import Samples
from edgepack_targets.shapes import static_shapes
from edgepack_targets.tflite_graph import operators
from edgepack_targets.tflite_session import (
    describe,
    natives,
    open_model,
    scale_of,
    tensors,
)

__all__ = ["convert", "diagnose"]

FILE = "model.tflite"


def convert(
    source: Path,
    source_format: str,
    out_dir: Path,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Write SOURCE to OUT_DIR/model.tflite; see `interface.Target`."""
    if source_format != "tflite":
        raise UnsupportedError(
            f"target `tflite` takes no {source_format}",
            why="TensorFlow models become TFLite in the `tf` toolchain first",
            reason="no_route",
        )
    try:
        inputs, _ = natives(open_model(source, 1))
    except IntegrityError as error:
        raise UsageError(
            f"{source} is not a TFLite model that can run here", why=error.why, reason="bad_model"
        ) from error
    # A TFLite file has its shapes already; what was asked for is checked against them.
    static_shapes({native.name: native.shape for native in inputs}, shapes or {})
    shutil.copyfile(source, out_dir / FILE)


def diagnose(
    fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
) -> list[Layer]:
    """Compare the outputs of operators by name; see `interface.Target`."""
    chosen = Samples(describe(fp32_dir)[0], samples, len(next(iter(samples.values()), ())), 0)
    kinds = operators(fp32_dir / FILE)
    fp32, quantized = _Probe(fp32_dir / FILE), _Probe(quantized_dir / FILE)
    shared = [name for name in kinds if name in fp32.names and name in quantized.names]
    losses = Losses()
    for sample in chosen:
        fp32.run(sample)
        quantized.run(sample)
        for name in shared:
            losses.add(name, fp32.output(name), quantized.output(name))
    return losses.worst_first(kinds)


class _Probe:
    """An interpreter that keeps every tensor readable."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            # It warns of the memory that this takes.
            warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve")
            self._interpreter: Interpreter = open_model(path, 1, keep_all=True)
        self._inputs, _ = tensors(self._interpreter)
        details = self._interpreter.get_tensor_details()
        self.names = {detail["name"]: detail for detail in details}

    def run(self, sample: Mapping[str, NDArray[Any]]) -> None:
        for name, array in sample.items():
            detail = self._inputs[name]
            scale = scale_of(detail)
            given = scale.quantized(array) if scale and array.dtype != scale.dtype else array
            self._interpreter.set_tensor(detail["index"], given)
        self._interpreter.invoke()

    def output(self, name: str) -> NDArray[Any]:
        detail = self.names[name]
        array: NDArray[Any] = self._interpreter.get_tensor(detail["index"])
        scale = scale_of(detail)
        return scale.floats(array) if scale else array
