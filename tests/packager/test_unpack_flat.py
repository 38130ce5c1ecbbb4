"""A bundle taken apart for an app: `model.json` is true of the model, and so is the page."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from digits import (
    INPUT,
    LABELS,
    accuracy,
    calibration_npz,
    digits_data,
    digits_folder,
    digits_onnx,
    evaluation_npz,
)
from digits_targets import converted, manifest_for, quantized, subject
from edgepack.bundle import open_bundle, write_bundle
from edgepack.errors import IntegrityError
from edgepack.manifest import Binding, Manifest
from edgepack_packager.adapters.embedding import write_flat
from edgepack_packager.core.embedding import EmbeddedModel, embedded
from edgepack_targets.interface import Quantization
from packager_rig import edgepack

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "embed-in-an-app.md"


def flat(home: Path, manifest: Manifest, model_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Return a bundle of the model in MODEL_DIR taken apart, and its model.json."""
    home.mkdir(exist_ok=True)
    for name in ("inputs", "outputs"):
        np.savez(home / f"{name}.npz", x=np.zeros(1))
    files = {f"model/{path.name}": path for path in sorted(model_dir.iterdir())}
    files |= {f"golden/{name}.npz": home / f"{name}.npz" for name in ("inputs", "outputs")}
    (home / "app").mkdir()
    with open_bundle(write_bundle(home / "dist", manifest, files).path) as opened:
        write_flat(opened, home / "app")
    return home / "app", json.loads((home / "app" / "model.json").read_text())


