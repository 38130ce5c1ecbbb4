"""When a model on probation is good: errors, silence, memory, latency beside the one before."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_agent.core.health import Latencies, Rule, Verdict, Vitals, beat, judge

EDGES = (1.0, 2.0, 5.0, 10.0, 100.0)
RULE = Rule(10.0)


def said(
    inferences: int = 0, errors: dict[str, int] | None = None, rss: float = 50.0, *counts: int
) -> dict[str, Any]:
    latency = {"edges": list(EDGES), "counts": list(counts)} if counts else {}
    stats = {"inferences": inferences, "errors": errors or {}, "latency_ms": latency}
    return {"evt": "beat", "rss_mb": rss, "stats": stats}


def after(*beats: dict[str, Any]) -> Vitals:
    vitals = Vitals(0.0, 0.0)
    for second, each in enumerate(beats, start=1):
        vitals = beat(vitals, float(second), each)
    return vitals


def test_a_model_that_beats_and_answers_is_good_when_its_time_is_over() -> None:
    vitals = after(*[said(5)] * 10)
    assert judge(vitals, RULE, 9.9) is None
    assert judge(vitals, RULE, 10.0) == Verdict(True)


def test_without_a_single_beat_there_is_no_good_verdict() -> None:
    assert judge(Vitals(0.0, 0.0), Rule(0.0), 5.0) is None
    assert judge(Vitals(0.0, 0.0), Rule(0.0), 10.1) == Verdict(False, "no_heartbeat")


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ({"runtime_error": 2}, None),
        ({"runtime_error": 3}, "error_rate"),
        ({"deadline": 2, "non_finite": 1}, "error_rate"),
        ({"bad_output": 3}, "error_rate"),
        ({"bad_request": 50, "queue_full": 50}, None),
        ({"camera_missing": 50, "client_deadline": 50, "not_decoded": 50}, None),
    ],
)
def test_only_the_models_own_errors_count_and_few_are_chance(
    errors: dict[str, int], verdict: str | None
) -> None:
    found = judge(after(said(10, errors)), RULE, 1.0)
    assert (found and found.reason) == verdict


def test_memory_is_judged_on_two_beats_because_one_may_be_a_peak() -> None:
    rule = Rule(10.0, max_rss_mb=100.0)
    assert judge(after(said(rss=90.0), said(rss=200.0)), rule, 2.0) is None
    found = judge(after(said(rss=120.0), said(rss=200.0)), rule, 2.0)
    assert found == Verdict(False, "memory_above_limit", {"rss_mb": 120.0, "limit": 100.0})
    assert judge(after(said(rss=120.0), said(rss=200.0)), RULE, 2.0) is None


FAST, SLOW = (0, 100, 0, 0, 0, 0), (0, 0, 0, 100, 0, 0)


def test_a_model_that_is_too_slow_beside_the_one_before_is_not_kept() -> None:
    before = Latencies().add({"edges": EDGES, "counts": FAST})
    rule = Rule(1.0, max_p95_ratio=2.0, before=before)
    found = judge(after(said(100, None, 50.0, *SLOW)), rule, 2.0)
    assert found
    assert (found.good, found.reason) == (False, "latency_above_limit")
    assert judge(after(said(100, None, 50.0, *FAST)), rule, 2.0) == Verdict(True)


def test_a_few_samples_prove_nothing_about_latency() -> None:
    before = Latencies().add({"edges": EDGES, "counts": FAST})
    few = after(said(10, None, 50.0, 0, 0, 0, 10, 0, 0))
    assert judge(few, Rule(1.0, max_p95_ratio=2.0, before=before), 2.0) == Verdict(True)
    many = after(said(100, None, 50.0, *SLOW))
    assert judge(many, Rule(1.0, max_p95_ratio=2.0), 2.0) == Verdict(True)
    assert judge(many, Rule(1.0, before=before), 2.0) == Verdict(True)


COUNTS = st.lists(st.integers(0, 1000), min_size=6, max_size=6)


@given(COUNTS, st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_that_holds_it(counts: list[int], share: float) -> None:
    found = Latencies().add({"edges": EDGES, "counts": counts})
    if not found.total:
        return
    value = found.quantile(share)
    below = sum(c for c, high in zip(counts, EDGES, strict=False) if high <= value)
    assert below <= share * found.total + 1e-6
    up_to = sum(c for c, low in zip(counts, (0.0, *EDGES), strict=False) if low <= value)
    assert up_to >= share * found.total - 1e-6
    assert value <= found.quantile(min(1.0, share * 1.5))


def test_what_a_model_did_long_ago_counts_less_and_less() -> None:
    found = Latencies()
    for _ in range(400):
        found = found.add({"edges": EDGES, "counts": FAST})
    for _ in range(400):
        found = found.add({"edges": EDGES, "counts": SLOW})
    assert found.quantile(0.5) > 5.0
    assert found.total < 50_000


@pytest.mark.parametrize("raw", [None, {}, {"counts": []}, 7])
def test_a_beat_without_a_histogram_adds_nothing(raw: Any) -> None:
    known = Latencies().add({"edges": EDGES, "counts": FAST})
    assert known.add(raw) == known
