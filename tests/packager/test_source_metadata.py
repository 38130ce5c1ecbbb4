"""A build reads what its source says about itself, and writes what other servers ask for."""

import json
from pathlib import Path

import onnx
import pytest

from edgepack.bundle import open_bundle
from packager_rig import Done, OnnxDigits, edgepack

NAMES = [f"digit {number}" for number in range(10)]


@pytest.fixture(scope="module")
def home(digits: OnnxDigits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with said.onnx, which carries labels, a license and the range of its pixels."""
    home = tmp_path_factory.mktemp("said")
    model = onnx.load(digits.model)
    said = {
        "names": str(dict(enumerate(NAMES))), "license": "MIT",
        "Image.BitmapPixelFormat": "Gray8", "Image.NominalPixelRange": "Normalized_0_1",
    }  # fmt: skip
    onnx.helper.set_model_props(model, said)
    onnx.save(model, home / "said.onnx")
    return home


def build(home: Path, *more: str | Path) -> Done:
    return edgepack("build", "said.onnx", "--unsigned", "--json", *more, cwd=home)


def test_labels_license_and_pixels_need_not_be_typed_again(home: Path) -> None:
    done = build(home, "--target", "onnx", "--target", "openvino", "--emit", "ovms")
    assert done.code == 0, done.err
    assert "10 labels taken from the model's own metadata" in done.err
    for bundle in done.document["bundles"]:
        with open_bundle(home / bundle["path"]) as opened:
            manifest = opened.manifest
        assert manifest.labels == tuple(NAMES)
        assert manifest.license == "MIT"
        assert manifest.task == "classify"
        assert manifest.preprocess is not None
        assert (manifest.preprocess.input, manifest.preprocess.color) == ("image", "gray")
        folder = (home / bundle["path"]).with_suffix(".ovms")
        config = json.loads((folder / "model_config.json").read_text())
        assert config["model_config_list"][0]["config"]["name"] == "said"


def test_flags_win(home: Path) -> None:
    (home / "labels.txt").write_text("".join(f"{number}\n" for number in range(10)))
    done = build(home, "--target", "onnx", "--labels", "labels.txt", "--version", "2.0.0")
    assert done.code == 0, done.err
    (bundle,) = done.document["bundles"]
    with open_bundle(home / bundle["path"]) as opened:
        assert opened.manifest.labels == tuple("0123456789")


def test_what_a_server_cannot_take_fails_that_variant(home: Path) -> None:
    done = build(
        home, "--target", "onnx", "--target", "onnx-mobile", "--emit", "triton", "--out", "three"
    )
    assert done.code == 8
    (failed,) = done.document["failed"]
    assert (failed["target"], failed["reason"]) == ("onnx-mobile", "not_for_consumer")
    names = {path.name for path in (home / "three").iterdir()}
    assert "said-0.1.0-onnx-fp32.triton" in names
    assert not [name for name in names if "mobile" in name], "no bundle of what was refused"
