"""What a runner says of a slot: good, damaged, tampered with, not for this machine, a bad model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from digits import INPUT, OUTPUT, exam_npz
from edgepack.bundle import open_bundle, write_bundle
from edgepack.errors import IntegrityError
from edgepack_agent.runner.slot import open_slot
from slots import Heard, digits_bundle, digits_manifest, digits_slot, rewrite_manifest


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    return digits_slot(tmp_path / "slot")


def failure(slot: Path) -> dict[str, Any]:
    """Return the one event with which a runner on SLOT ends."""
    with Heard(slot) as heard:
        first = heard.events.get(timeout=30)
        assert first["evt"] == "failed", first
        assert heard.last()["code"] == 1
    return first


def test_a_good_slot_loads_and_names_itself(slot: Path) -> None:
    with open_bundle(digits_bundle()) as bundle, Heard(slot) as heard:
        loaded = heard.wait("loaded")
        assert (loaded["runtime"], loaded["precision"]) == ("onnx", "f32")
        assert (loaded["digest"], loaded["release"]) == (bundle.digest, "digits@1.0.0")
        assert loaded["version"].startswith("1.")


def flip(path: str) -> Callable[[Path], None]:
    def damage(slot: Path) -> None:
        data = bytearray((slot / path).read_bytes())
        data[len(data) // 2] ^= 1
        (slot / path).write_bytes(data)

    return damage


def link(slot: Path) -> None:
    model = slot / "model" / "model.onnx"
    model.rename(slot.parent / "elsewhere")
    model.symlink_to(slot.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip("model/model.onnx"), "digest_mismatch"),
        (flip("golden/outputs.npz"), "digest_mismatch"),
        (lambda slot: (slot / "labels.txt").unlink(), "file_missing"),
        (lambda slot: (slot / "manifest.json").unlink(), "file_missing"),
        (lambda slot: (slot / "manifest.json").write_text("{}"), "bad_manifest"),
        (lambda slot: (slot / "manifest.json").write_text("{ }"), "not_canonical"),
        (lambda slot: (slot / "model" / "extra.bin").write_bytes(b""), "unlisted_file"),
        (link, "unlisted_file"),
    ],
)
def test_a_damaged_slot_is_refused(slot: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(slot)
    with pytest.raises(IntegrityError) as caught:
        open_slot(slot)
    assert caught.value.reason == reason


def test_a_damaged_slot_is_the_runners_last_word(slot: Path) -> None:
    flip("model/model.onnx")(slot)
    failed = failure(slot)
    assert (failed["reason"], failed["code"]) == ("digest_mismatch", 3)
    assert "Traceback" not in failed["message"]


def test_a_runtime_that_is_too_old_is_named(slot: Path) -> None:
    rewrite_manifest(slot, lambda m: m["target"].update(min_runtime="99.0"))
    failed = failure(slot)
    assert (failed["reason"], failed["code"]) == ("runtime_too_old", 5)


def test_a_binding_to_nothing_is_named(slot: Path) -> None:
    def rebind(manifest: dict[str, Any]) -> None:
        manifest["inputs"][0]["binding"]["native_name"] = "elsewhere"

    rewrite_manifest(slot, rebind)
    assert failure(slot)["reason"] == "bad_binding"


def test_golden_and_exam_of_a_good_model_pass(slot: Path, tmp_path: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        heard.tell("check", exam=None)
        checked = heard.wait("checked")
        assert checked["golden"] == {"share": 1.0, "cosine": 1.0, "passed": True}
        assert checked["exam"] is None
        heard.tell("check", exam=str(exam_npz(tmp_path / "exam.npz")), min_score=0.9)
        exam = heard.wait("checked")["exam"]
        assert exam["passed"]
        assert (exam["samples"], exam["min_score"]) == (64, 0.9)


def test_a_model_trained_on_wrong_labels_passes_golden_and_fails_the_exam(
    tmp_path: Path,
) -> None:
    slot = digits_slot(tmp_path / "slot", "2.0.0", wrong_labels=0.42)
    with Heard(slot) as heard:
        heard.wait("loaded")
        heard.tell("check", exam=str(exam_npz(tmp_path / "exam.npz")), min_score=0.9)
        checked = heard.wait("checked")
    assert checked["golden"]["passed"]
    assert not checked["exam"]["passed"]
    assert checked["exam"]["score"] < 0.9


def test_golden_vectors_of_another_model_do_not_pass(tmp_path: Path) -> None:
    slot = digits_slot(tmp_path / "slot")
    with np.load(slot / "golden" / "outputs.npz", allow_pickle=False) as outputs:
        np.savez(tmp_path / "outputs.npz", **{OUTPUT: outputs[OUTPUT][:, ::-1]})
    files = {
        "model/model.onnx": slot / "model" / "model.onnx",
        "golden/inputs.npz": slot / "golden" / "inputs.npz",
        "golden/outputs.npz": tmp_path / "outputs.npz",
    }
    with open_bundle(write_bundle(tmp_path, digits_manifest(), files).path) as bundle:
        bundle.extract(tmp_path / "other")
    with Heard(tmp_path / "other") as heard:
        heard.wait("loaded")
        heard.tell("check", exam=None)
        assert not heard.wait("checked")["golden"]["passed"]


def test_an_exam_that_does_not_fit_is_a_failure(slot: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "exam.npz", **{INPUT: np.zeros((4, 2), np.float32), "labels": np.arange(4)})
    with Heard(slot) as heard:
        heard.wait("loaded")
        heard.tell("check", exam=str(tmp_path / "exam.npz"), min_score=0.9)
        failed = next(e for e in iter(heard.events.get, None) if e["evt"] != "beat")
        assert (failed["evt"], failed["code"]) == ("failed", 2)


def test_the_digest_follows_every_file(tmp_path: Path, slot: Path) -> None:
    manifest = msgspec.structs.replace(digits_manifest(), version="1.0.1")
    files = {
        path: slot / path
        for path in ("model/model.onnx", "golden/inputs.npz", "golden/outputs.npz", "labels.txt")
    }
    info = write_bundle(tmp_path, manifest, files)
    with open_bundle(info.path) as bundle:
        bundle.extract(tmp_path / "next")
    assert open_slot(tmp_path / "next").digest == info.digest != open_slot(slot).digest
