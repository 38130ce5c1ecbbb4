"""What is said of samples holds for the populations they came from."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgepack_fleet.core.comparison import (
    Asked,
    Share,
    difference,
    effective,
    mean_interval,
    ratio,
    wilson,
)
from edgepack_fleet.core.drifting import Rule, Seen, holm, outlook, verdicts
from edgepack_fleet.core.plainly import errors_said, latency_said

P = st.floats(0, 1)


@given(st.lists(P, min_size=1, max_size=12))
def test_holm_never_makes_a_value_smaller_and_keeps_their_order(values: list[float]) -> None:
    found = holm(values)
    assert all(mine >= value for mine, value in zip(found, values, strict=True))
    assert all(value <= 1 for value in found)
    order = sorted(range(len(values)), key=lambda place: values[place])
    assert [found[place] for place in order] == sorted(found)
    smallest = min(values)
    assert found[values.index(smallest)] == min(1.0, len(values) * smallest)


def test_holm_bounds_the_chance_of_any_false_alarm() -> None:
    """Of features that depend on each other, too: here all but one are copies."""
    dice = random.Random(3)
    false = 0
    for _ in range(3000):
        one, other = dice.random(), dice.random()
        false += min(holm([one, one, one, other])) < 0.05
    assert false / 3000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)


def drawn(dice: random.Random, weights: list[float], size: int) -> tuple[int, ...]:
    found = dice.choices(range(len(weights)), weights, k=size)
    return tuple(found.count(place) for place in range(len(weights)))


def test_drift_is_seen_where_it_is_and_not_where_it_is_not() -> None:
    dice = random.Random(5)
    flat = [1.0] * 10
    tilted = [1.0 + 0.4 * place for place in range(10)]
    names = tuple(map(str, range(10)))
    false = missed = 0
    for _ in range(60):
        same = [Seen(f"f{n}", names, drawn(dice, flat, 1000), drawn(dice, flat, 1500))
                for n in range(4)]  # fmt: skip
        moved = Seen("moved", names, drawn(dice, flat, 1000), drawn(dice, tilted, 1500))
        told = {d.feature: d.verdict for d in verdicts([*same, moved], Rule(psi=0.05))}
        missed += told.pop("moved") != "drift"
        false += "drift" in told.values()
    assert false == 0, "a chance of one in a thousand each time"
    assert missed <= 6


def test_too_few_values_are_said_to_be_too_few() -> None:
    few = Seen("f", ("a", "b"), (500, 500), (999, 0))
    enough = Seen("g", ("a", "b"), (500, 500), (1000, 0))
    assert {d.feature: d.verdict for d in verdicts([few, enough], Rule())} == {
        "f": "too_few",
        "g": "drift",
    }


def test_what_was_not_judged_is_not_said_to_be_as_built() -> None:
    names, flat = ("a", "b"), (500, 500)
    few, nearer = Seen("f", names, flat, (60, 60)), Seen("n", names, flat, (450, 450))
    thin = Seen("t", names, (50, 50), (900, 900))
    same, far = Seen("s", names, flat, (900, 900)), Seen("d", names, flat, (1800, 0))

    def said(*found: Seen) -> tuple[str, str]:
        told = outlook(verdicts(found, Rule()))
        return told.verdict, told.said

    assert said() == ("nothing", "nothing to compare")
    assert said(few, nearer) == ("too_few", "not judged yet: 900 of 1,000 values")
    assert said(thin) == ("too_few", "not judged yet: 100 of 200 values to compare with")
    assert said(few, same) == ("partly", "no drift as far as judged: 1 of 2 features")
    assert said(same) == ("none", "no drift")
    assert said(few, same, far) == ("drift", "1 of 3 features drifting")


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_is_what_scipy_says(errors: int, more: int) -> None:
    size = errors + more
    wanted = stats.binomtest(errors, size).proportion_ci(method="wilson")
    found = wilson(errors / size, size)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_newcombe_is_what_the_paper_says() -> None:
    """Table II, method 10: 56 of 70 less 48 of 80 is 0.0524 .. 0.3339."""
    found = difference(Share(48 / 80, 80, 80.0), Share(56 / 70, 70, 70.0))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-4)


def coverage(trials: int, contains: Any) -> float:
    return sum(contains(random.Random(seed)) for seed in range(trials)) / trials


def test_intervals_of_errors_hold_although_devices_differ() -> None:
    """Requests of a bad box fail together: taken as independent, they would say too much."""

    def fleet(dice: random.Random) -> list[Asked]:
        rates = [min(1.0, max(0.0, dice.gauss(0.2, 0.08))) for _ in range(30)]
        return [Asked(200, sum(dice.random() < rate for _ in range(200))) for rate in rates]

    def contains(dice: random.Random) -> bool:
        a, b = effective(fleet(dice)), effective(fleet(dice))
        assert a is not None
        assert b is not None
        found = difference(a, b)
        return found.low <= 0 <= found.high

    assert coverage(60, contains) >= 0.85


EDGES = [1.0 * 1.3**n for n in range(20)]


def latencies(dice: random.Random, middle: float) -> dict[str, Any]:
    counts = [0] * (len(EDGES) + 1)
    for _ in range(150):
        value = middle * math.exp(dice.gauss(0, 0.2))
        counts[sum(edge <= value for edge in EDGES)] += 1
    return {"edges": EDGES, "counts": counts}


def test_the_interval_of_a_ratio_holds_although_boxes_differ() -> None:
    def contains(dice: random.Random) -> bool:
        boxes = [10 * math.exp(dice.gauss(0, 0.4)) for _ in range(25)]
        pairs = [(latencies(dice, box), latencies(dice, 1.2 * box)) for box in boxes]
        found = ratio(pairs, 0.5, 1)
        assert found is not None
        return found.low * 0.97 <= 1.2 <= found.high * 1.03

    assert coverage(12, contains) >= 0.75


def test_a_device_that_ran_both_tells_more_than_two_that_ran_one() -> None:
    dice = random.Random(2)
    boxes = [10 * math.exp(dice.gauss(0, 0.5)) for _ in range(30)]
    pairs = [(latencies(dice, box), latencies(dice, 1.3 * box)) for box in boxes]
    apart = [(a, None) for a, _ in pairs] + [(None, b) for _, b in pairs]
    both, single = ratio(pairs, 0.5, 1), ratio(apart, 0.5, 1)
    assert both is not None
    assert single is not None
    assert both.value == pytest.approx(single.value)
    assert both.high - both.low < (single.high - single.low) / 1.5
    assert ratio(pairs, 0.5, 1) == both, "the same question gets the same answer"
    assert ratio(pairs[:1], 0.5, 1) is None, "one device is no sample of devices"


def test_many_devices_are_drawn_in_blocks() -> None:
    dice = random.Random(4)
    few = [(latencies(dice, 10), latencies(dice, 11)) for _ in range(20)]
    found = ratio(few * 40, 0.95, 1)
    assert found is not None
    assert found.low <= found.value <= found.high


@given(st.lists(P, max_size=20))
def test_an_interval_of_a_mean_holds_it(values: list[float]) -> None:
    found = mean_interval(values)
    if not values:
        assert found is None
    else:
        assert found is not None
        assert 0 <= found.low <= found.value + 1e-9
        assert found.value <= found.high + 1e-9 <= 1 + 2e-9


def test_it_is_said_plainly() -> None:
    none = wilson(0.5, 10)
    assert "no difference seen" in latency_said("p95", type(none)(1.0, 0.96, 1.05))
    assert latency_said("p95", type(none)(1.06, 1.04, 1.09)) == "p95: B is slower by 4..9 %"
    assert latency_said("p50", type(none)(0.9, 0.8, 0.95)) == "p50: B is faster by 5..20 %"
    assert "fewer, by 1..2 percentage" in errors_said(type(none)(-0.015, -0.02, -0.01))
    assert "not enough" in errors_said(None)
