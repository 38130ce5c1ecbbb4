"""Folders for Frigate, Triton and OpenVINO Model Server, made from real bundles."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from digits import INPUT, LABELS, OUTPUT, digits_data
from digits_targets import converted, manifest_for, subject
from edgepack.bundle import open_bundle, write_bundle
from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Binding, Manifest, Preprocess, Resize, TensorSpec
from edgepack_packager.adapters.emit import emit
from edgepack_packager.core.emit import KINDS, emission
from edgepack_targets import registry

CLASSES = ("person", "2 wheeler", "car")


def bundle(home: Path, manifest: Manifest, model_dir: Path) -> tuple[Manifest, Path]:
    """Write a bundle of the model in MODEL_DIR and take it apart; return manifest and model."""
    home.mkdir(exist_ok=True)
    for name in ("inputs", "outputs"):
        np.savez(home / f"{name}.npz", x=np.zeros(1))
    files = {f"model/{path.name}": path for path in sorted(model_dir.iterdir())}
    files |= {f"golden/{name}.npz": home / f"{name}.npz" for name in ("inputs", "outputs")}
    info = write_bundle(home / "dist", manifest, files)
    with open_bundle(info.path) as opened:
        opened.extract(home / "files")
        return opened.manifest, home / "files" / "model"


@pytest.fixture
def digits(tmp_path: Path) -> Any:
    def make(target: str, **changes: Any) -> tuple[Manifest, Path]:
        manifest = msgspec.structs.replace(manifest_for(target), **changes)
        return bundle(tmp_path, manifest, converted(target))

    return make


def detector(target: str, home: Path, shape: tuple[int, ...], **changes: Any) -> Any:
    """Return a bundle of a net with random weights whose output has SHAPE, as a detector has."""
    size, total = 32, int(np.prod(shape))
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.normal(size=(3 * size * size // 64, total)).astype(np.float32),
        "flat": np.array([1, -1]),
        "shape": np.array(shape),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["small"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["small", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["all"]),
        helper.make_node("Reshape", ["all", "shape"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    home.mkdir(parents=True)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), home / "m.onnx")
    (home / "model").mkdir()
    registry.find(target).convert(home / "m.onnx", "onnx", home / "model")
    plain = manifest_for(target)
    spec = TensorSpec(
        name="images", shape=(1, 3, size, size), dtype="float32",
        binding=Binding(native_name="images"), layout="NCHW",
    )  # fmt: skip
    out = TensorSpec(
        name="output0", shape=shape, dtype="float32", binding=Binding(native_name="output0")
    )
    said = {
        "name": "street", "task": "detect", "inputs": (spec,), "outputs": (out,),
        "labels": CLASSES, "postprocess": None,
        "agreement": msgspec.structs.replace(plain.agreement, rule="cosine", output="output0"),
        "preprocess": Preprocess(input="images", resize=Resize(mode="letterbox")),
    }  # fmt: skip
    manifest = msgspec.structs.replace(plain, **(said | changes))
    return bundle(home, manifest, home / "model")


# -- Triton


@pytest.mark.parametrize(
    ("target", "backend", "files"),
    [
        ("onnx", "onnxruntime", {"model.onnx"}),
        ("openvino", "openvino", {"model.xml", "model.bin"}),
    ],
)
def test_triton_gets_a_model_repository(
    digits: Any, target: str, backend: str, files: set[str], tmp_path: Path
) -> None:
    manifest, model = digits(target)
    where = emit("triton", manifest, model, tmp_path / "dist")
    assert where == tmp_path / "dist" / f"digits-1.0.0-{target}-fp32.triton"
    assert {path.name for path in (where / "digits" / "1").iterdir()} == files
    config = (where / "digits" / "config.pbtxt").read_text()
    assert f'backend: "{backend}"' in config
    found = re.findall(r'(\w+) \[ \{ name: "(.*?)" data_type: TYPE_(\w+) dims: \[ (.*?) \]', config)
    inputs, outputs = registry.find(target).describe(model)
    real = [("input", *_words(native)) for native in inputs]
    real += [("output", *_words(native)) for native in outputs]
    assert found == real
    assert 'label_filename: "labels.txt"' in config
    assert (where / "digits" / "labels.txt").read_text().split() == list(LABELS)


def _words(native: Any) -> tuple[str, str, str]:
    kind = {"float32": "FP32"}[native.dtype]
    return native.name, kind, ", ".join(map(str, native.shape))


def test_triton_is_told_the_layout_that_the_model_has(digits: Any) -> None:
    """Triton passes tensors through, so the public layout is of no use to it."""
    spec = msgspec.structs.replace(
        manifest_for("onnx").inputs[0],
        shape=(1, 16, 16, 1),
        binding=Binding(native_name=INPUT, permutation=(0, 3, 1, 2)),
    )
    manifest, _ = digits("onnx", inputs=(spec,))
    config = emission("triton", manifest).texts["digits/config.pbtxt"]
    assert 'name: "image" data_type: TYPE_FP32 dims: [ 1, 1, 16, 16 ]' in config


def test_triton_names_are_quoted() -> None:
    strange = msgspec.structs.replace(
        manifest_for("onnx").inputs[0], binding=Binding(native_name='a"b\\c')
    )
    manifest = msgspec.structs.replace(manifest_for("onnx"), inputs=(strange,))
    config = emission("triton", manifest).texts["digits/config.pbtxt"]
    assert r'name: "a\"b\\c"' in config


# -- OpenVINO Model Server


@pytest.mark.parametrize("target", ["openvino", "onnx", "tflite"])
def test_ovms_clients_use_the_names_and_layouts_of_the_source(
    digits: Any, target: str, tmp_path: Path
) -> None:
    """Do with OpenVINO what the server does with its configuration, and compare the answers."""
    manifest, model = digits(target)
    where = emit("ovms", manifest, model, tmp_path / "dist")
    (one,) = json.loads((where / "model_config.json").read_text())["model_config_list"]
    config = one["config"]
    version = where / config["base_path"] / "1"
    names = json.loads((version / "mapping_config.json").read_text())
    (file,) = [path for path in version.iterdir() if path.suffix in (".xml", ".onnx", ".tflite")]
    core = ov.Core()
    net = core.read_model(file)
    steps = ov.preprocess.PrePostProcessor(net)
    for native, public in names["inputs"].items():
        if public in config.get("layout", {}):
            outside, inside = config["layout"][public].split(":")
            steps.input(native).tensor().set_layout(ov.Layout(outside))
            steps.input(native).model().set_layout(ov.Layout(inside))
    compiled = core.compile_model(steps.build(), "CPU", config["plugin_config"])
    image = digits_data()[1].head(1).inputs
    (native,) = [key for key, public in names["inputs"].items() if public == INPUT]
    (answer,) = [key for key, public in names["outputs"].items() if public == OUTPUT]
    got = compiled({native: image})[answer]
    np.testing.assert_allclose(got, subject(target).expected[OUTPUT][:1], rtol=1e-3, atol=1e-3)
    assert ("layout" in config) == (target == "tflite"), "only where they differ"


def test_ovms_cannot_turn_more_axes_than_it_has_letters_for(digits: Any) -> None:
    spec = TensorSpec(
        name="x", shape=(1, 2, 3, 4, 5, 6), dtype="float32",
        binding=Binding(native_name="x", permutation=(0, 5, 1, 2, 3, 4)),
    )  # fmt: skip
    manifest = msgspec.structs.replace(manifest_for("openvino"), inputs=(spec,))
    with pytest.raises(UnsupportedError, match="6 axes"):
        emission("ovms", manifest)


# -- Frigate


@pytest.mark.parametrize(
    ("target", "shape", "kind"),
    [
        ("onnx", (1, 7, 21), "yolo-generic"),
        ("onnx", (1, 21, 8), "yolox"),
        ("openvino", (1, 1, 10, 7), "ssd"),
        ("openvino", (10, 7), "yolonas"),
    ],
)
def test_frigate_gets_what_its_users_type_by_hand(
    target: str, shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    manifest, model = detector(target, tmp_path / "home", shape)
    where = emit("frigate", manifest, model, tmp_path / "dist")
    config = yaml.safe_load((where / "config.yml").read_text())
    assert config["detectors"] == {target: {"type": target, "device": "CPU"}}
    said = config["model"]
    file = Path(said["path"]).name
    assert said == {
        "path": f"/config/model_cache/street/{file}",
        "labelmap_path": "/config/model_cache/street/labelmap.txt",
        "width": 32,
        "height": 32,
        "input_tensor": "nchw",
        "input_pixel_format": "rgb",
        "input_dtype": "float",
        "model_type": kind,
    }
    labels = (where / "labelmap.txt").read_text().splitlines()
    assert labels == ["0 person", "1 2 wheeler", "2 car"]
    if target == "onnx":
        session = ort.InferenceSession(where / file, providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == [1, 3, said["height"], said["width"]]
    else:
        net = ov.Core().read_model(where / file)
        assert list(net.input(0).shape) == [1, 3, said["height"], said["width"]]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"task": "classify"}, "detects objects"),
        ({"labels": ()}, "no labels"),
        ({"preprocess": None}, "how an image becomes"),
        ({"preprocess": Preprocess(input="images", mean=(0.5,), std=(0.5,))}, "subtract a mean"),
        ({"preprocess": Preprocess(input="images", scale=128.0)}, "divide by anything"),
        ({"preprocess": Preprocess(input="images", color="gray")}, "not gray"),
        ({"labels": ("a", "b")}, "0 of its decoders"),
    ],
)
def test_frigate_refuses_what_would_detect_garbage(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    manifest, model = detector("onnx", tmp_path / "home", (1, 7, 21), **changes)
    with pytest.raises(UnsupportedError) as error:
        emit("frigate", manifest, model, tmp_path / "dist")
    assert why in error.value.why
    assert error.value.exit_code == 5
    assert not (tmp_path / "dist").exists(), "nothing is written"


def test_an_output_that_two_decoders_read_is_not_guessed(tmp_path: Path) -> None:
    manifest, _ = detector("onnx", tmp_path / "home", (1, 7, 8))
    with pytest.raises(UnsupportedError) as error:
        emission("frigate", manifest)
    assert "2 of its decoders" in error.value.why


# -- all of them


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("triton", "tflite"),
        ("triton", "onnx-mobile"),
        ("ovms", "onnx-mobile"),
        ("frigate", "onnx-mobile"),
    ],
)
def test_a_format_that_a_consumer_does_not_read_is_refused(kind: str, target: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        emission(kind, manifest_for(target))
    assert error.value.reason == "not_for_consumer"
    assert target in error.value.what


def test_an_unknown_consumer_is_refused(digits: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        emit("torchserve", *digits("onnx"), tmp_path / "dist")
    assert all(kind in error.value.fix for kind in KINDS)


def test_a_model_with_other_types_inside_is_refused(digits: Any, tmp_path: Path) -> None:
    """Only our own sessions quantise for a model with int8 inputs."""
    spec = msgspec.structs.replace(manifest_for("onnx").inputs[0], dtype="float64")
    manifest, model = digits("onnx", inputs=(spec,))
    with pytest.raises(UnsupportedError, match="float32 in the model"):
        emit("triton", manifest, model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_older_folder_is_replaced_as_a_whole(digits: Any, tmp_path: Path) -> None:
    manifest, model = digits("onnx")
    where = emit("triton", manifest, model, tmp_path / "dist")
    before = sorted(path.relative_to(where) for path in where.rglob("*"))
    (where / "digits" / "2").mkdir()
    assert emit("triton", manifest, model, tmp_path / "dist") == where
    assert sorted(path.relative_to(where) for path in where.rglob("*")) == before
    left = [path.name for path in (tmp_path / "dist").iterdir() if path.name.startswith(".")]
    assert not left


def test_a_place_that_cannot_be_written_is_one_clear_error(digits: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        emit("triton", *digits("onnx"), tmp_path / "file" / "dist")
