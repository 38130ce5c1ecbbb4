"""How sharp a picture is, from the tensor a model sees: a dirty or unfocused lens shows here first.

Host and device count the same number, so that it can be compared.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["sharpness"]

CHANNELS = {1, 3, 4}


def sharpness(picture: NDArray[Any]) -> float | None:
    """Return the mean absolute difference of neighbours in PICTURE, in its own unit.

    Args:
        picture: Rows and columns with channels last or first, with or without a batch.

    Returns:
        None if it does not look like a picture.
    """
    if picture.ndim < 3 or 0 in picture.shape:
        return None
    if picture.shape[-1] in CHANNELS:
        rows, columns = picture.ndim - 3, picture.ndim - 2
    elif picture.shape[-3] in CHANNELS:
        rows, columns = picture.ndim - 2, picture.ndim - 1
    else:
        return None
    if min(picture.shape[rows], picture.shape[columns]) < 2:
        return None
    values = picture.astype(np.float32)
    both = (np.abs(np.diff(values, axis=axis)).mean(dtype=np.float64) for axis in (rows, columns))
    return float(sum(both) / 2)
