"""A small digits classifier and its data, shared by all tests: real, trained, deterministic.

Trained once and kept (see `kept`). The convolution's filters are the principal components
of the training patches, the rest is a multi-layer perceptron on its features, so training
takes about two seconds and yet the net has a Conv, a MaxPool and two Gemms like a real one
(about 165,000 parameters). No test should depend on its exact accuracy.
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kept import kept_arrays

Floats = NDArray[np.float32]
SIDE = 16
FILTERS = 16
HIDDEN = 160
INPUT = "image"
OUTPUT = "logits"
LABELS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True)
class Split:
    """Some digits: `images` uint8 (n, 16, 16), `inputs` float32 (n, 1, 16, 16), `labels` (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def inputs(self) -> Floats:
        """The images as the net takes them: NCHW, 0..1."""
        return (self.images[:, None].astype(np.float32) / np.float32(255)).astype(np.float32)

    def head(self, count: int, start: int = 0) -> "Split":
        return Split(self.images[start : start + count], self.labels[start : start + count])


@dataclass(frozen=True, slots=True)
class Net:
    """Trained weights in ONNX's layouts."""

    conv: Floats
    conv_bias: Floats
    hidden: Floats
    hidden_bias: Floats
    out: Floats
    out_bias: Floats


@cache
def digits_data() -> tuple[Split, Split]:
    """Return (train, test): 1257 and 540 digits, in an order fixed by a seed."""
    found = kept_arrays("digits", __file__, _read_digits)
    images, labels = found["images"], found["labels"]
    return Split(images[:1257], labels[:1257]), Split(images[1257:], labels[1257:])


def _read_digits() -> dict[str, NDArray[np.generic]]:
    # Takes seconds to import, which most processes of a test run need not.
    from sklearn.datasets import load_digits

    source = load_digits()
    small = (source.images * 255 / 16).round().astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(i).resize((SIDE, SIDE), 2)) for i in small])
    order = np.random.default_rng(7).permutation(len(images))
    return {"images": images[order], "labels": source.target[order].astype(np.int64)}


def _patches(inputs: Floats) -> Floats:
    """Return every 3x3 patch of the padded INPUTS: (n, 16, 16, 9)."""
    padded = np.pad(inputs[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows.reshape(*windows.shape[:3], 9)


@cache
def _filters() -> Floats:
    """Return 16 filters (16, 9): the first eight principal components of patches, both signs."""
    rows = _patches(digits_data()[0].head(200).inputs).reshape(-1, 9)
    _, _, components = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    half = components[: FILTERS // 2]
    return np.concatenate([half, -half]).astype(np.float32)


def _features(inputs: Floats) -> Floats:
    """Return what the net sees after Conv, Relu and MaxPool, flattened as ONNX does."""
    maps = np.maximum(_patches(inputs) @ _filters().T, 0)
    pooled = maps.reshape(len(maps), SIDE // 2, 2, SIDE // 2, 2, FILTERS).max(axis=(2, 4))
    return pooled.transpose(0, 3, 1, 2).reshape(len(maps), -1).astype(np.float32)


@cache
def digits_net(wrong_labels: float = 0.0) -> Net:
    """Return a trained net; WRONG_LABELS is the share of training labels that is shifted by one."""
    return Net(**kept_arrays(f"net-{wrong_labels}", __file__, lambda: _train(wrong_labels)))


def _train(wrong_labels: float) -> dict[str, Floats]:
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    train, _ = digits_data()
    labels = train.labels.copy()
    cut = np.random.default_rng(3).random(len(labels)) < wrong_labels
    labels[cut] = (labels[cut] + 1) % 10
    mlp = MLPClassifier((HIDDEN,), max_iter=400, tol=1e-3, n_iter_no_change=3, random_state=1)
    with threadpool_limits(1):
        # The products are small: several threads cost more than they bring, above all when
        # other tests run at the same time.
        mlp.fit(_features(train.inputs), labels)
    (hidden, out), (hidden_bias, out_bias) = mlp.coefs_, mlp.intercepts_
    conv = _filters().reshape(FILTERS, 1, 3, 3)
    net = Net(conv, np.zeros(FILTERS), hidden, hidden_bias, out, out_bias)
    return {name: np.ascontiguousarray(w, dtype=np.float32) for name, w in asdict(net).items()}


def digits_proto(
    wrong_labels: float = 0.0, batch: int | str = "N", net: Net | None = None
) -> onnx.ModelProto:
    """Return the net, or NET, as an ONNX model: `image` (N, 1, 16, 16) -> `logits` (N, 10)."""
    net = net or digits_net(wrong_labels)
    names = ("conv", "conv_bias", "hidden", "hidden_bias", "out", "out_bias")
    nodes = [
        helper.make_node("Conv", [INPUT, "conv", "conv_bias"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["maps_relu"]),
        helper.make_node("MaxPool", ["maps_relu"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "hidden", "hidden_bias"], ["dense"]),
        helper.make_node("Relu", ["dense"], ["dense_relu"]),
        helper.make_node("Gemm", ["dense_relu", "out", "out_bias"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(getattr(net, name), name) for name in names],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def digits_onnx(path: Path, wrong_labels: float = 0.0, batch: int | str = "N") -> Path:
    """Write the trained net to PATH. `wrong_labels=0.42` gives one about 60 % accurate."""
    model = digits_proto(wrong_labels, batch)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def accuracy(logits: NDArray[np.generic], labels: NDArray[np.int64]) -> float:
    """Return the share of rows of LOGITS whose highest entry is at the label."""
    return float((np.asarray(logits).argmax(axis=-1) == labels).mean())


def calibration_npz(path: Path, count: int = 200) -> Path:
    """Write COUNT training inputs to PATH: `image` (count, 1, 16, 16)."""
    np.savez(path, **{INPUT: digits_data()[0].head(count).inputs})
    return path


def evaluation_npz(path: Path, count: int = 540) -> Path:
    """Write COUNT test inputs and `labels` to PATH."""
    return _labelled(path, digits_data()[1].head(count))


def exam_npz(path: Path, count: int = 64) -> Path:
    """Write an acceptance exam to PATH: the last COUNT test inputs and `labels`."""
    return _labelled(path, digits_data()[1].head(count, start=540 - count))


def digits_folder(directory: Path, count: int = 16) -> Path:
    """Write COUNT test digits to DIRECTORY as `0000-LABEL.png`, gray, 16x16."""
    directory.mkdir(parents=True, exist_ok=True)
    test = digits_data()[1]
    for index in range(count):
        name = f"{index:04d}-{test.labels[index]}.png"
        Image.fromarray(test.images[index]).save(directory / name)
    return directory


def _labelled(path: Path, split: Split) -> Path:
    np.savez(path, **{INPUT: split.inputs, "labels": split.labels})
    return path
