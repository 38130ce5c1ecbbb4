"""Accuracy control on a net that plain quantisation spoils: refused with names, or searched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import digits_data
from edgepack.errors import UsageError
from edgepack_packager.adapters.datasets import Dataset
from edgepack_packager.adapters.proof import Reference
from edgepack_packager.searching import separate
from hard_digits import hard_digits_onnx, hard_digits_tflite
from packager_rig import Done, edgepack

LIMIT = 0.005
CALIBRATION = 200


@dataclass(frozen=True)
class Hard:
    """The hard net and its data; the search sees training digits, the holdout is the test set."""

    home: Path
    model: Path
    calibration: Path
    search: Path
    holdout: Path

    def build(self, out: str, *args: str) -> Done:
        return edgepack(
            "build", self.model, "--precision", "int8", "--calibration", self.calibration,
            "--unsigned", "--json", "--no-cache", "--out", out, *args, cwd=self.home,
        )  # fmt: skip

    def report(self, built: dict[str, Any]) -> dict[str, Any]:
        path = (self.home / built["path"]).with_suffix(".report.json")
        return dict(json.loads(path.read_text()))


def prepare(home: Path, model: Path, *, nhwc: bool) -> Hard:
    train, test = digits_data()
    seen = train.head(len(train.labels) - CALIBRATION, start=CALIBRATION)
    parts = {"calibration": train.head(CALIBRATION), "search": seen, "holdout": test}
    for name, part in parts.items():
        inputs = part.inputs.transpose(0, 2, 3, 1) if nhwc else part.inputs
        labels = {} if name == "calibration" else {"labels": part.labels}
        np.savez(home / f"{name}.npz", image=inputs, **labels)
    return Hard(home, model, *(home / f"{name}.npz" for name in parts))


@pytest.fixture(scope="session")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Hard:
    home = tmp_path_factory.mktemp("hard")
    return prepare(home, hard_digits_onnx(home / "hard.onnx"), nhwc=False)


@pytest.fixture(scope="session")
def hard_tflite(tmp_path_factory: pytest.TempPathFactory) -> Hard:
    home = tmp_path_factory.mktemp("hard-tflite")
    return prepare(home, hard_digits_tflite(home / "hard.tflite"), nhwc=True)


@pytest.fixture(scope="session")
def plain(hard: Hard) -> Done:
    return hard.build(
        "plain", "--target", "openvino", "--target", "onnx", "--precision", "fp32",
        "--evaluate", str(hard.holdout),
    )  # fmt: skip


@pytest.fixture(scope="session")
def searched(hard: Hard) -> Done:
    return hard.build(
        "auto", "--target", "openvino", "--target", "onnx", "--auto", "--max-drop", str(LIMIT),
        "--evaluate", str(hard.search), "--holdout", str(hard.holdout),
    )  # fmt: skip


TARGETS = pytest.mark.parametrize("target", ["openvino", "onnx"])


@pytest.mark.scale
@TARGETS
def test_plain_int8_loses(plain: Done, target: str) -> None:
    assert plain.code == 0, plain.err
    assert abs(plain.bundle(target, "fp32")["metrics"]["drop"]) < 0.002
    assert plain.bundle(target, "int8")["metrics"]["drop"] >= 0.03


@pytest.mark.scale
def test_a_limit_without_a_search_is_refused_by_the_names_of_the_layers(hard: Hard) -> None:
    done = hard.build(
        "refused", "--target", "openvino", "--target", "onnx", "--max-drop", str(LIMIT),
        "--evaluate", str(hard.holdout),
    )  # fmt: skip
    assert done.code == 4
    assert not list((hard.home / "refused").glob("*.edgepack"))
    assert len(done.document["failed"]) == 2
    for failed in done.document["failed"]:
        assert (failed["code"], failed["reason"]) == (4, "max_drop")
        losses = [layer["loss"] for layer in failed["layers"]]
        assert losses == sorted(losses, reverse=True)
        assert failed["layers"][0]["operator"] in {"Gemm", "MatMul"}
        assert losses[0] > 10 * losses[1], "the layer that reads the rescaled one stands out"
    assert done.document["failed"][0]["layers"][0]["name"] in done.err
    assert "--auto" in done.err


@pytest.mark.scale
@TARGETS
def test_search_keeps_the_limit_on_a_holdout_it_never_saw(
    hard: Hard, plain: Done, searched: Done, target: str
) -> None:
    assert searched.code == 0, searched.err
    built = next(b for b in searched.document["bundles"] if b["target"] == target)
    assert built["metrics"]["drop"] <= LIMIT
    assert built["model_bytes"] < plain.bundle(target, "fp32")["model_bytes"] / 2
    report = hard.report(built)
    assert report["samples"] == len(digits_data()[1].labels)
    search = report["search"]
    assert search["samples"] == len(digits_data()[0].labels) - CALIBRATION
    attempts = search["attempts"]
    assert attempts[0]["stage"] == "asked"
    assert attempts[0]["drop"] >= 0.03
    (chosen,) = [attempt for attempt in attempts if attempt["chosen"]]
    assert chosen["drop"] <= LIMIT
    assert chosen["model_bytes"] == built["model_bytes"]
    pair = report["paired"]
    drop = (pair["lost"] - pair["gained"]) / report["samples"]
    assert drop == pytest.approx(built["metrics"]["drop"])
    assert pair["interval95"][0] <= drop <= pair["interval95"][1]


def run(hard: Hard, built: dict[str, Any], count: int) -> np.ndarray:
    """Return what a bundle answers to the first COUNT samples of the holdout."""
    np.savez(hard.home / "x.npz", image=digits_data()[1].inputs[:count])
    done = edgepack("run", built["path"], "--input", "x.npz", "--out", "y.npz", cwd=hard.home)
    assert done.code == 0, done.err
    return np.load(hard.home / "y.npz")["logits"].argmax(axis=1)


@pytest.mark.scale
def test_what_the_search_chose_runs(hard: Hard, searched: Done) -> None:
    for built in searched.document["bundles"]:
        answers = run(hard, built, 40)
        assert (answers == digits_data()[1].labels[:40]).mean() > 0.8


@pytest.mark.scale
def test_a_holdout_that_disagrees_is_exit_4(hard: Hard, plain: Done) -> None:
    """The search sees only what int8 gets right, so that it takes int8; the holdout the rest."""
    test = digits_data()[1]
    right = run(hard, plain.bundle("onnx", "fp32"), len(test.labels)) == test.labels
    kept = run(hard, plain.bundle("onnx", "int8"), len(test.labels)) == test.labels
    easy, tricky = np.flatnonzero(kept), np.flatnonzero(right & ~kept)
    rest = np.concatenate([easy[:100], tricky])
    for name, rows in (("easy", easy[100:]), ("tricky", rest)):
        np.savez(hard.home / f"{name}.npz", image=test.inputs[rows], labels=test.labels[rows])
    done = hard.build(
        "disagrees", "--target", "onnx", "--auto", "--max-drop", str(LIMIT),
        "--evaluate", "easy.npz", "--holdout", "tricky.npz",
    )  # fmt: skip
    assert (done.code, done.document["failed"][0]["reason"]) == (4, "auto_holdout")
    assert "holdout" in done.err
    assert not list((hard.home / "disagrees").glob("*.edgepack"))


@pytest.mark.scale
def test_half_of_the_evaluation_set_is_kept_for_the_result(hard: Hard) -> None:
    done = hard.build(
        "halves", "--target", "openvino", "--auto", "--max-drop", str(LIMIT),
        "--evaluate", str(hard.search),
    )  # fmt: skip
    assert done.code == 0, done.err
    report = hard.report(done.document["bundles"][0])
    count = len(digits_data()[0].labels) - CALIBRATION
    assert report["samples"] + report["search"]["samples"] == count
    assert abs(report["samples"] - report["search"]["samples"]) <= 1


@pytest.mark.scale
def test_tflite_gives_a_result_or_says_why_not(hard_tflite: Hard) -> None:
    done = hard_tflite.build(
        "auto", "--target", "tflite", "--auto", "--max-drop", str(LIMIT),
        "--evaluate", str(hard_tflite.search), "--holdout", str(hard_tflite.holdout),
    )  # fmt: skip
    if done.code:
        assert (done.code, done.document["failed"][0]["reason"]) in {
            (4, "auto_none"), (4, "auto_holdout"),
        }  # fmt: skip
        return
    (built,) = done.document["bundles"]
    assert built["metrics"]["drop"] <= LIMIT
    attempts = hard_tflite.report(built)["search"]["attempts"]
    assert attempts[0]["drop"] >= 0.03


@pytest.mark.scale
def test_holdout_that_the_search_saw_is_refused(hard: Hard) -> None:
    done = hard.build(
        "seen", "--target", "onnx", "--auto", "--max-drop", str(LIMIT),
        "--evaluate", str(hard.search), "--holdout", str(hard.search),
    )  # fmt: skip
    assert done.code == 2
    assert "holdout" in done.err


@pytest.mark.scale
@pytest.mark.parametrize(
    "args",
    [
        ("--auto", "--max-drop", "0.01"),
        ("--auto", "--evaluate", "search.npz"),
        ("--holdout", "holdout.npz", "--evaluate", "search.npz", "--max-drop", "0.01"),
        ("--auto", "--evaluate", "search.npz", "--max-drop", "0.01", "--precision", "w8"),
    ],
)
def test_searches_that_make_no_sense_are_refused(hard: Hard, args: tuple[str, ...]) -> None:
    done = hard.build("none", "--target", "onnx", *args)
    assert done.code == 2
    assert "fix:" in done.err


def reference(values: list[float]) -> Reference:
    """Return a reference on one sample of each of VALUES."""
    inputs = {"x": np.array(values, np.float32)[:, None]}
    labels = {"labels": np.arange(len(values))}
    data = Dataset(Path("x.npz"), inputs, labels, "digest")
    return Reference(inputs, {"y": inputs["x"]}, data, {"y": inputs["x"]})


def test_what_the_search_saw_is_not_judged_on() -> None:
    told: list[str] = []
    search, judged = separate(reference([1, 2, 3]), reference([3, 4, 1, 5]), 0, told.append)
    assert search.samples["x"].ravel().tolist() == [1, 2, 3]
    assert judged.samples["x"].ravel().tolist() == [4, 5]
    assert judged.evaluation is not None
    assert judged.evaluation.labels["labels"].tolist() == [1, 3]
    assert ["2 of 4 samples" in text for text in told] == [True]


def test_a_sample_that_is_there_twice_is_in_one_half_only() -> None:
    told: list[str] = []
    halves = separate(reference([1, 2, 3, 4, 1, 2, 3, 5, 6]), None, 0, told.append)
    one, two = (set(half.samples["x"].ravel().tolist()) for half in halves)
    assert not one & two
    with pytest.raises(UsageError):
        separate(reference([7, 7]), None, 0, told.append)
