"""Bad input to `edgepack build`: one clear error, the right exit code, nothing left behind."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from digits import INPUT, digits_onnx
from packager_rig import COMMAND, Done, OnnxDigits, edgepack, finish, start


def build(cwd: Path, model: Path, *args: str | Path, env: dict[str, str] | None = None) -> Done:
    words = ("build", model, "--unsigned", "--no-cache", "--out", cwd / "dist", *args)
    return edgepack(*words, cwd=cwd, env=(env or {}) | {"TMPDIR": str(cwd / "tmp")})


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()


def check_refused(done: Done, code: int, *words: str, home: Path) -> None:
    """One error with these WORDS, this CODE, no traceback and nothing written."""
    assert done.code == code, done.err
    errors = [line for line in done.err.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert not list((home / "dist").glob("*")) if (home / "dist").exists() else True
    assert list((home / "tmp").iterdir()) == []


# -- the model


def test_missing_model(tmp_path: Path) -> None:
    done = build(tmp_path, tmp_path / "no.onnx", "--target", "onnx")
    check_refused(done, 2, "does not exist", home=tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.onnx", b""),
        ("noise.onnx", bytes(range(256)) * 40),
        ("cut.onnx", None),
        ("text.keras", b"hello"),
        ("model.txt", b"hello"),
    ],
)
def test_corrupt_model(
    digits: OnnxDigits, tmp_path: Path, name: str, content: bytes | None
) -> None:
    model = tmp_path / name
    model.write_bytes(digits.model.read_bytes()[:5000] if content is None else content)
    check_refused(build(tmp_path, model, "--target", "onnx"), 2, name, home=tmp_path)


def test_folder_that_is_no_saved_model(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = build(tmp_path, tmp_path / "folder", "--target", "onnx")
    check_refused(done, 2, "not a SavedModel", home=tmp_path)


def test_kinds_that_cannot_be_built_from_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"x")
    done = build(tmp_path, tmp_path / "a.h5", "--target", "onnx")
    check_refused(done, 5, "Keras 2", "fix:", home=tmp_path)


def test_unknown_operator(digits: OnnxDigits, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(digits.model)
    model.graph.node[1].op_type = "Mystery"
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    check_refused(build(tmp_path, tmp_path / "odd.onnx", "--target", "onnx"), 5, home=tmp_path)


def test_model_without_inputs(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["fixed"], ["answer"])], "g", [],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.ones((1, 4), np.float32), "fixed")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "closed.onnx")
    done = build(tmp_path, tmp_path / "closed.onnx", "--target", "onnx")
    check_refused(done, 5, "no inputs", home=tmp_path)


# -- target, precision, route, flags


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (("--target", "gpu"), 5, "there is no target gpu"),
        (("--target", "tflite3"), 5, "there is no target tflite3"),
        (("--target", "onnx", "--precision", "fp8"), 5, "there is no precision fp8"),
        (("--target", "onnx", "--precision", "bf16"), 5, "has no bf16"),
        (("--target", "onnx", "--arch", "arm64"), 2, "onnx-mobile"),
        (("--target", "onnx", "--precision", "int3"), 5, "there is no precision int3"),
        (("--target", "onnx", "--auto"), 2, "--max-drop"),
        (("--target", "onnx", "--unsigned", "--key", "my.pem"), 2, "contradict"),
        (("--target", "onnx", "--profile", "p.json"), 2, "there is no limit"),
        (("--target", "onnx", "--max-size-mb", "9", "--profile", "p.json"), 2, "is no profile"),
        (("--target", "onnx", "--out", "/proc/version"), 2, "is not a directory"),
        (("--target", "onnx", "--signature", "serve"), 2, "a SavedModel's"),
        ((), 2, "no target"),
        (("--target", "onnx", "--name", "Big Name"), 2, "cannot be a model's name"),
        (("--target", "onnx", "--version", "one"), 2, "is not a version"),
        (("--target", "onnx", "--task", "guess"), 2, "there is no task"),
        (("--target", "onnx", "--precision", "int8"), 2, "needs calibration"),
        (("--target", "onnx", "--max-drop", "0.1"), 2, "needs evaluation"),
        (("--target", "onnx", "--max-drop", "nan"), 2, "not a finite number"),
        (("--target", "onnx", "--max-latency-ms", "nan"), 2, "not a finite number"),
        (("--target", "onnx", "--timeout", "0"), 2, "--timeout"),
        (("--target", "onnx", "--version", "1.0.0\n"), 2, "is not a version"),
        (("--target", "onnx", "--version", f"1.0.0-{'a' * 64}"), 2, "is not a version"),
        (("--target", "onnx", "--shape", "image=1,x"), 2, "cannot be read"),
        (("--target", "onnx", "--shape", "image=1,-1,16,16"), 5, "only the batch"),
        (("--target", "onnx", "--shape", "other=1,1,16,16"), 2, "other"),
        (("--target", "onnx", "--labels", "nowhere.txt"), 2, "nowhere.txt"),
        (("--target", "onnx", "--recipe", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("--target", "onnx", "--preprocess", '{"colour": "gray"}'), 2, "colour"),
        (("--target", "onnx", "--preprocess", '{"color": "rgb"}'), 2, "does not take rgb"),
    ],
)
def test_request_that_cannot_be_met(
    digits: OnnxDigits, tmp_path: Path, args: tuple[str, ...], code: int, word: str
) -> None:
    check_refused(build(tmp_path, digits.model, *args), code, word, home=tmp_path)


def test_recipe_with_steps_that_cannot_be_read(digits: OnnxDigits, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {task: classify}\nsteps: [prune]\n")
    done = build(tmp_path, digits.model, "--target", "onnx", "--recipe", "recipe.yaml")
    check_refused(done, 2, "steps", home=tmp_path)


def test_no_key_names_the_command_that_makes_one(digits: OnnxDigits, tmp_path: Path) -> None:
    done = edgepack("build", digits.model, "--target", "onnx", cwd=tmp_path)
    assert done.code == 2
    assert "edgepack keys create" in done.err
    assert not (tmp_path / "dist").exists()


def test_missing_toolchain_with_no_install(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    env = {"EDGEPACK_TOOLCHAINS": str(tmp_path / "none"), "EDGEPACK_TF_PYTHON": ""}
    done = build(tmp_path, tmp_path / "m.keras", "--target", "onnx", "--no-install", env=env)
    check_refused(done, 5, "edgepack toolchain install tf", home=tmp_path)
    assert not (tmp_path / "none").exists()


def test_toolchain_python_that_is_not_there(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    env = {"EDGEPACK_TF_PYTHON": str(tmp_path / "python")}
    done = build(tmp_path, tmp_path / "m.keras", "--target", "onnx", env=env)
    check_refused(done, 2, "EDGEPACK_TF_PYTHON", home=tmp_path)


# -- data


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


BAD_DATA: dict[str, tuple[Callable[[], dict[str, np.ndarray]], str]] = {
    "wrong name": (lambda: {"picture": zeros(8, 1, 16, 16)}, "picture"),
    "wrong shape": (lambda: {INPUT: zeros(8, 16, 16, 1)}, "(8, 16, 16, 1)"),
    "wrong type": (lambda: {INPUT: zeros(8, 1, 16, 16, dtype="float64")}, "float64"),
    "empty": (lambda: {INPUT: zeros(0, 1, 16, 16)}, "is empty"),
    "no arrays": (dict, "does not name"),
    "NaN": (lambda: {INPUT: zeros(8, 1, 16, 16) + np.nan}, "NaN"),
    "infinite": (lambda: {INPUT: zeros(8, 1, 16, 16) + np.inf}, "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_calibration(digits: OnnxDigits, tmp_path: Path, case: str) -> None:
    make, word = BAD_DATA[case]
    np.savez(tmp_path / "bad.npz", **make())
    done = build(
        tmp_path, digits.model, "--target", "onnx", "--precision", "int8",
        "--calibration", tmp_path / "bad.npz",
    )  # fmt: skip
    check_refused(done, 2, "calibration data", word, home=tmp_path)


def test_calibration_that_is_no_npz(digits: OnnxDigits, tmp_path: Path) -> None:
    args = ("--target", "onnx", "--precision", "int8", "--calibration")
    (tmp_path / "text.npz").write_text("hello")
    check_refused(build(tmp_path, digits.model, *args, "text.npz"), 2, "text.npz", home=tmp_path)
    check_refused(build(tmp_path, digits.model, *args, "none.npz"), 2, "none.npz", home=tmp_path)
    (tmp_path / "folder").mkdir()
    done = build(tmp_path, digits.model, *args, "folder")
    check_refused(done, 2, "folder", "--preprocess", home=tmp_path)
    card = ("--preprocess", '{"color": "gray"}')
    done = build(tmp_path, digits.model, *args, "folder", *card)
    check_refused(done, 2, "no pictures", home=tmp_path)
    done = build(tmp_path, digits.model, "--target", "onnx", "--evaluate", "folder", *card)
    check_refused(done, 2, "no subfolders", home=tmp_path)


def test_pickled_data_is_not_opened(digits: OnnxDigits, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **{INPUT: np.array([{"a": 1}], dtype=object)})
    args = ("--target", "onnx", "--precision", "int8", "--calibration", "bad.npz")
    check_refused(build(tmp_path, digits.model, *args), 2, "bad.npz", home=tmp_path)


def test_calibration_in_another_range_is_pointed_out(digits: OnnxDigits, tmp_path: Path) -> None:
    with np.load(digits.calibration) as data:
        np.savez(tmp_path / "bytes.npz", image=data["image"] * 255)
    done = build(
        tmp_path, digits.model, "--target", "onnx", "--precision", "int8", "--calibration",
        "bytes.npz", "--evaluate", digits.evaluation,
    )  # fmt: skip
    assert "warning: calibration `image` lies in 0..255, evaluation in 0..1" in done.err


def test_evaluation_without_labels(digits: OnnxDigits, tmp_path: Path) -> None:
    done = build(tmp_path, digits.model, "--target", "onnx", "--evaluate", digits.calibration)
    check_refused(done, 2, "no labels", home=tmp_path)


def test_label_count_must_fit(digits: OnnxDigits, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    done = build(tmp_path, digits.model, "--target", "onnx", "--labels", "labels.txt")
    check_refused(done, 2, "3 labels for 10 classes", home=tmp_path)


# -- gates


def test_baseline_near_chance_proves_nothing(digits: OnnxDigits, tmp_path: Path) -> None:
    with np.load(digits.evaluation) as data:
        labels = np.random.default_rng(0).permutation(data["labels"])
        np.savez(tmp_path / "shuffled.npz", image=data["image"], labels=labels)
    done = build(tmp_path, digits.model, "--target", "onnx", "--evaluate", "shuffled.npz")
    check_refused(done, 4, "guessing", home=tmp_path)


METRIC = '''
import numpy as np

def exact(outputs, labels):
    """Falls at the smallest change of any output."""
    return -float(np.abs(outputs["logits"]).sum())

def broken(outputs, labels):
    raise KeyError("nothing")

def leaving(outputs, labels):
    raise SystemExit(0)

def unsteady(outputs, labels, seen=[]):
    seen.append(1)
    return len(seen)

def online(outputs, labels):
    import socket
    socket.create_connection(("127.0.0.1", 9), timeout=1)
    return 1.0
'''


def test_failing_gate_writes_only_what_passed(digits: OnnxDigits, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METRIC)
    done = build(
        tmp_path, digits.model, "--target", "onnx", "--precision", "fp32", "--precision", "int8",
        "--calibration", digits.calibration, "--evaluate", digits.evaluation,
        "--metric", "own.py:exact", "--max-drop", "0.000001", "--json",
    )  # fmt: skip
    failed = done.document["failed"]
    if [f["precision"] for f in failed] == ["int8"]:
        assert done.code == 8
        assert failed[0]["code"] == 4
        assert failed[0]["reason"] == "max_drop"
        assert {p.name for p in (tmp_path / "dist").iterdir()} == {
            "digits-0.1.0-onnx-fp32.edgepack", "digits-0.1.0-onnx-fp32.report.json",
            "digits-0.1.0.report.md", "digits-0.1.0.report.svg",
        }  # fmt: skip
    else:
        pytest.fail(f"only int8 must fail: {done.out}")


def test_all_variants_failing_gives_the_first_code(digits: OnnxDigits, tmp_path: Path) -> None:
    done = build(tmp_path, digits.model, "--target", "tflite", "--target", "onnx-", "--json")
    check_refused(done, 5, home=tmp_path)
    done = build(
        tmp_path, digits.model, "--target", "onnx", "--max-size-mb", "0.001",
        "--precision", "fp32", "--precision", "bf16", "--json",
    )  # fmt: skip
    assert {f["code"] for f in done.document["failed"]} == {5, 6}
    check_refused(done, done.document["failed"][0]["code"], home=tmp_path)


@pytest.mark.parametrize("name", ["broken", "online", "missing", "leaving", "unsteady"])
def test_metric_that_fails(digits: OnnxDigits, tmp_path: Path, name: str) -> None:
    (tmp_path / "own.py").write_text(METRIC)
    done = build(
        tmp_path, digits.model, "--target", "onnx", "--evaluate", digits.evaluation,
        "--metric", f"own.py:{name}",
    )  # fmt: skip
    check_refused(done, 2, "metric", home=tmp_path)


def test_budgets(digits: OnnxDigits, tmp_path: Path) -> None:
    for flag, word in (
        ("--max-size-mb", "the files of the model"),
        ("--max-latency-ms", "this host"),
        ("--max-rss-mb", "this host"),
    ):
        done = build(tmp_path, digits.model, "--target", "onnx", flag, "0.0001")
        check_refused(done, 6, "allowed", word, home=tmp_path)


@pytest.mark.scale
def test_a_profile_of_another_model_is_not_silently_left_out(
    digits: OnnxDigits, tmp_path: Path
) -> None:
    limit = ("--target", "onnx", "--max-latency-ms", "10000")
    assert build(tmp_path, digits.model, *limit).code == 0
    profile = tmp_path / "dist" / "digits-0.1.0-onnx-fp32.report.json"
    for name, told in (("digits", False), ("other", True)):
        done = build(tmp_path, digits.model, *limit, "--profile", profile, "--name", name)
        assert done.code == 0, done.err
        assert ("--profile does not have it" in done.err) is told


def test_limit_finer_than_the_data_is_pointed_out(digits: OnnxDigits, tmp_path: Path) -> None:
    with np.load(digits.evaluation) as data:
        np.savez(tmp_path / "few.npz", image=data["image"][:20], labels=data["labels"][:20])
    done = build(
        tmp_path, digits.model, "--target", "onnx", "--evaluate", "few.npz", "--max-drop", "0.01"
    )
    assert done.code == 0, done.err
    assert "only 20 samples" in done.err
    assert "one sample is 0.0500" in done.err


def test_bundle_does_not_stay_without_its_report(digits: OnnxDigits, tmp_path: Path) -> None:
    report = tmp_path / "dist" / "digits-0.1.0-onnx-fp32.report.json"
    report.mkdir(parents=True)
    done = build(tmp_path, digits.model, "--target", "onnx", "--emit", "triton")
    assert done.code == 2, done.err
    assert "report.json" in done.err
    assert "Traceback" not in done.err
    assert list((tmp_path / "dist").iterdir()) == [report]


def full_disk(home: Path) -> list[str]:
    """Return what runs a command in a namespace where the TMPDIR of HOME has 1.5 MB."""
    mount = f'mount -t tmpfs -o size=1500k none {shlex.quote(str(home))} && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace with a small disk here")
    return words


def test_full_disk_is_told_once(digits: OnnxDigits, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *full_disk(tmp_path / "tmp"), COMMAND, "build", digits.model, "--target", "onnx",
            "--evaluate", digits.evaluation, "--unsigned", "--no-cache",
        ],
        cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    told = Done(done.returncode, done.stdout, done.stderr)
    check_refused(told, 2, "No space left on device", "TMPDIR", home=tmp_path)


# -- interruption


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_build_leaves_nothing(
    digits: OnnxDigits, tmp_path: Path, how: signal.Signals
) -> None:
    process = start(
        "build", digits.model, "--target", "openvino", "--precision", "int8", "--unsigned",
        "--no-cache", "--calibration", digits.calibration, cwd=tmp_path,
        env={"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    deadline = time.monotonic() + 30
    # Between the making of a directory and the note of it, no program can be stopped cleanly.
    while not list((tmp_path / "tmp").glob("edgepack-step-*/tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    done = finish(process, 30)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "dist").exists()


# -- Keras and SavedModel: what is unsafe or impossible


def altered(model: Path, out: Path, change: Callable[[str], str]) -> Path:
    """Write MODEL to OUT with its configuration changed."""
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(out, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename == "config.json":
                data = change(data.decode()).encode()
            target.writestr(item, data)
    return out


@pytest.mark.toolchain
def test_lambda_layer_is_named_and_not_run(keras_home: Path, tmp_path: Path) -> None:
    def change(text: str) -> str:
        config = json.loads(text)
        layer = next(one for one in config["config"]["layers"] if one["config"]["name"] == "relu0")
        layer["class_name"] = "Lambda"
        return json.dumps(config)

    model = altered(keras_home / "model.keras", tmp_path / "unsafe.keras", change)
    done = build(tmp_path, model, "--target", "tflite")
    check_refused(done, 5, "relu0", "holds code", home=tmp_path)


@pytest.mark.toolchain
def test_layer_of_its_own_is_refused(keras_home: Path, tmp_path: Path) -> None:
    def change(text: str) -> str:
        return text.replace('"class_name": "ReLU"', '"class_name": "Mystery"').replace(
            '"module": "keras.layers"', '"module": "somewhere.else"'
        )

    model = altered(keras_home / "model.keras", tmp_path / "own.keras", change)
    check_refused(build(tmp_path, model, "--target", "tflite"), 5, home=tmp_path)


@pytest.mark.toolchain
def test_damaged_weights(keras_home: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(keras_home / "model.keras") as source:
        config = source.read("config.json")
    with zipfile.ZipFile(tmp_path / "cut.keras", "w") as target:
        target.writestr("config.json", config)
    check_refused(build(tmp_path, tmp_path / "cut.keras", "--target", "onnx"), 2, home=tmp_path)


@pytest.mark.toolchain
def test_damaged_saved_model(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "saved", tmp_path / "saved")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(os.urandom(2000))
    check_refused(build(tmp_path, tmp_path / "saved", "--target", "onnx"), 2, home=tmp_path)


@pytest.mark.toolchain
def test_stateful_model_is_refused(zoo: Path, tmp_path: Path) -> None:
    done = build(tmp_path, zoo / "stateful", "--target", "onnx")
    check_refused(done, 5, "keeps state", home=tmp_path)


@pytest.mark.toolchain
def test_model_that_writes_files_is_not_run(zoo: Path, tmp_path: Path) -> None:
    done = build(tmp_path, zoo / "printing", "--target", "onnx")
    check_refused(done, 5, "holds code", "PrintV2", home=tmp_path)
    assert not (zoo / "told.txt").exists()


def test_model_whose_axes_are_unknown_needs_a_shape(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(digits_onnx(tmp_path / "fixed.onnx"))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    (tmp_path / "open.onnx").write_bytes(model.SerializeToString())
    done = build(tmp_path, tmp_path / "open.onnx", "--target", "onnx")
    check_refused(done, 5, "--shape", home=tmp_path)
    done = build(tmp_path, tmp_path / "open.onnx", "--target", "onnx", "--shape", "image=1,1,16,16")
    assert done.code == 0, done.err
