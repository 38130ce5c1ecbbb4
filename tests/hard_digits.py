"""The digits net with one layer rescaled: the same answers in fp32, hard to quantise.

What hidden unit j gives is multiplied by s[j] = 10^U(-1.8, 1.8), what reads it is divided by it.
A Relu lies between, so nothing changes in exact arithmetic; but one range for all 160 units now
spans 3.6 decades, and the small units vanish in it. It separates good quantisation from bad.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from digits import HIDDEN, Net, digits_net, digits_proto
from digits_tflite import digits_tflite

DECADES = 1.8
SEED = 5


@cache
def hard_net(seed: int = SEED) -> Net:
    """Return the trained net with rescaled hidden units."""
    plain = digits_net()
    scale = 10 ** np.random.default_rng(seed).uniform(-DECADES, DECADES, HIDDEN)
    return replace(
        plain,
        hidden=(plain.hidden * scale).astype(np.float32),
        hidden_bias=(plain.hidden_bias * scale).astype(np.float32),
        out=(plain.out / scale[:, None]).astype(np.float32),
    )


def hard_digits_onnx(path: Path, seed: int = SEED) -> Path:
    """Write the hard net to PATH as ONNX: `image` (N, 1, 16, 16) -> `logits` (N, 10)."""
    model = digits_proto(net=hard_net(seed))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def hard_digits_tflite(path: Path, seed: int = SEED) -> Path:
    """Write the hard net to PATH as TFLite: `image` (1, 16, 16, 1) -> `logits` (1, 10)."""
    return digits_tflite(path, net=hard_net(seed))
