"""Ready TFLite models and OpenVINO IRs: packaged as they are, and never under a false name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from ai_edge_litert import schema_py_generated as tfl

from digits import INPUT, OUTPUT, digits_data, digits_onnx
from digits_tflite import digits_tflite
from edgepack.bundle import open_bundle
from edgepack.errors import EdgepackError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.source import open_source
from edgepack_packager.adapters.worker import run_step
from edgepack_packager.workers import openvino_source, tflite_source
from edgepack_targets import registry
from edgepack_targets.interface import Quantization
from edgepack_targets.tflite_plain import plain
from packager_rig import edgepack

Made = dict[str, Path]


def quantized(target: str, source: Path, source_format: str, home: Path) -> Path:
    """Return a directory with SOURCE as int8 of TARGET."""
    found = registry.find(target)
    (home / "fp32").mkdir(parents=True)
    (home / "int8").mkdir()
    found.convert(source, source_format, home / "fp32")
    inputs, _ = found.describe(home / "fp32")
    images = digits_data()[0].head(50).inputs
    layout = images.reshape(-1, *inputs[0].shape[1:])
    found.quantize(home / "fp32", home / "int8", Quantization("int8"), {inputs[0].name: layout})
    return home / "int8"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("ready")
    tflite = digits_tflite(home / "digits.tflite")
    onnx = digits_onnx(home / "digits.onnx", batch=1)
    ir = ov.convert_model(onnx)
    ov.save_model(ir, home / "digits.xml", compress_to_fp16=False)
    ov.save_model(ir, home / "half.xml")
    shutil.copy(
        quantized("tflite", tflite, "tflite", home / "q") / "model.tflite", home / "q.tflite"
    )
    int8 = quantized("openvino", onnx, "onnx", home / "qir")
    for suffix in (".xml", ".bin"):
        shutil.copy(int8 / f"model{suffix}", home / f"q{suffix}")
    rows = digits_data()[1].head(64)
    np.savez(home / "nchw.npz", **{INPUT: rows.inputs, "labels": rows.labels})
    nhwc = rows.inputs.transpose(0, 2, 3, 1)
    np.savez(home / "nhwc.npz", **{INPUT: nhwc, "labels": rows.labels})
    return {path.name: path for path in home.iterdir()}


def opened(source: Path, out: Path, **shapes: list[int]) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    module: Any = tflite_source if source.suffix == ".tflite" else openvino_source
    args = {"source": str(source), "kind": "", "shapes": shapes, "signature": None}
    result: dict[str, Any] = module.open(args, out, lambda _: None)
    return result


def refusal(source: Path, out: Path, **shapes: list[int]) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        opened(source, out, **shapes)
    return caught.value


# -- what a file is


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("digits.tflite", "fp32"), ("q.tflite", "int8"),
        ("digits.xml", "fp32"), ("half.xml", "fp16"), ("q.xml", "int8"),
    ],
)  # fmt: skip
def test_opening_says_which_precision_it_is_already(
    made: Made, tmp_path: Path, name: str, precision: str
) -> None:
    done = opened(made[name], tmp_path / "out")
    assert done["precision"] == precision
    assert [one["name"] for one in done["inputs"]] == [INPUT]
    assert [one["shape"] for one in done["outputs"]] == [[1, 10]]


def test_ready_tflite_is_taken_byte_for_byte(made: Made, tmp_path: Path) -> None:
    opened(made["q.tflite"], tmp_path)
    assert (tmp_path / "model.tflite").read_bytes() == made["q.tflite"].read_bytes()


@pytest.mark.parametrize("name", ["digits.tflite", "digits.xml"])
def test_the_runtime_itself_is_the_reference(made: Made, tmp_path: Path, name: str) -> None:
    data = made["nhwc.npz" if name.endswith("tflite") else "nchw.npz"]
    args = {"source": str(made[name]), "samples": str(data), "shapes": {}}
    module: Any = tflite_source if name.endswith("tflite") else openvino_source
    module.reference(args, tmp_path, lambda _: None)
    with np.load(tmp_path / "outputs.npz") as answers, np.load(data) as samples:
        assert (answers[OUTPUT].argmax(axis=1) == samples["labels"]).mean() > 0.9


def test_ir_keeps_an_open_batch_and_takes_a_shape(tmp_path: Path) -> None:
    model = ov.convert_model(digits_onnx(tmp_path / "m.onnx"))
    ov.save_model(model, tmp_path / "open.xml", compress_to_fp16=False)
    one = opened(tmp_path / "open.xml", tmp_path / "one")
    many = opened(tmp_path / "open.xml", tmp_path / "many", image=[-1, 1, 16, 16])
    assert one["outputs"][0]["shape"] == [1, 10]
    assert many["outputs"][0]["shape"] == [-1, 10]


# -- what is refused


@pytest.mark.parametrize(
    ("name", "cut", "word"),
    [
        ("digits.tflite", 0, "empty"), ("digits.tflite", 6, "TFL3"),
        ("digits.tflite", 9000, "Flatbuffer"), ("digits.xml", 0, ""), ("digits.xml", 2000, ""),
        ("digits.bin", 0, "Incorrect weights"), ("digits.bin", 900, "Incorrect weights"),
    ],
)  # fmt: skip
def test_truncated_files_are_one_error(
    made: Made, tmp_path: Path, name: str, cut: int, word: str
) -> None:
    for part in ("digits.tflite", "digits.xml", "digits.bin"):
        content = made[part].read_bytes()
        (tmp_path / part).write_bytes(content[:cut] if part == name else content)
    model = tmp_path / ("digits.tflite" if name == "digits.tflite" else "digits.xml")
    error = refusal(model, tmp_path / "out")
    assert (error.exit_code, error.reason) == (2, "corrupt_model")
    assert word in error.why


def test_ir_without_its_weights_says_which_file_is_missing(made: Made, tmp_path: Path) -> None:
    shutil.copy(made["digits.xml"], tmp_path / "m.xml")
    error = refusal(tmp_path / "m.xml", tmp_path / "out")
    assert (error.exit_code, error.reason) == (2, "no_weights")
    assert "m.bin" in error.why


def test_other_shapes_than_a_ready_tflite_has_are_refused(made: Made, tmp_path: Path) -> None:
    error = refusal(made["digits.tflite"], tmp_path, image=[-1, 16, 16, 1])
    assert (error.exit_code, error.reason) == (5, "dynamic_shape")
    assert refusal(made["digits.tflite"], tmp_path, pixels=[1, 16, 16, 1]).exit_code == 2


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """Write SOURCE to TARGET after CHANGE of its flatbuffer."""
    import flatbuffers

    model = tfl.ModelT.InitFromPackedBuf(plain(source.read_bytes()))
    change(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def test_all_custom_operators_of_a_tflite_are_named(made: Made, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        for code, name in zip(model.operatorCodes[:2], ("Zeta", "Alpha"), strict=True):
            code.builtinCode = code.deprecatedBuiltinCode = tfl.BuiltinOperator.CUSTOM
            code.customCode = name
        for operator in model.subgraphs[0].operators[:2]:
            operator.builtinOptionsType, operator.builtinOptions = 0, None

    source = rewritten(made["digits.tflite"], tmp_path / "custom.tflite", change)
    error = refusal(source, tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "unsupported_operator")
    assert error.why == "missing: Alpha, Zeta"


def test_tensors_that_outlive_a_call_are_refused(made: Made, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[1].isVariable = True

    source = rewritten(made["digits.tflite"], tmp_path / "state.tflite", change)
    error = refusal(source, tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "stateful")


def test_ir_with_state_is_refused(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    given = ops.parameter([1, 4], np.float32, name="x")
    given.output(0).set_names({"x"})
    kept = ops.read_value(ops.constant(np.zeros((1, 4), np.float32)), "memory")
    total = ops.add(given, kept)
    total.output(0).set_names({"y"})
    model = ov.Model([ops.result(total)], [ops.assign(total, "memory")], [given], "counter")
    ov.save_model(model, tmp_path / "m.xml")
    error = refusal(tmp_path / "m.xml", tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "stateful")
    assert "ReadValue" in error.why


def test_digest_of_a_source_covers_the_files_beside_it(made: Made, tmp_path: Path) -> None:
    import onnx

    shutil.copy(made["digits.xml"], tmp_path / "m.xml")
    shutil.copy(made["digits.bin"], tmp_path / "m.bin")
    onnx.save_model(
        onnx.load(made["digits.onnx"]), tmp_path / "m.onnx", save_as_external_data=True,
        location="w.bin", size_threshold=0,
    )  # fmt: skip
    for model, weights in (("m.xml", "m.bin"), ("m.onnx", "w.bin")):
        before = open_source(str(tmp_path / model)).sha256
        assert open_source(str(tmp_path / model)).sha256 == before
        content = bytearray((tmp_path / weights).read_bytes())
        content[100] ^= 1
        (tmp_path / weights).write_bytes(content)
        assert open_source(str(tmp_path / model)).sha256 != before


# -- routes


def build(home: Path, source: Path, *args: str | Path) -> Any:
    return edgepack("build", source, *args, "--unsigned", "--no-cache", "--json", cwd=home)


def test_ready_int8_is_packed_as_int8_without_calibration(made: Made, tmp_path: Path) -> None:
    done = build(
        tmp_path, made["q.tflite"], "--target", "tflite", "--target", "openvino",
        "--precision", "int8", "--evaluate", made["nhwc.npz"],
    )  # fmt: skip
    assert done.code == 0, done.err
    for target in ("tflite", "openvino"):
        said = done.bundle(target, "int8")
        assert said["metrics"]["drop"] == 0
        assert said["parity"]["cosine"] > 0.999
        with open_bundle(tmp_path / said["path"]) as bundle:
            assert bundle.manifest.target.precision == "int8"
    assert "already" in build(
        tmp_path, made["q.tflite"], "--target", "tflite", "--precision", "fp32"
    ).err  # fmt: skip


def test_ready_ir_goes_to_openvino_and_nowhere_else(made: Made, tmp_path: Path) -> None:
    done = build(
        tmp_path, made["digits.xml"], "--target", "openvino", "--target", "onnx",
        "--precision", "fp32", "--precision", "int8", "--calibration", made["nchw.npz"],
    )  # fmt: skip
    assert done.code == 8, done.err
    document = json.loads(done.out)
    assert {(b["target"], b["precision"]) for b in document["bundles"]} == {
        ("openvino", "fp32"), ("openvino", "int8"),
    }  # fmt: skip
    assert {(f["target"], f["code"]) for f in document["failed"]} == {("onnx", 5)}


@pytest.mark.toolchain
@pytest.mark.parametrize("name", ["digits.tflite", "q.tflite"])
def test_ready_tflite_becomes_onnx_with_its_names(made: Made, tmp_path: Path, name: str) -> None:
    opened(made[name], tmp_path / "opened")
    (tmp_path / "out").mkdir()
    where, _ = toolchains.install(toolchains.find_toolchain("tf"))
    args = {"from": str(tmp_path / "opened")}
    run_step(where, "tf.onnx_from_tflite", args, tmp_path / "out", timeout_s=200)
    import onnxruntime as ort

    session = ort.InferenceSession(tmp_path / "out" / "model.onnx")
    assert ([one.name for one in session.get_inputs()], session.get_outputs()[0].name) == (
        [INPUT], OUTPUT,
    )  # fmt: skip
    with np.load(made["nhwc.npz"]) as data:
        rows = [session.run(None, {INPUT: image[None]})[0][0] for image in data[INPUT]]
        assert (np.stack(rows).argmax(axis=1) == data["labels"]).mean() > 0.9
