"""`edgepack build --target onnx-mobile`: what the bundle asks of a device, and what is inside."""

import json
from pathlib import Path

import numpy as np
import pytest

from digits import LABELS
from edgepack.bundle import open_bundle
from edgepack_targets import cpu, registry
from edgepack_targets.annotation import facts_of
from edgepack_targets.interface import MODEL_FILES
from packager_rig import OnnxDigits, edgepack

AVX512 = "avx512f" in cpu.features()


@pytest.fixture(scope="module")
def home(digits: OnnxDigits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mobile")
    (home / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    said = (
        "--labels", "labels.txt", "--preprocess", '{"color": "gray"}', "--unsigned", "--json",
        "--evaluate", digits.evaluation,
    )  # fmt: skip
    for extra in (
        ("--target", "onnx-mobile", "--target", "onnx", "--precision", "int8",
         "--calibration", digits.calibration, "--max-drop", "0.01"),
        ("--target", "onnx-mobile", "--arch", "amd64"),
    ):  # fmt: skip
        done = edgepack("build", digits.model, *extra, *said, cwd=home)
        assert done.code == 0, done.err
    return home / "dist"


@pytest.mark.parametrize(
    ("name", "arch", "features"),
    [
        ("digits-0.1.0-onnx-mobile-int8-aarch64", "aarch64", ()),
        ("digits-0.1.0-onnx-mobile-fp32-x86_64", "x86_64", ("avx512f",) if AVX512 else ()),
        ("digits-0.1.0-onnx-int8", "", ()),
    ],
)
def test_a_bundle_asks_for_the_machine_it_was_written_for(
    home: Path, name: str, arch: str, features: tuple[str, ...], tmp_path: Path
) -> None:
    with open_bundle(home / f"{name}.edgepack") as opened:
        opened.extract(tmp_path)
        manifest = opened.manifest
    assert manifest.target.arch == ((arch,) if arch else ())
    assert manifest.target.cpu_features == features
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == set(MODEL_FILES[manifest.target.runtime])
    model = tmp_path / "model" / MODEL_FILES[manifest.target.runtime][0]
    assert registry.find(manifest.target.runtime).annotations(model) == facts_of(manifest)


def test_the_report_has_the_verdict_on_phone_accelerators(home: Path) -> None:
    report = json.loads((home / "digits-0.1.0-onnx-mobile-int8-aarch64.report.json").read_text())
    assert report["applied"]["usability"].keys() == {
        "nnapi", "coreml_neuralnetwork", "coreml_mlprogram",
    }  # fmt: skip
    assert report["applied"]["int8_share"] > 0.99


def test_int8_is_the_same_model_in_both_formats(home: Path, digits: OnnxDigits) -> None:
    answers = {}
    for target in ("onnx", "onnx-mobile"):
        (bundle,) = home.glob(f"*-{target}-int8*.edgepack")
        out = home / f"{target}.npz"
        done = edgepack("run", bundle, "--input", digits.calibration, "--out", out, cwd=home)
        assert done.code == 0, done.err
        with np.load(out) as data:
            answers[target] = data["logits"].argmax(axis=1)
    assert (answers["onnx"] == answers["onnx-mobile"]).mean() >= 0.99
