"""The two proofs: golden vectors tell another device, the exam tells a bad model."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from digits import INPUT, OUTPUT, digits_data, digits_onnx, exam_npz
from digits_targets import TARGETS, converted, manifest_for, quantized
from digits_tflite import digits_tflite
from edgepack.errors import IntegrityError, UsageError
from edgepack.manifest import Manifest
from edgepack_targets import registry
from edgepack_targets.interface import Session
from edgepack_targets.pipeline.feed import run_samples
from edgepack_targets.pipeline.golden import check_exam, check_golden

MANIFEST = manifest_for("onnx")


@pytest.fixture
def session() -> Session:
    return registry.find("onnx").load(converted("onnx"), MANIFEST, threads=1)


def golden(slot: Path, session: Session, manifest: Manifest = MANIFEST) -> Path:
    """Write golden vectors to SLOT as a host would: what SESSION answers."""
    (slot / "golden").mkdir()
    samples = {INPUT: digits_data()[1].head(8).inputs}
    np.savez(slot / "golden" / "inputs.npz", **samples)
    np.savez(slot / "golden" / "outputs.npz", **run_samples(session, manifest, samples))
    return slot


def test_the_same_model_reproduces_its_golden_vectors(tmp_path: Path, session: Session) -> None:
    verdict = check_golden(session, MANIFEST, golden(tmp_path, session))
    assert verdict.passed
    assert verdict.share == 1.0
    assert verdict.cosine > 0.999999


@pytest.mark.parametrize("target", TARGETS)
def test_int8_golden_vectors_hold_on_every_target(tmp_path: Path, target: str) -> None:
    manifest = manifest_for(target, "int8")
    first = registry.find(target).load(quantized(target), manifest, threads=1)
    slot = golden(tmp_path, first, manifest)
    second = registry.find(target).load(quantized(target), manifest, threads=2)
    assert check_golden(second, manifest, slot).passed


def test_another_model_does_not_pass(tmp_path: Path, session: Session) -> None:
    slot = golden(tmp_path, session)
    digits_onnx(tmp_path / "model.onnx", wrong_labels=0.42)
    other = registry.find("onnx").load(tmp_path, MANIFEST)
    assert not check_golden(other, MANIFEST, slot).passed


def test_golden_files_must_be_those_of_the_manifest(tmp_path: Path, session: Session) -> None:
    slot = golden(tmp_path, session)
    more = msgspec.structs.replace(MANIFEST.golden, samples=9)
    with pytest.raises(IntegrityError):
        check_golden(session, msgspec.structs.replace(MANIFEST, golden=more), slot)
    (slot / "golden" / "outputs.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError):
        check_golden(session, MANIFEST, slot)


@pytest.mark.parametrize("target", TARGETS)
def test_a_bad_model_with_perfect_golden_vectors_fails_the_exam(
    tmp_path: Path, target: str
) -> None:
    exam = exam_npz(tmp_path / "exam.npz")
    scores = []
    for wrong_labels in (0.0, 0.42):
        home = tmp_path / str(wrong_labels)
        (home / "model").mkdir(parents=True)
        form = "tflite" if target == "tflite" else "onnx"
        source = home / f"model.{form}"
        (digits_tflite if form == "tflite" else digits_onnx)(source, wrong_labels)
        registry.find(target).convert(source, form, home / "model")
        manifest = manifest_for(target)
        session = registry.find(target).load(home / "model", manifest, threads=1)
        assert check_golden(session, manifest, golden(home, session, manifest)).passed
        scores.append(check_exam(session, manifest, exam, min_score=0.9))
    assert [(one.passed, one.samples) for one in scores] == [(True, 64), (False, 64)]
    assert scores[1].score < 0.75 < 0.93 < scores[0].score


def test_the_limit_itself_passes(tmp_path: Path, session: Session) -> None:
    exam = exam_npz(tmp_path / "exam.npz")
    reached = check_exam(session, MANIFEST, exam, min_score=0.0).score
    assert check_exam(session, MANIFEST, exam, min_score=reached).passed
    assert not check_exam(session, MANIFEST, exam, min_score=reached + 1e-9).passed


def test_an_exam_that_does_not_fit_is_an_error(tmp_path: Path, session: Session) -> None:
    long = digits_data()[1].head(65)
    np.savez(tmp_path / "long.npz", **{INPUT: long.inputs, "labels": long.labels})
    with pytest.raises(UsageError, match="does not fit"):
        check_exam(session, MANIFEST, tmp_path / "long.npz", 0.9)
    np.savez(tmp_path / "bare.npz", **{INPUT: long.inputs[:4]})
    with pytest.raises(UsageError) as caught:
        check_exam(session, MANIFEST, tmp_path / "bare.npz", 0.9)
    assert caught.value.reason == "bad_exam"
    with pytest.raises(UsageError):
        check_exam(session, MANIFEST, tmp_path / "none.npz", 0.9)


def test_samples_go_in_one_by_one_and_keep_their_order(session: Session) -> None:
    samples = {INPUT: digits_data()[1].head(5).inputs}
    together = run_samples(session, MANIFEST, samples)[OUTPUT]
    alone = [session.run({INPUT: image[None]})[OUTPUT][0] for image in samples[INPUT]]
    assert together.shape == (5, 10)
    assert np.array_equal(together, np.stack(alone))
