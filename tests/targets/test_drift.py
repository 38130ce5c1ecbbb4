"""The statistics of drift: right against scipy, silent without drift, loud with it."""

import random
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgepack_targets.pipeline.drift import (
    MAX_BINS,
    chi_square_tail,
    compare,
    compare_classes,
    in_bins,
)
from edgepack_targets.pipeline.drift_chart import drift_chart

counts = st.lists(st.integers(0, 400), min_size=1, max_size=25)
pairs = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=25)


@given(st.floats(0, 2000), st.integers(1, 60))
def test_the_tail_is_scipys(x: float, degrees: int) -> None:
    assert chi_square_tail(x, degrees) == pytest.approx(
        stats.chi2.sf(x, degrees), rel=1e-9, abs=1e-200
    )


@given(pairs)
def test_the_test_is_scipys(drawn: list[tuple[int, int]]) -> None:
    bins = in_bins(drawn)
    found = compare([a for a, _ in drawn], [b for _, b in drawn])
    if len(bins) < 2:
        assert (found.psi, found.p) == (0.0, 1.0)
        return
    expected = stats.chi2_contingency(
        list(zip(*bins, strict=True)), correction=False, lambda_="log-likelihood"
    )
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-200)


@given(pairs)
def test_no_count_is_lost_in_the_bins(drawn: list[tuple[int, int]]) -> None:
    bins = in_bins(drawn)
    assert len(bins) <= MAX_BINS
    if bins:
        for side in (0, 1):
            assert sum(pair[side] for pair in bins) == sum(pair[side] for pair in drawn)


@given(counts)
def test_what_is_the_same_has_not_drifted(drawn: list[int]) -> None:
    found = compare(drawn, drawn)
    assert found.psi == 0.0
    assert found.p > 0.999


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 300)), st.data())
def test_the_order_of_classes_does_not_matter(told: dict[str, int], data: st.DataObject) -> None:
    mixed = dict(data.draw(st.permutations(list(told.items()))))
    other = dict.fromkeys(told, 7)
    assert compare_classes(told, other) == compare_classes(mixed, other)


def test_histograms_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bins are compared with 2"):
        compare([1, 2, 3], [1, 2])


def drawn(shift: float, count: int, dice: random.Random) -> list[int]:
    found = Counter(min(19, max(0, int(dice.gauss(shift, 1) * 4 + 10))) for _ in range(count))
    return [found[place] for place in range(20)]


def test_chance_is_hardly_ever_taken_for_drift_and_drift_for_chance() -> None:
    dice = random.Random(7)
    baseline = drawn(0, 2000, dice)
    quiet = [compare(baseline, drawn(0, 1000, dice)) for _ in range(300)]
    loud = [compare(baseline, drawn(0.5, 1000, dice)) for _ in range(300)]
    assert sum(found.p < 0.001 and found.psi > 0.1 for found in quiet) == 0
    assert sum(found.p < 0.001 and found.psi > 0.1 for found in loud) == 300


def test_the_picture_is_well_formed_whatever_the_names_are() -> None:
    names = ["<b>", "a & b", '"']
    chart = drift_chart("<x>", "p & q", names, [1, 2, 3], [0, 0, 0])
    root = ET.fromstring(chart)
    told = [element.text for element in root.iter() if element.text]
    assert "<b>" in told
    assert "<x>" in told
