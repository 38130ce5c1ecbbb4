"""Labels, the preparation of pictures, drift baselines, and variants side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from digits import INPUT, OUTPUT, digits_data
from digits_targets import manifest_for, source_answers
from edgepack import canonical
from edgepack.errors import UsageError
from edgepack_agent.runner import statistics
from edgepack_packager.core.binding import Public
from edgepack_packager.core.crosscheck import crossed, crossed_rows
from edgepack_packager.core.drift_baseline import (
    CONFIDENCE_EDGES,
    drift_baseline,
    histogram,
    merge,
)
from edgepack_packager.core.preflight import (
    altered_samples,
    check_folders,
    check_labels,
    preparation_warning,
)
from edgepack_packager.core.recipe import Variant
from packager_rig import OnnxDigits, edgepack

# -- labels


@pytest.mark.parametrize(
    ("labels", "reason", "hint"),
    [
        (np.array([0, 1, 10]), "labels_range", "0..9"),
        (np.array([0, -1, 3]), "labels_range", "-1"),
        (np.array([1, 5, 10]), "labels_range", "count from 1"),
        (np.array([0.0, 1.0, 2.0]), "labels_type", "float64"),
        (np.array(["0", "1", "2"]), "labels_type", "<U1"),
        (np.array([True, False, True]), "labels_type", "bool"),
        (np.eye(3, 10), "labels_shape", "one-hot"),
        (np.zeros((3, 4), int), "labels_shape", "(3, 4)"),
    ],
)
def test_labels_that_no_class_has_are_refused(labels: np.ndarray, reason: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_labels(labels, 3, 10)
    assert caught.value.reason == reason
    assert hint in caught.value.diagnostics()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64"])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_labels_of_any_whole_type_are_fine(dtype: str, shape: tuple[int, ...]) -> None:
    check_labels(np.array([0, 9, 4], dtype).reshape(shape), 3, 10)


# -- pictures: a source that looks at the colours and the range


def colours(pictures: np.ndarray) -> np.ndarray:
    """Answer 0 for red pictures of 0..1, 1 for blue ones; for other ranges always 0."""
    means = pictures.mean(axis=(1, 2)) if pictures.shape[-1] == 3 else pictures.mean(axis=(2, 3))
    dull = pictures.max(axis=(1, 2, 3), keepdims=False)
    seen = np.where(((dull > 0.2) & (dull < 2))[:, None], means[:, [0, 2]], [[1.0, 0.0]])
    return np.asarray(seen)


def painted(count: int, *, first: bool) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 2
    pictures = np.random.default_rng(0).random((count, 6, 5, 3)).astype(np.float32) * 0.3
    pictures[labels == 0, :, :, 0] += 0.6
    pictures[labels == 1, :, :, 2] += 0.6
    return (pictures.transpose(0, 3, 1, 2) if first else pictures), labels


def warning_for(samples: np.ndarray, labels: np.ndarray) -> str | None:
    public = Public("image", "image", (1, *samples.shape[1:]), str(samples.dtype))
    probes = altered_samples((public,), {"image": samples})
    asked = [(probe, colours(probe.inputs["image"])) for probe in probes]
    return preparation_warning(asked, colours(samples), labels)


@pytest.mark.parametrize("first", [True, False])
def test_well_prepared_pictures_pass(first: bool) -> None:
    assert warning_for(*painted(100, first=first)) is None


@pytest.mark.parametrize("first", [True, False])
def test_swapped_colours_are_told_with_numbers(first: bool) -> None:
    pictures, labels = painted(100, first=first)
    warning = str(warning_for(np.flip(pictures, 1 if first else 3), labels))
    assert "red and blue" in warning
    assert "1.000" in warning
    assert "0.000" in warning


@pytest.mark.parametrize(("factor", "told"), [(255, "values over 255"), (1 / 255, "times 255")])
def test_wrong_range_is_told_with_numbers(factor: float, told: str) -> None:
    pictures, labels = painted(100, first=False)
    warning = str(warning_for((pictures * factor).astype(np.float32), labels))
    assert told in warning
    assert "1.000" in warning


def test_a_few_lucky_samples_are_no_evidence() -> None:
    pictures, labels = painted(64, first=False)
    (probe, *_) = altered_samples((Public("i", "i", (1, 6, 5, 3), "float32"),), {"i": pictures})
    answers = np.eye(2)[labels]
    worse = answers.copy()
    worse[:8] = worse[:8, ::-1]
    assert preparation_warning([(probe, answers)], worse, labels) is None


def test_what_is_no_picture_is_left_alone() -> None:
    publics = (Public("x", "x", (1, 7), "float32"), Public("n", "n", (1, 8, 8, 16), "float32"))
    samples = {"x": np.ones((9, 7), np.float32), "n": np.ones((9, 8, 8, 16), np.float32)}
    assert altered_samples(publics, samples) == []


def test_bytes_are_only_swapped() -> None:
    public = Public("image", "image", (1, 4, 4, 3), "uint8")
    probes = altered_samples((public,), {"image": np.zeros((200, 4, 4, 3), np.uint8)})
    assert len(probes) == 1
    assert len(probes[0].rows) == 64


def colour_model(path: Path) -> Path:
    """Write a model of two classes: more red than blue, more blue than red."""
    weights = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 6, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_build_tells_of_swapped_colours(tmp_path: Path) -> None:
    pictures, labels = painted(80, first=True)
    # Every fourth picture is right as it is: a source that is only bad, not hopeless.
    mixed = np.where((np.arange(80) % 4 < 3)[:, None, None, None], pictures, pictures[:, ::-1])
    args = ("--target", "onnx", "--unsigned", "--no-cache", "--evaluate")
    for name, samples, told in (("good", pictures, False), ("bad", mixed[:, ::-1], True)):
        np.savez(tmp_path / f"{name}.npz", image=samples, labels=labels)
        model = colour_model(tmp_path / "colours.onnx")
        done = edgepack("build", model, *args, f"{name}.npz", "--out", name, cwd=tmp_path)
        assert ("red and blue swapped" in done.err) == told, done.err


@pytest.mark.parametrize(
    ("change", "hint"), [(lambda y: y + 1, "labels - 1"), (lambda y: y / 2, "float64")]
)
def test_build_refuses_labels_that_no_class_has(
    digits: OnnxDigits, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], hint: str
) -> None:
    with np.load(digits.evaluation) as data:
        np.savez(tmp_path / "odd.npz", image=data["image"], labels=change(data["labels"]))
    done = edgepack(
        "build", digits.model, "--target", "onnx", "--unsigned", "--evaluate", "odd.npz",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 2
    assert hint in done.err


# -- drift


def baseline(start: int, count: int) -> dict[str, Any]:
    samples = {INPUT: digits_data()[1].head(540).inputs[start : start + count]}
    answers = {OUTPUT: source_answers()[start : start + count]}
    return drift_baseline(manifest_for("onnx"), samples, answers, digest="0" * 64)


def test_baseline_counts_every_sample_once() -> None:
    told = baseline(0, 540)
    assert told["samples"] == 540
    assert sum(told["classes"].values()) == 540
    counted = [told["confidence"], *told["inputs"][INPUT].values()]
    assert all(sum(one["counts"]) == 540 for one in counted)
    assert all(len(one["counts"]) == len(one["edges"]) + 1 for one in counted)
    right = (source_answers().argmax(axis=1) == 3).sum()
    assert told["classes"]["3"] == right
    canonical.dumps(told)


def test_agent_counts_between_the_same_edges() -> None:
    assert CONFIDENCE_EDGES == statistics.CONFIDENCE_EDGES
    count = statistics.Statistics()
    for score in (0.05, 0.049, 1.0, 0.0, 0.97):
        count.decided("a", score)
    mine = histogram([0.05, 0.049, 1.0, 0.0, 0.97], CONFIDENCE_EDGES)
    assert count.take()["confidence"]["counts"] == mine["counts"]


def test_baselines_of_parts_add_up() -> None:
    whole = baseline(0, 540)["confidence"]
    parts = [baseline(start, 180)["confidence"] for start in (0, 180, 360)]
    assert merge(merge(parts[0], parts[1]), parts[2]) == whole
    with pytest.raises(ValueError, match="edges"):
        merge(whole, histogram([1.0], [0.5]))


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_edges_are_round_and_hold_everything(values: np.ndarray) -> None:
    plain = manifest_for("onnx")
    manifest = type(plain)(**{f: getattr(plain, f) for f in plain.__struct_fields__} | {
        "postprocess": None, "task": "raw"})  # fmt: skip
    told = drift_baseline(
        manifest, {"x": values[:, None]}, {"y": values[:, None]}, digest="0" * 64
    )["outputs"]["y"]["mean"]
    edges = told["edges"]
    assert edges == sorted(set(edges))
    assert len(edges) <= 25
    assert sum(told["counts"]) == len(values)
    assert edges[0] <= values.min() + 1e-6
    assert values.max() - 1e-6 <= edges[-1]


def test_about_the_same_data_give_the_same_edges() -> None:
    source = np.random.default_rng(0)
    one, two = (source.uniform(0.11, 0.49, 5000)[:, None] for _ in range(2))
    manifest = manifest_for("onnx")
    answers = {OUTPUT: np.zeros((5000, 10))}
    edges = [
        drift_baseline(manifest, {INPUT: x}, answers, digest="0" * 64)["inputs"][INPUT]["mean"]
        for x in (one, two)
    ]
    assert edges[0]["edges"] == edges[1]["edges"]


# -- side by side


def test_every_pair_is_compared_and_the_least_alike_comes_first() -> None:
    answers = source_answers(50)
    off = answers.copy()
    off[:4] = off[:4, ::-1]
    a, b, c = Variant("onnx", "fp32"), Variant("openvino", "fp32"), Variant("onnx", "int8")
    pairs = crossed({a: {OUTPUT: answers}, b: {OUTPUT: answers + 1e-6}, c: {OUTPUT: off}}, OUTPUT)
    assert len(pairs) == 3
    assert {pairs[0].one, pairs[0].other, pairs[1].one, pairs[1].other} == {a, b, c}
    assert [pair.different for pair in pairs] == [4, 4, 0]
    assert pairs[2].agreement == 1
    rows = crossed_rows(pairs)
    assert rows[0]["agreement"] == pytest.approx(46 / 50)
    assert rows[2]["max_abs"] < 1e-4


def test_models_that_decide_nothing_have_no_agreement() -> None:
    (pair,) = crossed(
        {Variant("onnx", "fp32"): {"y": np.ones((3, 2))}, Variant("onnx", "int8"):
         {"y": np.ones((3, 2))}}, None,
    )  # fmt: skip
    assert pair.agreement is None
    assert pair.parity.cosine == 1


def test_one_variant_has_nobody_to_agree_with() -> None:
    assert crossed({Variant("onnx", "fp32"): {"y": np.ones((3, 2))}}, None) == []


def test_a_class_without_a_folder_would_shift_the_others() -> None:
    check_folders(np.array([0, 1, 1, 2]), 3)
    with pytest.raises(UsageError) as caught:
        check_folders(np.array([0, 1, 1, 1]), 3)
    assert caught.value.reason == "folder_classes"
