"""Many samples through a session, one at a time. Judges nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.manifest import Manifest, TensorSpec
from edgepack_targets.interface import Session
from edgepack_targets.pipeline.npz import sample_shape

__all__ = ["cut_samples", "run_samples"]

Array = NDArray[Any]


def run_samples(
    session: Session, manifest: Manifest, samples: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the outputs of SESSION for SAMPLES, first axis = samples on both sides.

    Samples go in one by one, whatever batch the model would take: what a device sees.

    Args:
        session: A session on a bundle with MANIFEST.
        manifest: Says which inputs have a batch axis.
        samples: One array per public input, as `npz.read_npz` returns them.
    """
    results = [session.run(sample) for sample in cut_samples(manifest, samples)]
    return {
        spec.name: np.stack([_drop_batch(spec, result[spec.name]) for result in results])
        for spec in manifest.outputs
    }


def cut_samples(manifest: Manifest, samples: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield SAMPLES one at a time, each as the inputs of one call."""
    for index in range(len(samples[manifest.inputs[0].name])):
        yield {spec.name: _cut(spec, samples[spec.name], index) for spec in manifest.inputs}


def _cut(spec: TensorSpec, samples: Array, index: int) -> Array:
    batched = sample_shape(spec) != spec.shape
    return samples[index : index + 1] if batched else samples[index]


def _drop_batch(spec: TensorSpec, output: Array) -> Array:
    batched = sample_shape(spec) != spec.shape and output.shape[:1] == (1,)
    return output[0] if batched else output