def prepared(said: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """Return IMAGE as the input, by model.json alone, as an app does it."""
    rule, spec = said["preprocess"], said["inputs"][0]
    assert rule["input"] == spec["name"]
    small = Image.fromarray(image).resize((rule["width"], rule["height"]))
    tensor = np.asarray(small, np.float32)[..., None]
    tensor = (tensor / rule["scale"] - np.array(rule["mean"])) / np.array(rule["std"])
    tensor = tensor.transpose(2, 0, 1) if spec["layout"] == "NCHW" else tensor
    return tensor[None].astype(np.float32).reshape(spec["shape"])


def answers(home: Path, said: dict[str, Any], images: np.ndarray) -> np.ndarray:
    """Return what the model in HOME says of IMAGES, called as an app calls its runtime."""
    spec, out = said["inputs"][0], said["outputs"][0]
    if said["runtime"] != "tflite":
        session = ort.InferenceSession(home / said["model"], providers=["CPUExecutionProvider"])
        feeds = ({spec["name"]: prepared(said, image)} for image in images)
        return np.concatenate([session.run([out["name"]], feed)[0] for feed in feeds])
    runner = Interpreter(str(home / said["model"])).get_signature_runner()
    rows = []
    for image in images:
        tensor = prepared(said, image)
        if step := spec["quantization"]:
            steps = np.rint(tensor / step["scale"]) + step["zero_point"]
            limits = np.iinfo(spec["dtype"])
            tensor = np.clip(steps, limits.min, limits.max).astype(spec["dtype"])
        row = runner(**{spec["name"]: tensor})[out["name"]]
        if step := out["quantization"]:
            row = (row.astype(np.float32) - step["zero_point"]) * step["scale"]
        rows.append(row)
    return np.concatenate(rows)


@pytest.mark.parametrize("target", ["onnx-mobile", "tflite", "onnx"])
def test_an_app_needs_nothing_but_the_folder(target: str, tmp_path: Path) -> None:
    home, said = flat(tmp_path, manifest_for(target), converted(target))
    test = digits_data()[1].head(64)
    got = answers(home, said, test.images)
    np.testing.assert_allclose(got, subject(target).expected["logits"], rtol=1e-3, atol=1e-3)
    labels = (home / said["labels"]).read_text().splitlines()
    assert tuple(labels) == LABELS
    names = {path.name for path in home.iterdir()}
    assert names == {"labels.txt", "model.json", *(file["path"] for file in said["files"])}
    assert said["model"] in names


def test_integers_are_described_where_the_app_has_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    one = subject("tflite")
    how = Quantization("int8", io="int8")
    one.target.quantize(one.model_dir, tmp_path / "int8", how, one.native_calibration())
    home, said = flat(tmp_path / "b", manifest_for("tflite", "int8"), tmp_path / "int8")
    spec = said["inputs"][0]
    assert spec["dtype"] == "int8"
    assert spec["quantization"]["scale"] > 0
    test = digits_data()[1].head(200)
    assert accuracy(answers(home, said, test.images), test.labels) > 0.95


def test_float_tensors_of_an_int8_model_need_no_steps(tmp_path: Path) -> None:
    _, said = flat(tmp_path, manifest_for("tflite", "int8"), quantized("tflite"))
    assert [spec["quantization"] for spec in (*said["inputs"], *said["outputs"])] == [None, None]
    assert said["inputs"][0]["dtype"] == "float32"


def test_everything_is_in_the_models_own_layout(tmp_path: Path) -> None:
    _, said = flat(tmp_path, manifest_for("tflite"), converted("tflite"))
    spec = said["inputs"][0]
    assert (spec["shape"], spec["layout"], spec["public_name"]) == ([1, 16, 16, 1], "NHWC", INPUT)
    assert (said["preprocess"]["width"], said["preprocess"]["height"]) == (16, 16)


def test_numbers_are_given_for_every_channel() -> None:
    plain = manifest_for("onnx")
    rule = msgspec.structs.replace(plain.preprocess, color="rgb", mean=(0.5,), std=(0.1, 0.2, 0.3))
    spec = msgspec.structs.replace(plain.inputs[0], shape=(1, 3, 20, 30))
    said = embedded(msgspec.structs.replace(plain, preprocess=rule, inputs=(spec,)), "d", {})
    assert said.preprocess is not None
    assert said.preprocess.mean == (0.5, 0.5, 0.5)
    assert said.preprocess.std == (0.1, 0.2, 0.3)
    assert (said.preprocess.height, said.preprocess.width) == (20, 30)


def test_a_model_without_images_or_labels_says_so() -> None:
    bare = msgspec.structs.replace(
        manifest_for("onnx"), preprocess=None, postprocess=None, labels=(), task="raw"
    )
    said = embedded(bare, "d", {})
    assert (said.preprocess, said.postprocess, said.labels) == (None, None, None)


def test_names_are_those_of_the_model() -> None:
    plain = manifest_for("onnx")
    turn = msgspec.structs.replace
    said = embedded(
        turn(
            plain,
            inputs=(turn(plain.inputs[0], binding=Binding(native_name="x:0")),),
            outputs=(turn(plain.outputs[0], binding=Binding(native_name="y:0")),),
        ),
        "d",
        {},
    )
    assert said.preprocess is not None
    assert said.postprocess is not None
    assert (said.preprocess.input, said.postprocess.output) == ("x:0", "y:0")
    assert (said.inputs[0].name, said.inputs[0].public_name) == ("x:0", INPUT)


def test_a_manifest_that_contradicts_itself_is_an_error() -> None:
    plain = manifest_for("onnx")
    rule = msgspec.structs.replace(plain.preprocess, input="nowhere")
    with pytest.raises(IntegrityError, match="nowhere"):
        embedded(msgspec.structs.replace(plain, preprocess=rule), "d", {})


def shortened(real: Any, told: Any, where: str = "model.json") -> None:
    """Assert that all that is TOLD is REAL."""
    if isinstance(told, dict):
        for key, value in told.items():
            shortened(real[key], value, f"{where}: {key}")
    elif isinstance(told, list) and told and isinstance(told[0], dict):
        for one, other in zip(real, told, strict=True):
            shortened(one, other, where)
    else:
        assert real == told, where


def test_the_page_works_as_written(tmp_path: Path) -> None:
    digits_onnx(tmp_path / "digits.onnx")
    calibration_npz(tmp_path / "calibration.npz")
    evaluation_npz(tmp_path / "evaluate.npz")
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    made = edgepack("keys", "create", "publisher.pem", "--no-passphrase", cwd=tmp_path)
    assert made.code == 0, made.err
    text = PAGE.read_text()
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for line in lines.replace("\\\n", " ").splitlines():
        done = edgepack(*shlex.split(line)[1:], cwd=tmp_path)
        assert done.code == 0, f"{line}\n{done.err}"
    said = json.loads((tmp_path / "assets" / "model.json").read_text())
    msgspec.convert(said, EmbeddedModel)
    (told,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    told = json.loads(told)
    assert told.pop("min_runtime").split(".")[0] == said["min_runtime"].split(".")[0]
    shortened(said, told)
    images = digits_data()[1].head(16)
    got = answers(tmp_path / "assets", said, images.images)
    # What the page tells its readers to compare with.
    digits_folder(tmp_path / "photos", 16)
    (bundle,) = (tmp_path / "dist").glob("*.edgepack")
    ours = edgepack("run", bundle, "--source", tmp_path / "photos", "--json", cwd=tmp_path)
    best = [int(result["answer"]["top"][0]["label"]) for result in ours.document["results"]]
    assert got.argmax(axis=1).tolist() == best
