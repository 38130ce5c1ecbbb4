"""When two answers are the same decision, and what a classifier's answer is."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from digits_targets import manifest_for
from edgepack.decoders import Softmax, Undecoded
from edgepack.errors import UsageError
from edgepack.manifest import Agreement, Manifest
from edgepack_targets.pipeline.agreement import agree
from edgepack_targets.pipeline.answer import Classification, Guess, Raw
from edgepack_targets.pipeline.postprocess import decode
from edgepack_targets.pipeline.similarity import cosine, top1

TOP1 = Agreement(rule="top1", output="y", min_share=0.75, min_cosine=0.9)
ROWS = np.eye(4, dtype=np.float32) + np.float32(0.1)

RULES = ("top1", "cosine")

matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 5)),
    elements=st.floats(-1e3, 1e3, width=32),
)


def judged(rule: Agreement) -> Manifest:
    return msgspec.structs.replace(manifest_for("onnx"), agreement=rule)


def classify(manifest: Manifest, outputs: dict[str, np.ndarray]) -> tuple[Guess, ...]:
    answer = decode(manifest, outputs)
    assert isinstance(answer, Classification)
    return answer.guesses


@given(matrices)
def test_the_same_answers_agree(rows: np.ndarray) -> None:
    for rule in RULES:
        verdict = agree(judged(Agreement(rule=rule, output="y")), {"y": rows}, {"y": rows.copy()})
        assert (verdict.share, verdict.cosine, verdict.passed) == (1.0, 1.0, True)


@given(matrices, matrices)
def test_cosine_is_symmetric_bounded_and_blind_to_scale(a: np.ndarray, b: np.ndarray) -> None:
    b = np.resize(b, a.shape)
    forth, back = cosine(a, b), cosine(b, a)
    assert np.allclose(forth, back)
    assert (np.abs(forth) <= 1).all()
    assert np.allclose(cosine(a, b * 2), forth, atol=1e-6) or (a == b * 2).all(axis=1).any()


def test_top1_counts_samples_and_the_share_decides() -> None:
    got = ROWS.copy()
    got[0] = got[0][[1, 0, 2, 3]]
    verdict = agree(judged(TOP1), {"y": ROWS}, {"y": got})
    assert verdict.share == 0.75
    assert not verdict.passed, "the swapped sample is too far away"
    loose = msgspec.structs.replace(TOP1, min_cosine=0.0)
    assert agree(judged(loose), {"y": ROWS}, {"y": got}).passed
    strict = msgspec.structs.replace(loose, min_share=0.76)
    assert not agree(judged(strict), {"y": ROWS}, {"y": got}).passed


def test_the_lowest_cosine_counts_not_the_mean() -> None:
    got = ROWS.copy()
    got[3] = [0.2, 0.2, 0.2, 0.21]
    verdict = agree(judged(TOP1), {"y": ROWS}, {"y": got})
    assert verdict.share == 1.0
    assert verdict.cosine == pytest.approx(cosine(ROWS[3:], got[3:])[0])
    assert not verdict.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", ["top1", "cosine"])
def test_answers_that_are_no_numbers_agree_with_nothing(bad: float, rule: str) -> None:
    got = ROWS.copy()
    got[1, 2] = bad
    verdict = agree(judged(Agreement(rule=rule, output="y")), {"y": ROWS}, {"y": got})
    assert verdict.share == 0.75
    assert verdict.cosine == -1.0
    assert not verdict.passed
    everywhere = {"y": np.full_like(ROWS, bad)}
    assert not agree(judged(Agreement(rule=rule, output="y")), everywhere, everywhere).passed


@pytest.mark.parametrize("got", [{}, {"z": ROWS}, {"y": ROWS[:2]}, {"y": ROWS[:, :3]}])
def test_what_cannot_be_compared_is_an_error(got: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError):
        agree(judged(TOP1), {"y": ROWS}, got)
    with pytest.raises(UsageError):
        agree(judged(TOP1), {"y": ROWS[:0]}, {"y": ROWS[:0]})


def test_integers_and_more_axes_are_compared_too() -> None:
    rows = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    assert agree(judged(TOP1), {"y": rows}, {"y": rows}).passed
    assert list(top1(rows)) == [11, 11]


def test_classify_softens_logits_and_sorts() -> None:
    manifest = manifest_for("onnx")
    logits = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 9, 8]], np.float32)
    best = classify(manifest, {"logits": logits})
    assert [(guess.index, guess.label) for guess in best] == [(8, "8"), (9, "9"), (7, "7")]
    powers = np.exp(logits[0].astype(np.float64))
    assert best[0].score == pytest.approx(powers[8] / powers.sum())


def test_classify_leaves_probabilities_alone() -> None:
    rule = Softmax(output="y", activation="none", top_k=2)
    manifest = msgspec.structs.replace(manifest_for("onnx"), postprocess=rule, labels=("cat",))
    best = classify(manifest, {"y": np.array([[0.25, 0.75]], np.float32)})
    assert [(g.label, g.score) for g in best] == [("1", 0.75), ("cat", 0.25)]


@given(
    hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**127), 2.0**127, width=32))
)
def test_scores_are_a_distribution_whatever_the_logits(row: np.ndarray) -> None:
    rule = Softmax(output="y", activation="softmax", top_k=100)
    manifest = msgspec.structs.replace(manifest_for("onnx"), postprocess=rule)
    best = classify(manifest, {"y": row[None]})
    assert sum(guess.score for guess in best) == pytest.approx(1.0)
    assert best[0].index == row.argmax()
    assert all(a.score >= b.score for a, b in pairwise(best))


def test_logits_too_close_for_a_softmax_keep_their_order() -> None:
    rule = Softmax(output="y", activation="softmax")
    manifest = msgspec.structs.replace(manifest_for("onnx"), postprocess=rule)
    best = classify(manifest, {"y": np.array([[0.0, 1e-45]], np.float32)})
    assert [guess.index for guess in best] == [1, 0]


def test_what_has_no_decoder_is_left_as_it_is() -> None:
    for rule in (None, Undecoded()):
        manifest = msgspec.structs.replace(manifest_for("onnx"), postprocess=rule)
        answer = decode(manifest, {"logits": ROWS})
        assert isinstance(answer, Raw)
        assert answer.plain()["outputs"] == {"logits": {"dtype": "float32", "shape": [4, 4]}}
        assert answer.top() == ()


def test_outputs_that_cannot_be_decoded_are_one_error() -> None:
    for outputs in ({}, {"logits": np.full((1, 10), np.nan, np.float32)}):
        with pytest.raises(UsageError) as caught:
            classify(manifest_for("onnx"), outputs)
        assert caught.value.reason == "bad_output"
