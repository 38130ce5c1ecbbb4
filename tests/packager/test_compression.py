"""Compress steps change what they say they change, keep what they must, and refuse the rest."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from digits import INPUT, accuracy, digits_data, digits_onnx
from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.adapters.toolchains import find_toolchain, install
from edgepack_packager.adapters.worker import Interpreter, host_interpreter, run_step
from edgepack_packager.core.compression import (
    Cluster,
    Distil,
    LowRank,
    PruneMagnitude,
    PruneStructured,
    QuantizeAware,
    order,
    parse_step,
    supported,
)
from edgepack_packager.workers.thinning import (
    cluster,
    distinct,
    factorise,
    smallest,
    sparsity,
    tucker,
)
from edgepack_packager.workers.training_data import check_classes
from packager_rig import OnnxDigits, edgepack
from transformer_torch import Trained, transformer

Array = np.ndarray[Any, Any]


# -- settings


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"prune": {"kind": "structured", "amount": 0.3}}, PruneStructured(amount=0.3)),
        ({"prune": {"kind": "magnitude", "sparsity": 0.8}}, PruneMagnitude(sparsity=0.8)),
        ({"cluster": {"clusters": 32}}, Cluster(32)),
        ({"low_rank": {"rank": 0.25, "epochs": 0}}, LowRank(rank=0.25, epochs=0)),
        ({"qat": None}, QuantizeAware(epochs=3)),
    ],
)
def test_a_recipe_entry_becomes_a_step(said: dict[str, Any], meant: object) -> None:
    assert parse_step(said) == meant


def test_paths_in_a_step_are_located_and_named() -> None:
    step = parse_step({"distil": {"student": "s.py:small"}}, lambda path: f"/recipes/{path}")
    assert isinstance(step, Distil)
    assert step.student == "/recipes/s.py:small"
    assert step.files == ("/recipes/s.py",)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"prune": {"sparsity": 0.5}}, "no `kind`"),
        ({"prune": {"kind": "random"}}, "no pruning random"),
        ({"prune": {"kind": "magnitude", "sparsity": 1}}, "sparsity is 1"),
        ({"prune": {"kind": "structured", "amount": float("nan")}}, "amount is nan"),
        ({"cluster": {"clusters": 1}}, "clusters is 1"),
        ({"cluster": {"clusters": True}}, "not right"),
        ({"cluster": {"cluster": 16}}, "no setting cluster"),
        ({"low_rank": {"rank": "half"}}, "not right"),
        ({"distil": {}}, "needs `student`"),
        ({"distil": {"student": "student:make"}}, "`student`"),
        ({"qat": {"epochs": 0}}, "epochs is 0"),
        ({"qat": {"bits": 16}}, "bits is 16"),
        ({"squeeze": {}}, "no step squeeze"),
        ({"qat": {}, "cluster": {}}, "cannot be read"),
        ({"cluster": [16]}, "not a mapping"),
    ],
)
def test_a_wrong_entry_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_step(said)
    assert caught.value.reason == "bad_recipe"


def test_steps_come_in_the_order_in_which_none_undoes_another() -> None:
    given = [QuantizeAware(), PruneMagnitude(), Distil(student="s.py:f"), LowRank()]
    assert [step.kind for step in order(given)] == ["distil", "low_rank", "prune_magnitude", "qat"]


@pytest.mark.parametrize("steps", [(Cluster(8), Cluster(16)), (Cluster(), QuantizeAware())])
def test_steps_that_contradict_one_another_are_refused(steps: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        order(steps)


@pytest.mark.parametrize(
    ("kind", "step", "words"),
    [
        ("keras", PruneStructured(), "no library"),
        ("onnx", PruneStructured(epochs=0), "no library"),
        ("keras", QuantizeAware(), "Keras 2"),
        ("keras", Distil(student="s.py:f"), "PyTorch"),
        ("torch_program", LowRank(epochs=0), "fixed graph"),
        ("saved_model", Cluster(), "converted model"),
        ("tflite", PruneMagnitude(), "converted model"),
        ("openvino", LowRank(), "converted model"),
        ("onnx", PruneMagnitude(epochs=1), "not a network"),
        ("keras", PruneMagnitude(epochs=1, loss="l.py:f"), "a loss is code"),
    ],
)
def test_what_a_source_cannot_express_is_refused_with_the_reason(
    kind: str, step: Any, words: str
) -> None:
    refusal = supported(kind, step)
    assert refusal is not None
    assert words in refusal.why


def test_a_pytorch_module_can_have_everything() -> None:
    steps = (PruneStructured(), PruneMagnitude(), Cluster(), LowRank(), QuantizeAware())
    assert all(supported("torch_module", step) is None for step in steps)


# -- arithmetic


@given(
    arrays(np.float32, (40,), elements=st.floats(-4, 4, width=32)),
    st.integers(2, 12),
)
def test_clustering_keeps_zeros_and_moves_no_weight_past_its_range(
    weight: Array, count: int
) -> None:
    shared = cluster(weight, count)
    assert distinct([shared]) <= count
    assert (shared[weight == 0] == 0).all()
    assert shared.min() >= weight.min()
    assert shared.max() <= weight.max()


@given(st.floats(0.01, 0.99))
def test_pruning_takes_exactly_the_smallest(share: float) -> None:
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(7, 9)), "b": 3 * rng.normal(size=(5, 5))}
    stays = smallest(weights, share)
    kept = np.concatenate([abs(weights[name][stays[name]]) for name in weights])
    gone = np.concatenate([abs(weights[name][~stays[name]]) for name in weights])
    assert len(gone) == round(share * 88)
    assert gone.max(initial=0) <= kept.min(initial=np.inf)


def test_full_rank_gives_the_weight_back() -> None:
    kernel = np.random.default_rng(0).normal(size=(8, 6, 3, 3))
    last, core, first = tucker(kernel, 8, 6)
    np.testing.assert_allclose(np.einsum("or,rsxy,si->oixy", last, core, first), kernel)
    left, right = factorise(kernel[:, :, 0, 0], 6)
    np.testing.assert_allclose(left @ right, kernel[:, :, 0, 0])


# -- training data


@pytest.mark.parametrize(
    ("labels", "shapes", "words"),
    [
        (np.arange(12), {"y": (4, 10)}, "0 to 11"),
        (np.array([-1, 2]), {"y": (4, 10)}, "-1 to 2"),
        (np.array([0.5, 1.0]), {"y": (4, 10)}, "float64"),
        (np.eye(10, dtype=np.int64), {"y": (4, 10)}, r"shape \[10, 10\]"),
        (np.arange(3), {"y": (4, 10), "z": (4, 2)}, "several outputs"),
        (np.arange(3), {"y": (4, 8, 8, 10)}, "samples, classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    labels: Array, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_classes(labels, shapes)
    assert re.search(words, caught.value.why)


# -- ONNX


def _steps(*steps: Any) -> list[dict[str, Any]]:
    return [step.as_dict() for step in order(steps)]


def test_onnx_weights_become_thin_sparse_and_shared(tmp_path: Path) -> None:
    args = {
        "source": str(digits_onnx(tmp_path / "digits.onnx")), "kind": "onnx", "train": None,
        "seed": 0,
        "steps": _steps(
            LowRank(rank=0.5, epochs=0), PruneMagnitude(sparsity=0.6), Cluster(clusters=16)
        ),
    }  # fmt: skip
    done = run_step(host_interpreter(), "onnx_compress.compress", args, tmp_path, timeout_s=60)
    thin, _, shared = done["applied"]
    assert thin["ranks"] == {"hidden": [80]}
    assert thin["parameters_after"] < 0.6 * thin["parameters_before"]
    weights = {
        one.name: onnx.numpy_helper.to_array(one)
        for one in onnx.load(tmp_path / done["file"]).graph.initializer
        if len(one.dims) > 1
    }
    zeros = sum(int((one == 0).sum()) for one in weights.values())
    assert zeros / sum(one.size for one in weights.values()) == pytest.approx(0.6, abs=0.001)
    assert distinct(list(weights.values())) == shared["distinct_values"] == 16
    test = digits_data()[1]
    session = onnxruntime.InferenceSession(tmp_path / done["file"])
    assert accuracy(session.run(None, {INPUT: test.inputs})[0], test.labels) > 0.9


def test_onnx_without_float_weights_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"
    ]
    graph = onnx.helper.make_graph([node], "relu", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), tmp_path / "relu.onnx")
    args = {"source": str(tmp_path / "relu.onnx"), "steps": _steps(Cluster())}
    with pytest.raises(UnsupportedError, match="no float weights"):
        run_step(host_interpreter(), "onnx_compress.compress", args, tmp_path, timeout_s=60)


# -- Keras


@pytest.mark.scale
@pytest.mark.toolchain
def test_keras_model_is_compressed_and_keeps_its_names(keras_home: Path, tmp_path: Path) -> None:
    where, _ = install(find_toolchain("tf"))
    source = {
        "kind": "keras", "shapes": {}, "signature": None, "factory": None, "weights": None,
        "trust": False,
    }  # fmt: skip
    args = source | {
        "source": str(keras_home / "model.keras"), "seed": 0,
        "train": str(tmp_path / "train.npz"),
        "steps": _steps(
            LowRank(rank=0.5, epochs=0), PruneMagnitude(sparsity=0.6, epochs=2), Cluster()
        ),
    }  # fmt: skip
    with np.load(keras_home / "evaluate.npz") as data:
        images, labels = data["image"], data["labels"]
        np.savez(tmp_path / "train.npz", image=images[:300], labels=labels[:300])
        np.savez(tmp_path / "x.npz", image=images[300:])
    done = run_step(where, "keras_compress.compress", args, tmp_path, timeout_s=200)
    thin, sparse, shared = done["applied"]
    assert thin["ranks"] == {"conv1": [8, 16], "hidden": [160]}
    assert thin["parameters_after"] < thin["parameters_before"]
    assert sparse["measured_sparsity"] == pytest.approx(0.6, abs=0.001)
    assert sparse["accuracy_tuned"] >= sparse["accuracy_after"]
    assert 8 < shared["distinct_values"] <= 16
    asked = source | {"source": str(tmp_path / done["file"]), "samples": str(tmp_path / "x.npz")}
    run_step(where, "tf.reference", asked, tmp_path, timeout_s=200)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert accuracy(outputs["scores"], labels[300:]) > 0.85


# -- PyTorch


@pytest.fixture(scope="module")
def torch() -> Interpreter:
    return install(find_toolchain("torch"))[0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, torch: Interpreter) -> Trained:
    return transformer(tmp_path_factory.mktemp("transformer"), torch.python, epochs=6)


def _source(rows: Trained) -> dict[str, Any]:
    return {
        "source": str(rows.home / "module.py"), "kind": "torch_module", "factory": "factory",
        "shapes": {INPUT: [1, 1, 16, 16]}, "signature": None, "weights": str(rows.weights),
        "trust": True,
    }  # fmt: skip


def _compress(torch: Interpreter, rows: Trained, out: Path, *steps: Any) -> dict[str, Any]:
    args = _source(rows) | {"train": str(rows.train), "seed": 0, "steps": _steps(*steps)}
    return run_step(torch, "torch_compress.compress", args, out, timeout_s=200)


def _judge(torch: Interpreter, out: Path) -> float:
    """Return the accuracy on the test digits of what a compress step left in OUT."""
    test = digits_data()[1]
    np.savez(out / "x.npz", **{INPUT: test.inputs})
    args = {
        "kind": "torch_program", "source": str(out / "program.pt2"), "shapes": {},
        "signature": None, "factory": None, "weights": None, "trust": False,
        "samples": str(out / "x.npz"),
    }  # fmt: skip
    run_step(torch, "torch_source.reference", args, out, timeout_s=200)
    with np.load(out / "outputs.npz") as outputs:
        return accuracy(outputs["output_0"], test.labels)


def _weights(program: Path) -> dict[str, Array]:
    """Return the matrices in a .pt2 file, without PyTorch."""
    with zipfile.ZipFile(program) as archive:
        home = next(name for name in archive.namelist() if name.endswith("weights_config.json"))
        found = {}
        for name, one in json.loads(archive.read(home))["config"].items():
            raw = archive.read(f"{Path(home).parent}/{one['path_name']}")
            shape = [size["as_int"] for size in one["tensor_meta"]["sizes"]]
            if len(shape) == 2:
                found[name.removeprefix("inner.")] = np.frombuffer(raw, np.float32).reshape(shape)
    return found


def _off_grid(weight: Array) -> float:
    """Return how far WEIGHT is from 7-bit steps, a scale per row; in steps."""
    steps = weight / (abs(weight).max(axis=1, keepdims=True) / 64)
    return float(abs(steps - steps.round()).max())


@pytest.mark.scale
@pytest.mark.toolchain
def test_channels_zeros_and_rounding_together(
    torch: Interpreter, rows: Trained, tmp_path: Path
) -> None:
    done = _compress(
        torch, rows, tmp_path,
        QuantizeAware(epochs=2), PruneMagnitude(sparsity=0.4, epochs=2), PruneStructured(epochs=2),
    )  # fmt: skip
    narrow, sparse, rounded = done["applied"]
    # Attention fixes its width in `forward`, so only the two wide layers give channels.
    assert narrow["channels"] == {"blocks.0.up": [128, 64], "blocks.1.up": [128, 64]}
    assert {"blocks.0.qkv", "embed", "head"} <= set(narrow["kept"])
    assert sparse["measured_sparsity"] == pytest.approx(0.4, abs=0.001)
    assert rounded["layers"] == 10
    weights = _weights(tmp_path / done["file"])
    assert weights["blocks.0.up.weight"].shape == (64, 64)
    assert max(map(_off_grid, weights.values())) < 1e-3
    assert sparsity(weights.values()) >= 0.399
    assert _judge(torch, tmp_path) > 0.85


@pytest.mark.scale
@pytest.mark.toolchain
def test_low_rank_then_values_of_a_program(
    torch: Interpreter, rows: Trained, tmp_path: Path
) -> None:
    done = _compress(torch, rows, tmp_path, LowRank(rank=0.5, epochs=3))
    (thin,) = done["applied"]
    assert thin["ranks"]["blocks.0.qkv"] == [32]
    assert {"head", "blocks.0.mix"} <= set(thin["kept"])
    assert thin["parameters_after"] < thin["parameters_before"]
    assert thin["accuracy_tuned"] > thin["accuracy_after"]
    program = _source(rows) | {
        "source": str(tmp_path / done["file"]), "kind": "torch_program", "factory": None,
        "weights": None, "shapes": {}, "trust": False, "train": None, "seed": 0,
        "steps": _steps(PruneMagnitude(sparsity=0.3), Cluster(clusters=32)),
    }  # fmt: skip
    again = tmp_path / "again"
    again.mkdir()
    done = run_step(torch, "torch_compress.compress", program, again, timeout_s=200)
    assert done["kind"] == "torch_program"
    assert done["applied"][0]["measured_sparsity"] == pytest.approx(0.3, abs=0.001)
    weights = _weights(again / done["file"])
    assert sparsity(weights.values()) == pytest.approx(0.3, abs=0.001)
    assert distinct(list(weights.values())) <= 32
    assert _judge(torch, again) > thin["accuracy_tuned"] - 0.1


@pytest.mark.scale
@pytest.mark.toolchain
def test_a_student_is_reproducible_and_told_beside_one_without_a_teacher(
    torch: Interpreter, rows: Trained, tmp_path: Path
) -> None:
    student = f"{rows.home / 'module.py'}:student"
    step = Distil(student=student, epochs=6, learning_rate=5e-3)
    done = _compress(torch, rows, tmp_path, step)
    (facts,) = done["applied"]
    assert facts["parameters_after"] < facts["parameters_before"] / 5
    assert facts["accuracy_tuned"] > facts["accuracy_after"]
    # Learning from a teacher is not always better; what counts is that both are told.
    assert 0.3 < facts["accuracy_control"] <= 1
    assert facts["accuracy_teacher"] > 0.9
    again = tmp_path / "again"
    again.mkdir()
    assert _compress(torch, rows, again, step) == done
    one, two = (_weights(home / done["file"]) for home in (tmp_path, again))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.toolchain
def test_a_student_of_another_shape_is_refused(
    torch: Interpreter, rows: Trained, tmp_path: Path
) -> None:
    code = "import torch\ndef small():\n    return torch.nn.Flatten()\n"
    (tmp_path / "student.py").write_text(code)
    with pytest.raises(UsageError, match="cannot stand in"):
        _compress(torch, rows, tmp_path, Distil(student=f"{tmp_path / 'student.py'}:small"))


# -- the command


def _recipe(path: Path, *steps: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"steps": list(steps)}))
    return path


def test_a_build_tells_what_its_recipe_did(digits: OnnxDigits, tmp_path: Path) -> None:
    prune = {"prune": {"kind": "magnitude", "sparsity": 0.5}}
    low_rank = {"low_rank": {"rank": 0.5, "epochs": 0}}
    done = edgepack(
        "build", digits.model, "--target", "onnx", "--precision", "int8", "--calibration",
        digits.calibration, "--evaluate", digits.evaluation, "--unsigned", "--json",
        "--out", tmp_path, "--recipe", _recipe(tmp_path / "r.yaml", prune, low_rank),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    built = done.bundle("onnx", "int8")
    assert built["metrics"]["drop"] < 0.05
    report = json.loads(Path(built["path"]).with_suffix(".report.json").read_text())
    assert [one["kind"] for one in report["compression"]] == ["low_rank", "prune_magnitude"]
    assert report["compression"][1]["measured_sparsity"] == pytest.approx(0.5, abs=0.001)
    # Zeros survive the quantisation; small weights that round to zero come on top.
    assert report["applied"]["sparsity"] >= 0.49


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        ({"prune": {"kind": "structured", "epochs": 0}}, 5, "no library"),
        ({"qat": {}}, 2, "data to train on"),
        ({"cluster": {"clusters": 1000}}, 2, "clusters is 1000"),
    ],
)
def test_a_recipe_that_cannot_be_done_is_refused(
    digits: OnnxDigits, tmp_path: Path, step: dict[str, Any], code: int, words: str
) -> None:
    done = edgepack(
        "build", digits.model, "--target", "onnx", "--unsigned", "--out", tmp_path / "dist",
        "--recipe", _recipe(tmp_path / "r.yaml", step), cwd=tmp_path,
    )  # fmt: skip
    assert done.code == code
    assert words in done.err
    assert not (tmp_path / "dist").exists()
