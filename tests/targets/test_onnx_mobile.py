"""The ORT format for apps: what is written for which machine, and that it computes the same."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from digits import INPUT, OUTPUT, accuracy, digits_data
from digits_targets import converted, manifest_for, quantized, source_answers, subject
from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_packager.workers import convert as steps
from edgepack_targets import cpu, onnx_mobile_host, registry
from edgepack_targets.interface import MODEL_FILES, Quantization
from edgepack_targets.onnx_mobile import ONNX_MOBILE
from edgepack_targets.pipeline.feed import run_samples

FILES = set(MODEL_FILES["onnx-mobile"])
AVX512 = "avx512f" in cpu.features()
WRITE = """
import sys
from pathlib import Path
from edgepack_targets import registry
registry.find("onnx-mobile").convert(Path(sys.argv[1]), "onnx", Path(sys.argv[2]))
"""


def write(source: Path, out: Path, arch: str | None = None) -> dict:
    out.mkdir()
    return dict(ONNX_MOBILE.convert(source / "model.onnx", "onnx", out, arch=arch))


def answers(where: Path, count: int = 64) -> np.ndarray:
    session = ONNX_MOBILE.load(where, manifest_for("onnx-mobile"), threads=1)
    got = run_samples(session, manifest_for("onnx-mobile"), subject("onnx").samples)
    session.close()
    return got[OUTPUT][:count]


def content(where: Path) -> tuple[list, list, str]:
    """Return what is computed with which weights, and the operators that it needs."""
    graph = onnx_mobile_host._graph(where / "model.ort")
    nodes = [
        (node.OpType(), [node.Inputs(i) for i in range(node.InputsLength())])
        for node in onnx_mobile_host._each(graph, "Nodes")
    ]
    weights = [
        (w.Name(), w.DataType(), w.RawDataAsNumpy().tobytes())
        for w in onnx_mobile_host._each(graph, "Initializers")
    ]
    return nodes, sorted(weights), (where / "required_operators.config").read_text()


def test_it_writes_the_model_and_what_a_small_runtime_has_to_have(tmp_path: Path) -> None:
    known = write(converted("onnx"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    listed = (tmp_path / "out" / "required_operators.config").read_text()
    assert "ai.onnx;13;Flatten,Gemm" in listed
    assert "model.ort" in listed
    assert str(tmp_path) not in listed, "no path of this machine"
    assert known["arch"] == "arm64", "phones are the default"
    assert known["cpu_features"] == []


def test_it_says_what_onnxruntime_thinks_of_phone_accelerators(tmp_path: Path) -> None:
    verdict = write(converted("onnx"), tmp_path / "out")["usability"]
    # Of Conv, Relu, MaxPool, Flatten and Gemm, only Core ML's ML programs lack one: Flatten.
    assert verdict == {"nnapi": "yes", "coreml_neuralnetwork": "yes", "coreml_mlprogram": "maybe"}
    mixed = onnx.load(converted("onnx") / "model.onnx")
    for node in mixed.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Softsign"
    (tmp_path / "odd").mkdir()
    onnx.save(mixed, tmp_path / "odd" / "model.onnx")
    assert "no" in write(tmp_path / "odd", tmp_path / "other")["usability"].values()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_two_processes_write_the_same_computation(precision: str, tmp_path: Path) -> None:
    source = (converted if precision == "fp32" else quantized)("onnx") / "model.onnx"
    found = []
    for seed in ("1", "4242"):
        (tmp_path / seed).mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", WRITE, source, tmp_path / seed],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", "results alone belong on stdout"
        found.append((content(tmp_path / seed), answers(tmp_path / seed)))
        for path in (tmp_path / seed).iterdir():
            assert str(tmp_path).encode() not in path.read_bytes(), f"{path.name} holds a path"
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])


def test_the_blocked_layout_stays_at_home(tmp_path: Path) -> None:
    """It is written for one width of registers, and no phone has it."""
    for arch in ("arm64", "arm", "amd64"):
        known = write(converted("onnx"), tmp_path / arch, arch)
        blocked = "nchwc" in (tmp_path / arch / "required_operators.config").read_text()
        assert blocked == (arch == "amd64" and AVX512), arch
        assert known["cpu_features"] == (["avx512f"] if blocked else [])
        np.testing.assert_allclose(
            answers(tmp_path / arch), source_answers(64), rtol=1e-4, atol=1e-4
        )


def test_int8_is_that_of_target_onnx(tmp_path: Path) -> None:
    write(quantized("onnx"), tmp_path / "out")
    found = ONNX_MOBILE.applied(tmp_path / "out")
    assert found["int8_share"] > 0.99
    assert found["quantized_operators"] >= 3
    session = ONNX_MOBILE.load(tmp_path / "out", manifest_for("onnx-mobile", "int8"), threads=1)
    test = digits_data()[1]
    got = run_samples(session, manifest_for("onnx-mobile"), {INPUT: test.inputs})[OUTPUT]
    session.close()
    assert accuracy(source_answers(), test.labels) - accuracy(got, test.labels) <= 0.01


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    """Left alone, onnxruntime on x86 folds 16-bit weights back into 32 bits: a silent no-op."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(converted("onnx") / "model.onnx"), keep_io_types=True)
    (tmp_path / "half").mkdir()
    onnx.save(half, tmp_path / "half" / "model.onnx")
    write(tmp_path / "half", tmp_path / "out")
    write(converted("onnx"), tmp_path / "whole")
    sizes = [(tmp_path / name / "model.ort").stat().st_size for name in ("out", "whole")]
    assert sizes[0] < 0.55 * sizes[1]
    found = ONNX_MOBILE.applied(tmp_path / "out")
    assert found["float16_weights"] == found["float_weights"] > 100_000
    np.testing.assert_allclose(answers(tmp_path / "out"), source_answers(64), rtol=0.02, atol=0.1)


