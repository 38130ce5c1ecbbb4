"""What `--auto` tries and takes, and what it is judged on: pure, so every corner can be asked."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.core.holdout import Paired, paired, resolution_note, split
from edgepack_packager.core.search import (
    LADDER,
    MAX_ATTEMPTS,
    Attempt,
    Diagnose,
    Found,
    Goal,
    Trial,
    next_step,
    search_document,
    settings_of,
)
from edgepack_targets.interface import Capability, Layer, Quantization
from edgepack_targets.quantization import require_expressible

OPTIONS = ("dynamic", "per_tensor", "minmax", "entropy", "percentile", "smooth", "bias_full",
           "bias_none", "exclude", "int8_io")  # fmt: skip
ALL = Capability(("onnx",), ("fp32", "fp16", "bf16", "int8", "w8", "w4"), 300, frozenset(OPTIONS))
INT8 = Quantization("int8")

Judge = Callable[[Attempt], tuple[int, float | None]]


def run(goal: Goal, judge: Judge, layers: list[Layer]) -> tuple[list[Trial], Trial | None]:
    """Drive a search to its end with the outcomes that JUDGE gives."""
    history: list[Trial] = []
    known: list[Layer] | None = None
    for _ in range(2 * MAX_ATTEMPTS):
        step = next_step(goal, history, known)
        if isinstance(step, Found):
            return history, step.chosen
        if isinstance(step, Diagnose):
            assert known is None, "diagnosed twice"
            known = layers
            continue
        size, drop = judge(step)
        history.append(Trial(step, size, drop, error="" if drop is not None else "failed"))
    raise AssertionError("the search does not end")


def named(count: int) -> list[Layer]:
    return [Layer(f"layer{i}", "Gemm", 1 / (i + 1)) for i in range(count)]


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    asked = draw(
        st.sampled_from(
            [
                INT8, Quantization("int8", smooth=True), Quantization("int8", ranges="entropy"),
                Quantization("int8", exclude=("layer0",)), Quantization("int8", method="dynamic"),
                Quantization("w8"), Quantization("w4"), Quantization("fp16"), Quantization("bf16"),
            ]
        )
    )  # fmt: skip
    precisions = {"fp32", asked.precision} | draw(st.sets(st.sampled_from(ALL.precisions)))
    capability = Capability(("onnx",), tuple(sorted(precisions)), 300, ALL.options)
    taken = frozenset(draw(st.sets(st.sampled_from(["w8", "fp16", "fp32"]), max_size=2)))
    return Goal(asked, capability, draw(st.floats(0, 0.1)), 1000, taken - {asked.precision})


@given(goals(), st.integers(0, 40), st.data())
def test_every_search_is_short_repeats_nothing_and_takes_the_smallest(
    goal: Goal, count: int, data: st.DataObject
) -> None:
    drops = st.one_of(st.none(), st.floats(-0.05, 0.3))
    history, chosen = run(
        goal, lambda _: (data.draw(st.integers(1, 1000)), data.draw(drops)), named(count)
    )
    tried = [trial.attempt.how for trial in history]
    assert len(tried) <= MAX_ATTEMPTS
    assert all(how not in tried[:i] for i, how in enumerate(tried))
    kept = [trial for trial in history if trial.keeps(goal.limit)]
    assert (chosen is None) == (not kept)
    if chosen:
        assert chosen in kept
        assert chosen.model_bytes == min(trial.model_bytes for trial in kept)
    for trial in history:
        if trial.attempt.how:
            require_expressible("any", goal.capability, trial.attempt.how)
        assert trial.attempt.stage == "asked" or trial.attempt.precision not in goal.taken


@given(goals(), st.integers(0, 40))
def test_fp32_is_there_when_nothing_else_will_do(goal: Goal, count: int) -> None:
    history, chosen = run(
        goal, lambda a: (1000, 0.0 if a.precision == "fp32" else 0.2), named(count)
    )
    assert history[0].attempt == Attempt(goal.asked, "asked")
    if "fp32" not in goal.taken:
        assert chosen is not None
        assert chosen.attempt.precision == "fp32"
    else:
        assert chosen is None


def test_what_was_asked_for_is_taken_at_once_if_it_is_good_enough() -> None:
    history, chosen = run(Goal(INT8, ALL, 0.01, 1000), lambda _: (250, 0.01), named(9))
    assert len(history) == 1
    assert chosen is history[0]


def test_settings_add_up_as_long_as_they_help() -> None:
    gain = {"smooth": 0.03, "bias_correction": -0.01, "ranges": 0.02}

    def judge(attempt: Attempt) -> tuple[int, float]:
        return 250, 0.06 - sum(gain[name] for name in settings_of(attempt.how))

    history, chosen = run(Goal(INT8, ALL, 0.011, 1000), judge, named(9))
    assert chosen is not None
    assert settings_of(chosen.attempt.how) == {"smooth": True, "ranges": "percentile"}
    assert [trial.attempt.stage for trial in history] == ["asked", *["settings"] * 3]


def test_settings_of_the_user_stay() -> None:
    asked = Quantization("int8", ranges="entropy", per_channel=False, seed=5)
    history, _ = run(Goal(asked, ALL, 0.0, 1000), lambda _: (250, 0.2), named(3))
    quantised = [t.attempt.how for t in history if t.attempt.precision == "int8"]
    assert all(h and h.ranges == "entropy" and not h.per_channel for h in quantised)
    assert all(t.attempt.how.seed == 5 for t in history if t.attempt.how)


@pytest.mark.parametrize("needed", [{0}, {1}, {0, 1}, {2}, {1, 2}, {0, 3}, {5}])
def test_only_the_layers_that_matter_stay_in_float(needed: set[int]) -> None:
    def judge(attempt: Attempt) -> tuple[int, float]:
        left = {int(name.removeprefix("layer")) for name in attempt.how.exclude}  # type: ignore[union-attr]
        return 250 + 20 * len(left), 0.0 if needed <= left else 0.1

    history, chosen = run(Goal(INT8, ALL, 0.01, 1000), judge, named(12))
    assert chosen is not None
    left = {int(name.removeprefix("layer")) for name in chosen.attempt.how.exclude}  # type: ignore[union-attr]
    first = next(t for t in history if t.attempt.stage == "mixed" and t.keeps(0.01))
    assert needed <= left
    assert len(left) <= len(first.attempt.how.exclude)  # type: ignore[union-attr]
    if max(needed) < 4:
        assert left == needed


def test_mixed_as_big_as_half_precision_is_compared_with_it() -> None:
    sizes = {"int8": 700, "w8": 300, "fp16": 500}

    def judge(attempt: Attempt) -> tuple[int, float]:
        passes = attempt.precision != "int8" or attempt.stage in {"mixed", "shrink"}
        return sizes[attempt.precision], 0.0 if passes else 0.1

    history, chosen = run(Goal(INT8, ALL, 0.01, 1000), judge, named(4))
    assert chosen is not None
    assert chosen.attempt.precision == "w8"
    assert all(trial.attempt.precision != "fp32" for trial in history)


def test_a_higher_precision_is_tried_without_the_worst_layers_too() -> None:
    def judge(attempt: Attempt) -> tuple[int, float]:
        left = len(attempt.how.exclude) if attempt.how else 0
        drops = {"int8": 0.03 if left else 0.1, "w8": 0.0 if left else 0.05}
        return {"int8": 250, "w8": 300}.get(attempt.precision, 500), drops.get(
            attempt.precision, 0.0
        )

    _, chosen = run(Goal(INT8, ALL, 0.01, 1000), judge, named(4))
    assert chosen is not None
    assert chosen.attempt.precision == "w8"
    assert settings_of(chosen.attempt.how) == {"exclude": ["layer0"]}


def test_what_cannot_be_made_is_passed_over() -> None:
    def judge(attempt: Attempt) -> tuple[int, float | None]:
        return 500, 0.0 if attempt.precision == "fp16" else None

    history, chosen = run(Goal(INT8, ALL, 0.01, 1000), judge, named(4))
    assert [trial.attempt.precision for trial in history] == ["int8", "w8", "fp16"]
    assert chosen is history[-1]


def test_without_layers_to_name_the_ladder_is_next() -> None:
    history, _ = run(Goal(INT8, ALL, 0.0, 1000), lambda _: (250, 0.2), [])
    assert {trial.attempt.stage for trial in history} == {"asked", "settings", "ladder"}
    assert tuple(t.attempt.precision for t in history[-3:]) == LADDER["int8"]


def test_document_tells_every_attempt() -> None:
    goal = Goal(INT8, ALL, 0.01, 1000)
    history, chosen = run(goal, lambda a: (400, 0.0 if a.stage == "mixed" else None), named(3))
    rows = search_document(goal, history, chosen)["attempts"]
    assert len(rows) == len(history)
    assert [row["error"] for row in rows] == [t.error or None for t in history]


# -- the holdout


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=300), st.integers(0, 2**32 - 1), st.booleans()
)
def test_halves_are_disjoint_balanced_and_repeatable(
    labels: list[int], seed: int, flat: bool
) -> None:
    truth = np.array(labels) if flat else np.array(labels)[:, None]
    one, two = split({"labels": truth}, len(labels), seed)
    assert sorted([*one, *two]) == list(range(len(labels)))
    assert abs(len(one) - len(two)) <= 1
    for label in set(labels):
        left, right = (sum(labels[i] == label for i in half) for half in (one, two))
        assert abs(left - right) <= 1
    again = split({"labels": truth}, len(labels), seed)
    assert all(np.array_equal(a, b) for a, b in zip((one, two), again, strict=True))


@pytest.mark.parametrize(
    "labels", [{"boxes": np.zeros((50, 4, 4))}, {"labels": np.linspace(0, 1, 50)}]
)
def test_labels_that_are_no_classes_are_split_evenly(labels: dict[str, np.ndarray]) -> None:
    one, two = split(labels, 50, 0)
    assert (len(one), len(two)) == (25, 25)
    assert not set(one) & set(two)


def test_another_seed_gives_other_halves() -> None:
    labels = {"labels": np.arange(100) % 10}
    assert not np.array_equal(split(labels, 100, 0)[0], split(labels, 100, 1)[0])


def test_paired_counts() -> None:
    truth = np.array([0, 1, 2, 3, 4])
    pair = paired(np.array([0, 1, 2, 0, 0]), np.array([0, 0, 0, 3, 0]), truth)
    assert pair == Paired(lost=2, gained=1, samples=5)
    assert pair.drop == pytest.approx(0.2)


@given(st.integers(1, 2000), st.data())
def test_interval_holds_what_was_seen(samples: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, samples))
    gained = data.draw(st.integers(0, samples - lost))
    low, high = Paired(lost, gained, samples).interval
    assert low < high
    assert low - 2 / samples <= (lost - gained) / samples <= high + 2 / samples


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        lost, gained, _ = source.multinomial(500, [0.02, 0.01, 0.97])
        low, high = Paired(int(lost), int(gained), 500).interval
        held += low <= 0.01 <= high
    assert 0.93 <= held / 2000 <= 0.98


def test_a_holdout_that_cannot_tell_says_so() -> None:
    assert resolution_note(Paired(0, 0, 5000), 0.005) is None
    assert "too small" in str(resolution_note(Paired(0, 0, 100), 0.005))
    assert "does not rule out" in str(resolution_note(Paired(20, 0, 5000), 0.005))
