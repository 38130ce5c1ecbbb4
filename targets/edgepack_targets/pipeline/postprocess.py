"""From output tensors to an answer, by the manifest alone. Runs no model, draws nothing."""

import numpy as np

from edgepack.decoders import Detector, Embed, Mask, Softmax
from edgepack.manifest import Manifest
from edgepack_targets.pipeline.answer import (
    Answer,
    Classification,
    Embedding,
    Guess,
    Raw,
    label_of,
)
from edgepack_targets.pipeline.canvas import canvas_of
from edgepack_targets.pipeline.detect import detect
from edgepack_targets.pipeline.geometry import Placement, place
from edgepack_targets.pipeline.outputs import Outputs, activated, bad_output, finite, named
from edgepack_targets.pipeline.segment import segment

__all__ = ["classify", "decode"]

Size = tuple[int, int]


def decode(manifest: Manifest, outputs: Outputs, size: Size | None = None) -> Answer:
    """Return what OUTPUTS, of one picture or sample, say.

    Args:
        manifest: Says how the outputs are read, and how the picture became the input.
        outputs: By public name, as a session returns them.
        size: Width and height of the picture as it was before any resizing; None: boxes and
            class maps stay in the model's input.

    Raises:
        UsageError: an output is missing, has another shape, or holds NaN or infinity
            (`bad_output`).
        UnsupportedError: boxes are to be decoded and the manifest has no image input.
    """
    rule = manifest.postprocess
    if isinstance(rule, Softmax):
        return classify(manifest, rule, outputs)
    if isinstance(rule, Detector):
        return detect(manifest, rule, outputs, _placed(manifest, size))
    if isinstance(rule, Mask):
        placed = _placed(manifest, size) if size else None
        return segment(manifest, rule, outputs, placed)
    if isinstance(rule, Embed):
        return _embed(rule, outputs)
    return Raw(dict(outputs))


def classify(manifest: Manifest, rule: Softmax, outputs: Outputs) -> Classification:
    """Return the best classes of the first sample in OUTPUTS, best first, `top_k` at most.

    Raises:
        UsageError: the output is missing or holds no scores.
    """
    array = named(outputs, rule.output)
    row = finite(rule.output, array[0].ravel() if array.ndim > 1 and len(array) else array.ravel())
    if not row.size:
        raise bad_output(f"output `{rule.output}` cannot be decoded", "it holds no scores")
    # By the raw output: a softmax rounds values that lie close together to one score.
    best = np.argsort(-row.astype(np.float64), kind="stable")[: rule.top_k]
    scores = activated(row, rule.activation)
    return Classification(
        tuple(Guess(int(i), label_of(manifest.labels, int(i)), float(scores[i])) for i in best)
    )


def _embed(rule: Embed, outputs: Outputs) -> Embedding:
    vector = finite(rule.output, named(outputs, rule.output)).ravel().astype(np.float64)
    if not vector.size:
        raise bad_output(f"output `{rule.output}` cannot be decoded", "it is empty")
    # Scaled first: the squares of very large or very small numbers are no numbers any more.
    largest = np.abs(vector).max()
    scaled = vector / largest if largest > 0 else vector
    length = np.linalg.norm(scaled)
    return Embedding((scaled / length if length > 0 else scaled).astype(np.float32))


def _placed(manifest: Manifest, size: Size | None) -> Placement:
    """Return where a picture of SIZE lies in the model's input; None: it is the input itself.

    Raises:
        UnsupportedError: the input has no fixed image size.
        UsageError: the picture is too long and thin to be cut.
    """
    rule = manifest.preprocess
    if rule is None and size is not None:
        return Placement(size, size, size, (0, 0))
    canvas = canvas_of(manifest)
    whole = (canvas.width, canvas.height)
    if rule is None or size is None:
        return Placement(whole, whole, whole, (0, 0))
    return place(rule.resize, size, whole)