def test_weights_are_counted_in_the_file_itself(tmp_path: Path) -> None:
    model = onnx.load(converted("onnx") / "model.onnx")
    counts = [int(np.prod(w.dims)) for w in model.graph.initializer if len(w.dims) > 1]
    for weight in model.graph.initializer:
        if len(weight.dims) > 1:
            values = numpy_helper.to_array(weight).copy()
            values.reshape(-1)[::2] = 0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    (tmp_path / "sparse").mkdir()
    onnx.save(model, tmp_path / "sparse" / "model.onnx")
    write(tmp_path / "sparse", tmp_path / "out")
    found = ONNX_MOBILE.applied(tmp_path / "out")
    assert found["float_weights"] == sum(counts)
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found["quantized_operators"] == 0


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_an_unknown_machine_is_refused(arch: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=arch) as error:
        write(converted("onnx"), tmp_path / "out", arch)
    assert "arm64" in error.value.fix
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_be_done_in_the_format_is_refused_by_name(tmp_path: Path) -> None:
    one = converted("onnx-mobile")
    for call in (
        lambda: ONNX_MOBILE.quantize(one, tmp_path, Quantization("int8")),
        lambda: ONNX_MOBILE.diagnose(one, one, {}),
        lambda: ONNX_MOBILE.annotate(one, {}),
        lambda: ONNX_MOBILE.convert(
            converted("onnx") / "model.onnx", "onnx", tmp_path, shapes={INPUT: (1, 1, 32, 32)}
        ),
    ):
        with pytest.raises(UnsupportedError, match="onnx-mobile") as error:
            call()
        assert "target `onnx`" in error.value.fix
    assert not list(tmp_path.iterdir())
    shapes = {INPUT: (1, 1, 16, 16)}
    ONNX_MOBILE.convert(converted("onnx") / "model.onnx", "onnx", tmp_path, shapes=shapes)
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("damage", [b"", b"\x00" * 4096])
def test_a_source_that_is_no_model_is_one_clear_error(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(damage)
    with pytest.raises(UsageError, match=r"model\.onnx"):
        write(tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_of_another_format_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.ort").write_bytes((converted("onnx") / "model.onnx").read_bytes())
    with pytest.raises(IntegrityError):
        ONNX_MOBILE.load(tmp_path, manifest_for("onnx-mobile"))
    with pytest.raises(IntegrityError):
        ONNX_MOBILE.applied(tmp_path)
    with pytest.raises(UnsupportedError, match="not for onnx-mobile"):
        ONNX_MOBILE.load(converted("onnx-mobile"), manifest_for("onnx"))


def test_the_step_says_what_the_manifest_has_to_ask_for(tmp_path: Path) -> None:
    args = {"from": str(converted("onnx")), "target": "onnx-mobile", "source_format": "onnx"}
    (tmp_path / "out").mkdir()
    result = steps.convert(args | {"arch": "amd64"}, tmp_path / "out", lambda _: None)
    assert result["arch"] == ["x86_64"]
    assert result["cpu_features"] == (["avx512f"] if AVX512 else [])
    assert result["applied"]["usability"]["nnapi"] == "yes"
    assert result["inputs"] == [[INPUT, [1, 1, 16, 16], "float32"]]
    assert result["versions"].keys() == {"onnx", "onnxruntime"}


def test_a_cpu_that_the_file_was_not_written_for_is_refused() -> None:
    """It would load and give wrong answers: measured with AVX-512's layout on an older CPU."""
    manifest = manifest_for("onnx-mobile")
    target = msgspec.structs.replace(manifest.target, cpu_features=("no_such_feature",))
    foreign = msgspec.structs.replace(manifest, target=target)
    with pytest.raises(UnsupportedError, match="this CPU") as error:
        ONNX_MOBILE.load(converted("onnx-mobile"), foreign)
    assert "no_such_feature" in error.value.why


def test_a_device_with_onnxruntime_reports_the_target() -> None:
    assert registry.installed()["onnx-mobile"] == registry.installed()["onnx"]
