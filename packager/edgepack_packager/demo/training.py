"""The demo's model: a small digits CNN, trained by a worker of the `tf` toolchain. Builds nothing.

The images are scikit-learn's 8x8 digits, enlarged to 16x16, gray. Training, evaluation, exam
and held-out digits are disjoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.datasets import write_npz
from edgepack_packager.adapters.worker import run_step

__all__ = ["train_digits"]

INPUT = "image"
SIDE = 16
TRAINING, CALIBRATION, EXAM, HELD_OUT = 1257, 200, 48, 60
CLASSES = 10
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Digits:
    """Digits: `images` uint8 (n, 16, 16), `labels` int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __getitem__(self, part: slice) -> "Digits":
        return Digits(self.images[part], self.labels[part])

    @property
    def inputs(self) -> NDArray[np.float32]:
        """The images as the model takes them: NHWC, 0..1."""
        return (self.images[..., None] / np.float32(255)).astype(np.float32)


def train_digits(
    out_dir: Path,
    wrong_share: float = 0.0,
    seed: int = 0,
    *,
    epochs: int = 12,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train a CNN of about 170,000 parameters and write it and its data to OUT_DIR.

    Writes `model.keras`, `calibration.npz`, `evaluate.npz`, `exam.npz` (48 samples) and
    `heldout/LABEL-NNNN.png`. The data is the same for every seed.

    Args:
        out_dir: Made if it is missing.
        wrong_share: Share of training labels that is moved to the next digit; 0.4 leaves an
            accuracy of about 60 %.
        seed: Of weights, order and the choice of wrong labels.
        epochs: Passes over the training data.
        say: Called with a line of progress.

    Returns:
        The path of the model.

    Raises:
        EdgepackError: the toolchain cannot be installed, or training failed.
    """
    # The worker has a working directory of its own.
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    digits = _digits()
    _write_data(out_dir, digits)
    train_set = digits[:TRAINING]
    labels = _spoil(train_set.labels, wrong_share, seed)
    data = write_npz(out_dir / "training.npz", {"images": train_set.inputs, "labels": labels})
    where, _ = toolchains.install(toolchains.find_toolchain("tf"), say)
    args: dict[str, Any] = {"data": str(data), "seed": seed, "epochs": epochs}
    run_step(where, "digits.train", args, out_dir, timeout_s=TIMEOUT_S, say=say)
    data.unlink()
    return out_dir / "model.keras"


def _digits() -> Digits:
    from sklearn.datasets import load_digits

    source = load_digits()
    small = (source.images * 255 / 16).round().astype(np.uint8)
    images = np.stack([_enlarge(image) for image in small])
    order = np.random.default_rng(7).permutation(len(images))
    return Digits(images[order], source.target[order].astype(np.int64))


def _enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), bilinear))


def _spoil(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    wrong = np.random.default_rng(seed).permutation(len(labels))[: round(share * len(labels))]
    spoiled = labels.copy()
    spoiled[wrong] = (spoiled[wrong] + 1) % CLASSES
    return spoiled


def _write_data(out_dir: Path, digits: Digits) -> None:
    test = digits[TRAINING:]
    exam, shown, evaluation = test[:EXAM], test[EXAM : EXAM + HELD_OUT], test[EXAM + HELD_OUT :]
    write_npz(out_dir / "calibration.npz", {INPUT: digits[:CALIBRATION].inputs})
    for name, part in (("exam", exam), ("evaluate", evaluation)):
        write_npz(out_dir / f"{name}.npz", {INPUT: part.inputs, "labels": part.labels})
    folder = out_dir / "heldout"
    folder.mkdir(exist_ok=True)
    for index, (image, label) in enumerate(zip(shown.images, shown.labels, strict=True)):
        Image.fromarray(image).save(folder / f"{label}-{index:04d}.png")
