"""Train the small digits CNN that shows the whole story: a step of the `tf` toolchain.

The data comes from the host as an npz (`images` float32 (n, 16, 16, 1) in 0..1, `labels`), so
that the toolchain needs no data library. Converts nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["train"]

EPOCHS = 12
HIDDEN = 320


def train(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train on `args["data"]` with `args["seed"]` and save OUT/model.keras."""
    import keras

    keras.utils.set_random_seed(args["seed"])
    with np.load(args["data"], allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    model = _network(keras)
    say("training")
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=args.get("epochs", EPOCHS), batch_size=64, verbose=0)
    model.save(out / "model.keras")
    return {"parameters": model.count_params()}


def _network(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((16, 16, 1), name="image")
    maps = image
    for index, filters in enumerate((16, 32)):
        maps = layers.Conv2D(filters, 3, padding="same", name=f"conv{index}")(maps)
        # A short run needs a short memory: with 0.99 the moving variance would stay stale.
        maps = layers.BatchNormalization(momentum=0.9, name=f"norm{index}")(maps)
        maps = layers.ReLU(name=f"relu{index}")(maps)
        maps = layers.MaxPooling2D(name=f"pool{index}")(maps)
    flat = layers.Flatten(name="flat")(maps)
    hidden = layers.Dense(HIDDEN, activation="relu", name="hidden")(flat)
    scores = layers.Dense(10, activation="softmax", name="scores")(hidden)
    return keras.Model(image, scores, name="digits")
