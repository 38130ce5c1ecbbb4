"""Calibration data that are not like what the model will see: said with the numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digits import INPUT, digits_data
from edgepack.errors import UsageError
from edgepack_packager.core.binding import Public
from edgepack_packager.core.calibration import calibration_warnings

IMAGE = Public(INPUT, INPUT, (1, 1, 16, 16), "float32")
TRAIN, TEST = (split.inputs[:200] for split in digits_data())


def warnings_for(calibration: np.ndarray, evaluation: np.ndarray | None = TEST) -> list[str]:
    given = None if evaluation is None else {INPUT: evaluation, "labels": np.arange(3)}
    return calibration_warnings([IMAGE], {INPUT: calibration}, given)


def test_data_of_one_kind_are_fine() -> None:
    assert warnings_for(TRAIN) == []
    assert warnings_for(TRAIN, None) == []
    assert warnings_for(TRAIN[:1]) == []


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda x: x * 255, "0..255"),
        (lambda x: x / 255, "0..0.003922"),
        (lambda x: x * 2 - 1, "-1..1"),
        (lambda x: -x, "-1..0"),
    ],
    ids=["not divided", "divided twice", "shifted", "negated"],
)
def test_another_scale_is_said_with_both_ranges(change, seen: str) -> None:
    (text,) = warnings_for(change(TRAIN).astype(np.float32))
    assert f"`{INPUT}` lies in {seen}, evaluation in 0..1" in text


@given(st.floats(0.5, 2.0), st.floats(-0.02, 0.02))
def test_brighter_or_noisier_samples_are_no_other_scale(gain: float, shift: float) -> None:
    assert warnings_for((TRAIN * gain + shift).astype(np.float32)) == []


def test_one_outlier_is_no_other_scale() -> None:
    spoiled = TRAIN.copy()
    spoiled[3, 0, 5, 5] = 1e6
    assert warnings_for(spoiled) == []


def test_samples_that_teach_nothing_are_named() -> None:
    (text,) = warnings_for(np.full_like(TRAIN, 0.5), None)
    assert "0.5 everywhere" in text
    (text,) = warnings_for(np.repeat(TRAIN[:1], 20, axis=0), None)
    assert "all 20 samples are the same" in text


def test_8_bit_images_have_a_scale_and_indices_have_none() -> None:
    image, ids = Public("x", "x", (1, 8), "uint8"), Public("ids", "ids", (1, 8), "int64")
    bytes_ = np.arange(256, dtype=np.uint8).reshape(-1, 8)
    numbers = np.arange(400).reshape(-1, 8)
    assert calibration_warnings([image], {"x": bytes_}, {"x": bytes_ // 255})
    assert not calibration_warnings([ids], {"ids": numbers}, {"ids": numbers // 30})


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({}, "no calibration samples"),
        ({INPUT: TRAIN[:0]}, "no calibration samples"),
        ({INPUT: TRAIN.astype(np.float64)}, "is float64, the model takes float32"),
        ({INPUT: digits_data()[0].images}, "is uint8, the model takes float32"),
        ({INPUT: np.where(TRAIN > 0.99, np.nan, TRAIN).astype(np.float32)}, "NaN or infinity"),
        ({INPUT: np.where(TRAIN > 0.99, -np.inf, TRAIN).astype(np.float32)}, "NaN or infinity"),
    ],
)
def test_data_that_cannot_be_used_are_an_error(arrays: dict, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        calibration_warnings([IMAGE], arrays, {INPUT: TEST})
    assert caught.value.reason == "bad_calibration"
