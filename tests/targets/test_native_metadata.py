"""What a model file says about itself: where other tools look, and whoever wrote it."""

import json
import zipfile
from pathlib import Path
from shutil import copytree
from typing import Any

import flatbuffers
import numpy as np
import onnx
import openvino as ov
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from digits import LABELS, digits_onnx
from digits_targets import converted, manifest_for, quantized
from digits_tflite import digits_tflite
from edgepack.errors import IntegrityError, UsageError
from edgepack.manifest import Preprocess
from edgepack_packager.workers import convert as steps
from edgepack_targets import annotation, registry
from edgepack_targets.interface import MODEL_FILES

FORMATS = ("onnx", "openvino", "tflite")
FACTS: dict[str, Any] = {
    "name": "digits",
    "version": "1.2.3",
    "task": "classify",
    "labels": ["traffic light", "caf\u00e9", "'quoted'"],
    "preprocess": {
        "input": "image",
        "color": "bgr",
        "resize": {"mode": "letterbox", "interpolation": "bilinear", "pad": 114},
        "scale": 255.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "inputs": ["image"],
    "outputs": ["logits"],
    "license": "Apache-2.0",
}


def annotated(target: str, where: Path, facts: dict[str, Any] = FACTS) -> Path:
    """Return the model file of a copy of TARGET's digits with FACTS."""
    copytree(converted(target), where)
    registry.find(target).annotate(where, facts)
    return where / MODEL_FILES[target][0]


def read(target: str, path: Path) -> dict[str, Any]:
    return registry.find(target).annotations(path)


@pytest.mark.parametrize("target", FORMATS)
def test_everything_comes_back(target: str, tmp_path: Path) -> None:
    assert read(target, annotated(target, tmp_path / "one")) == FACTS


@pytest.mark.parametrize("target", FORMATS)
def test_an_int8_model_carries_them_too(target: str, tmp_path: Path) -> None:
    copytree(quantized(target), tmp_path / "int8")
    before = registry.find(target).applied(tmp_path / "int8")
    registry.find(target).annotate(tmp_path / "int8", FACTS)
    assert read(target, tmp_path / "int8" / MODEL_FILES[target][0]) == FACTS
    assert registry.find(target).applied(tmp_path / "int8") == before


def test_the_facts_of_a_manifest_are_those_that_a_build_writes() -> None:
    facts = annotation.facts_of(manifest_for("onnx"))
    assert facts["labels"] == list(LABELS)
    assert facts["preprocess"]["color"] == "gray"
    assert "license" not in facts, "what is not known is left out"
    assert json.loads(annotation.encode(facts)) == facts


def test_onnx_says_it_in_the_words_of_others(tmp_path: Path) -> None:
    model = onnx.load(annotated("onnx", tmp_path / "one"))
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert said["names"] == "{0: 'traffic light', 1: 'caf\u00e9', 2: \"'quoted'\"}"
    assert said["Image.BitmapPixelFormat"] == "Bgr8"
    assert "Image.NominalPixelRange" not in said, "ONNX has no name for this range"
    assert said["license"] == "Apache-2.0"
    plain = {"preprocess": {"input": "image", "color": "rgb"}}
    said = annotation.props(plain)
    assert said["Image.NominalPixelRange"] == "Normalized_0_1"


def test_openvino_says_it_as_model_api_reads_it(tmp_path: Path) -> None:
    model = ov.Core().read_model(annotated("openvino", tmp_path / "one"))
    keys = ("labels", "model_type", "reverse_input_channels", "resize_type", "mean_values")
    said = {key: model.get_rt_info(["model_info", key]).value for key in (*keys, "scale_values")}
    assert said["labels"] == "traffic_light caf\u00e9 'quoted'", "there, a space ends a label"
    assert said["reverse_input_channels"] == "False"
    assert said["resize_type"] == "fit_to_window_letterbox"
    assert said["model_type"] == "Classification"
    means, scales = (np.array(said[k].split(), float) for k in ("mean_values", "scale_values"))
    pixel = np.array([10.0, 20.0, 30.0])
    rule = Preprocess(**{k: FACTS["preprocess"][k] for k in ("input", "scale", "mean", "std")})
    ours = (pixel / rule.scale - np.array(rule.mean)) / np.array(rule.std)
    np.testing.assert_allclose((pixel - means) / scales, ours, rtol=1e-6)


def test_openvino_weights_are_not_touched(tmp_path: Path) -> None:
    annotated("openvino", tmp_path / "one")
    for name in ("model.bin",):
        assert (tmp_path / "one" / name).read_bytes() == (converted("openvino") / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["model.bin", "model.xml"]


def test_tflite_data_stays_aligned(tmp_path: Path) -> None:
    data = annotated("tflite", tmp_path / "one").read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    places = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if not buffer.DataIsNone():
            places.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(places) > 6
    assert not [place for place in places if place % 16]


def test_an_ort_model_keeps_what_the_onnx_model_said(tmp_path: Path) -> None:
    source = annotated("onnx", tmp_path / "onnx")
    (tmp_path / "out").mkdir()
    registry.find("onnx-mobile").convert(source, "onnx", tmp_path / "out")
    assert read("onnx-mobile", tmp_path / "out" / "model.ort") == FACTS


@pytest.mark.parametrize("target", FORMATS)
def test_a_model_that_says_nothing_has_no_facts(target: str) -> None:
    assert read(target, converted(target) / MODEL_FILES[target][0]) == {}


def test_what_ultralytics_and_winml_wrote_is_understood(tmp_path: Path) -> None:
    model = onnx.load(digits_onnx(tmp_path / "model.onnx"))
    said = {
        "names": "{0: 'person', 1: 'bicycle'}", "task": "detect", "license": "AGPL-3.0",
        "Image.BitmapPixelFormat": "Rgb8", "Image.NominalPixelRange": "Normalized_1_1",
    }  # fmt: skip
    onnx.helper.set_model_props(model, said)
    onnx.save(model, tmp_path / "model.onnx")
    found = read("onnx", tmp_path / "model.onnx")
    assert (found["labels"], found["task"], found["license"]) == (
        ["person", "bicycle"], "detect", "AGPL-3.0",
    )  # fmt: skip
    rule = found["preprocess"]
    assert (rule["color"], rule["scale"], rule["mean"], rule["std"]) == ("rgb", 255.0, [0.5], [0.5])


def test_what_model_api_wrote_is_understood(tmp_path: Path) -> None:
    model = ov.Core().read_model(converted("openvino") / "model.xml")
    said: dict[str, Any] = {
        "model_type": "Classification", "labels": "cat dog", "reverse_input_channels": True,
        "mean_values": [123.675, 116.28, 103.53], "scale_values": "58.395 57.12 57.375",
        "resize_type": "crop", "pad_value": "0",
    }  # fmt: skip
    for key, value in said.items():
        model.set_rt_info(value, ["model_info", key])
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    found = read("openvino", tmp_path / "model.xml")
    assert (found["labels"], found["task"]) == (["cat", "dog"], "classify")
    rule = found["preprocess"]
    assert rule["color"] == "rgb"
    assert rule["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert rule["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert rule["resize"]["mode"] == "crop"
    model.set_rt_info("True", ["model_info", "embedded_processing"])
    ov.save_model(model, tmp_path / "inside.xml", compress_to_fp16=False)
    assert "preprocess" not in read("openvino", tmp_path / "inside.xml"), "it is in the graph"


def with_standard_metadata(path: Path, files: dict[str, str]) -> Path:
    """Add to PATH a TFLITE_METADATA entry and FILES in an appended zip, as Android's tools do."""
    model = flatbuffer_utils.read_model(path)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(b"M001", np.uint8)
    model.buffers.append(buffer)
    model.metadata = [schema.MetadataT(name="TFLITE_METADATA", buffer=len(model.buffers) - 1)]
    path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_labels_beside_standard_tflite_metadata_are_read(tmp_path: Path) -> None:
    path = digits_tflite(tmp_path / "model.tflite")
    with_standard_metadata(path, {"labels.txt": "cat\nbig dog\n"})
    assert read("tflite", path) == {"labels": ["cat", "big dog"]}
    registry.find("tflite").annotate(tmp_path, FACTS)
    assert read("tflite", path) == FACTS
    two = digits_tflite(tmp_path / "two.tflite")
    with_standard_metadata(two, {"labels.txt": "cat\n", "vocabulary.txt": "a\n"})
    assert read("tflite", two) == {}, "which of them holds the labels is not known"


@pytest.mark.parametrize(
    "said",
    [
        {"edgepack": '{"labels": 7}'},
        {"edgepack": '{"preprocess": {"input": "x", "color": "mauve"}}'},
        {"edgepack": "{"},
        {"edgepack": "[]"},
        {"edgepack": '{"labels": ["' + "x" * (1 << 20) + '"]}'},
        {"names": "__import__('os').system('true')"},
        {"names": "{1: 'one'}"},
        {"names": "[" * 5000},
        {"names": "{0: 'x' * 99999999}"},
        {"names": "{[]: 1}"},
        {"names": "{0: 0x" + "f" * 9000 + "}"},
        {"names": "{0: '\\ud800'}"},
        {"license": "\ud800"},
        {"edgepack": '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"},
        {"task": "world domination"},
        {"Image.BitmapPixelFormat": "Rgb8"},
        {"Image.NominalPixelRange": "Normalized_0_1", "Image.BitmapPixelFormat": "Nv12"},
    ],
)
def test_nonsense_counts_as_nothing(said: dict[str, str]) -> None:
    assert not {k: v for k, v in annotation.of_props(said).items() if v}


@pytest.mark.parametrize(
    "said",
    [
        {"mean_values": "a b c"},
        {"mean_values": "1 2 3", "resize_type": "no_such"},
        {"mean_values": "1", "pad_value": "-1"},
        {"mean_values": "1", "pad_value": "1e3"},
        {"mean_values": "1", "pad_value": "9" * 5000},
        {"mean_values": "nan"},
        {"mean_values": "1", "scale_values": "0"},
    ],
)
def test_a_rule_that_is_not_understood_is_no_rule(said: dict[str, str]) -> None:
    assert "preprocess" not in annotation.of_model_info(said)


def strange(path: Path, index: int | None) -> list[bytes]:
    """Let an entry called ours point to the buffer INDEX, None: of weights; return all buffers."""
    model = flatbuffer_utils.read_model(path)
    buffers = [b"" if b.data is None else bytes(b.data) for b in model.buffers]
    place = buffers.index(max(buffers, key=len)) if index is None else index
    model.metadata = [schema.MetadataT(name="edgepack", buffer=place)]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return buffers


@pytest.mark.parametrize("index", [0, None], ids=["no data", "weights"])
def test_a_strangers_entry_in_tflite_costs_no_weights(index: int | None, tmp_path: Path) -> None:
    path = Path(copytree(converted("tflite"), tmp_path / "model")) / "model.tflite"
    buffers = strange(path, index)
    assert read("tflite", path) == {}
    registry.find("tflite").annotate(path.parent, FACTS)
    after = flatbuffer_utils.read_model(path).buffers
    assert set(filter(None, buffers)) <= {bytes(b.data) for b in after if b.data is not None}
    assert read("tflite", path) == FACTS


def test_an_entry_in_tflite_that_points_nowhere_is_an_error(tmp_path: Path) -> None:
    path = Path(copytree(converted("tflite"), tmp_path / "model")) / "model.tflite"
    strange(path, 10**6)
    with pytest.raises(IntegrityError):
        read("tflite", path)
    with pytest.raises(IntegrityError):
        registry.find("tflite").annotate(path.parent, FACTS)


def test_later_versions_may_know_more() -> None:
    assert annotation.decode('{"name": "x", "mood": "sunny"}') == {"name": "x"}


@pytest.mark.parametrize(
    "facts", [{"labels": "abc"}, {"task": "dance"}, {"preprocess": {"color": "rgb"}}]
)
def test_facts_of_the_wrong_form_are_not_written(facts: dict[str, Any], tmp_path: Path) -> None:
    copytree(converted("onnx"), tmp_path / "one")
    before = (tmp_path / "one" / "model.onnx").read_bytes()
    with pytest.raises(UsageError, match="facts"):
        registry.find("onnx").annotate(tmp_path / "one", facts)
    assert (tmp_path / "one" / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("data", [b"\xff", b"\xff" * 64], ids=len)
def test_a_file_that_is_no_model_is_an_error(target: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / MODEL_FILES[target][0]
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        read(target, path)


@pytest.mark.parametrize("target", FORMATS)
def test_the_conversion_step_writes_what_the_build_knows(target: str, tmp_path: Path) -> None:
    source = {"tflite": digits_tflite, "onnx": digits_onnx, "openvino": digits_onnx}[target]
    form = "tflite" if target == "tflite" else "onnx"
    source(tmp_path / f"model.{form}")
    (tmp_path / "out").mkdir()
    args = {"from": str(tmp_path), "target": target, "source_format": form, "annotations": FACTS}
    steps.convert(args, tmp_path / "out", lambda _: None)
    found = steps.annotations(
        {"kind": target, "source": str(tmp_path / "out" / MODEL_FILES[target][0])},
        tmp_path,
        lambda _: None,
    )
    assert found == {"annotations": FACTS}
    nothing = steps.annotations({"kind": "keras", "source": "x"}, tmp_path, lambda _: None)
    assert nothing == {"annotations": {}}
