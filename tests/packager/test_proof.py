"""Parity, gates, golden tolerance and bindings: pure, so every corner can be asked."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepack.errors import AccuracyError, UnsupportedError
from edgepack_packager.core.binding import Native, Public, bind
from edgepack_packager.core.proof import (
    ROUNDING,
    Measured,
    Parity,
    check_baseline,
    check_drop,
    check_export,
    compare,
    golden_cosine,
    golden_picks,
    resolution_warning,
)
from edgepack_packager.core.recipe import Variant
from edgepack_packager.core.report import Built, Score

ANSWERS = arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32))


@given(ANSWERS)
def test_the_same_answers_are_equal(answers: np.ndarray) -> None:
    parity = compare({"y": answers}, {"y": answers.copy()})
    assert parity == Parity(0.0, 1.0)


@given(ANSWERS, st.integers(0, 3), st.integers(0, 2))
def test_one_changed_number_is_seen(answers: np.ndarray, row: int, column: int) -> None:
    changed = answers.copy()
    changed[row, column] += 1
    parity = compare({"y": answers, "z": answers}, {"y": answers, "z": changed})
    assert parity.max_abs == pytest.approx(1, abs=1e-4)
    assert parity.cosine <= 1


def test_worst_sample_decides() -> None:
    good, bad = np.ones((9, 2)), np.ones((9, 2))
    bad[4] = [1, -1]
    assert compare({"y": good}, {"y": bad}).cosine == pytest.approx(0)


@pytest.mark.parametrize("parity", [Parity(0.5, 1.0), Parity(0.0, 0.99), Parity(float("nan"), 0.0)])
def test_export_that_differs_is_no_baseline(parity: Parity) -> None:
    with pytest.raises(AccuracyError, match="tflite") as caught:
        check_export(parity, 1.0, "tflite")
    assert caught.value.reason == "export_differs"


def test_difference_is_judged_by_the_size_of_the_answers() -> None:
    check_export(Parity(0.05, 0.99999), 100.0, "onnx")


def test_baseline_must_beat_guessing() -> None:
    labels = np.arange(500) % 10
    check_baseline(0.9, labels, 10)
    for score in (0.05, 0.1, 0.13):
        with pytest.raises(AccuracyError, match="guessing"):
            check_baseline(score, labels, 10)


def test_always_saying_the_common_class_is_guessing() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    with pytest.raises(AccuracyError):
        check_baseline(0.9, labels, 10)


def test_too_few_samples_are_not_called_guessing() -> None:
    with pytest.raises(AccuracyError, match="5 samples are too few"):
        check_baseline(1.0, np.array([0, 1, 2, 3, 3]), 10)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_drop_is_refused_exactly_above_the_limit(one: float, two: float, limit: float) -> None:
    if one - two > limit + 1e-6:
        with pytest.raises(AccuracyError):
            check_drop(one, two, limit)
    elif one - two < limit:
        check_drop(one, two, limit)
    check_drop(one, two, None)


def test_a_drop_of_exactly_the_limit_passes() -> None:
    check_drop(0.98, 0.97, 0.01)


@pytest.mark.parametrize(
    ("cosine", "score", "told"),
    [(0.5, None, True), (0.99, None, False), (0.5, Score("top1", 0.9, 0.9, 100), False)],
)
def test_far_answers_that_nobody_scored_are_pointed_out(
    cosine: float, score: Score | None, told: bool
) -> None:
    cost = Measured(1.0, 1.0, 100, 10.0)
    built = Built(
        Variant("tflite", "int8"), "a.edgepack", "sha256:0", 100, Parity(0.5, cosine), cost, cost,
        score,
    )  # fmt: skip
    assert any("--evaluate" in note for note in built.warnings) == told


def test_resolution() -> None:
    assert resolution_warning(0.01, 100) is None
    assert resolution_warning(None, 2) is None
    assert "0.0200" in str(resolution_warning(0.01, 50))


@given(st.floats(0, 2))
def test_golden_tolerance_is_half_the_way_and_bounded(distance: float) -> None:
    allowed = 1 - golden_cosine(distance)
    assert allowed <= 0.01 + 1e-12
    assert allowed >= ROUNDING - 1e-12
    assert allowed <= max(distance / 2, ROUNDING) + 1e-12


@given(st.integers(1, 1000))
def test_golden_samples_are_spread(count: int) -> None:
    picks = golden_picks(count)
    assert picks == sorted(set(picks))
    assert len(picks) == min(count, 8)
    assert 0 <= picks[0] <= picks[-1] < count


# -- bindings


def public(name: str, *shape: int, key: str = "", dtype: str = "float32") -> Public:
    return Public(name, key or name, shape, dtype)


def test_names_win_over_order() -> None:
    publics = [public("a", 1, 4), public("b", 1, 4)]
    specs = bind(publics, [Native("b", (1, 4), "float32"), Native("a", (1, 4), "float32")])
    assert [s.binding.native_name for s in specs] == ["a", "b"]


def test_the_exports_own_name_is_known_too() -> None:
    publics = [public("x/1", 1, 4, key="in_0"), public("y", 1, 4)]
    specs = bind(publics, [Native("y", (1, 4), "float32"), Native("in_0:0", (1, 4), "float32")])
    assert [s.binding.native_name for s in specs] == ["in_0:0", "y"]


def test_channels_first_is_found() -> None:
    (spec,) = bind([public("image", 1, 32, 48, 3)], [Native("n", (1, 3, 32, 48), "float32")])
    assert spec.binding.permutation == (0, 3, 1, 2)


@given(st.permutations([1, 5, 7, 9]))
def test_any_order_of_axes_is_undone(order: list[int]) -> None:
    (spec,) = bind([public("x", 1, 5, 7, 9)], [Native("n", tuple(order), "float32")])
    moved = spec.binding.permutation or (0, 1, 2, 3)
    assert tuple((1, 5, 7, 9)[axis] for axis in moved) == tuple(order)
    assert moved in set(permutations(range(4)))


@pytest.mark.parametrize(
    "native",
    [Native("n", (1, 5), "float32"), Native("n", (1, 4), "int8"), Native("n", (4,), "float32")],
)
def test_lost_tensor_is_told(native: Native) -> None:
    with pytest.raises(UnsupportedError, match="got lost"):
        bind([public("x", 1, 4)], [native])


def test_text_is_no_tensor() -> None:
    with pytest.raises(UnsupportedError, match="not numbers"):
        bind([public("x", 1, dtype="string")], [Native("x", (1,), "string")])
