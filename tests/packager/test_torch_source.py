"""PyTorch sources: every form of them is built from, and what could run code is not opened."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack as edgepack_package
import edgepack_packager
from digits import accuracy, digits_data
from digits_torch import torch_zoo
from edgepack.bundle import open_bundle
from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.source import open_source
from edgepack_packager.adapters.steps import Steps
from edgepack_packager.core.plan import KINDS
from edgepack_packager.core.recipe import ModelCard, Recipe, Variant
from edgepack_packager.opening import identified
from packager_rig import Done, edgepack

ASK = """
import json
import sys
from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack_packager.workers import torch_source

out = Path(sys.argv[1])
told = {}
for name, (step, args) in json.loads((out / "cases.json").read_text()).items():
    home = out / name
    home.mkdir()
    try:
        result = getattr(torch_source, step)(args, home, lambda _: None)
        told[name] = ["done", result]
    except EdgepackError as error:
        told[name] = [type(error).__name__, error.reason, f"{error.what} {error.why} {error.fix}"]
(out / "told.json").write_text(json.dumps(told))
"""
PROGRAM, SCRIPT, MODULE = "torch_program", "torchscript", "torch_module"
X = {"x": [1, 4]}


def source(path: Path, kind: str, **more: Any) -> dict[str, Any]:
    plain = {"shapes": {}, "signature": None, "factory": None, "weights": None, "trust": False}
    return plain | {"source": str(path), "kind": kind} | more


@pytest.fixture(scope="session")
def torch_home(torch_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits in every form, and the odd models."""
    own = tmp_path_factory.mktemp("torch-zoo") / "home"
    return torch_zoo(shutil.copytree(torch_home, own))


@pytest.fixture(scope="session")
def built(torch_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    home = tmp_path_factory.mktemp("torch-build")
    return edgepack(
        "build", torch_home / "digits.pt2", "--target", "onnx", "--target", "tflite",
        "--evaluate", torch_home / "evaluation.npz", "--unsigned", "--no-cache", "--json",
        "--out", home, cwd=home,
    )  # fmt: skip


def cases(home: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return step and arguments by name: one process asks them all, PyTorch starts slowly."""
    truncated = home / "truncated.pt2"
    truncated.write_bytes((home / "digits.pt2").read_bytes()[:-3000])
    (home / "broken.py").write_text("import torchvision_of_mine\n")
    images = {"image": [1, 1, 16, 16]}
    module = {"factory": "make", "trust": True}
    odd = home / "digits_torch_odd.py"
    return {
        "any batch": ("export", source(home / "digits.pt2", PROGRAM)),
        "nested outputs": ("export", source(home / "pair.pt2", PROGRAM)),
        "chosen width": (
            "export",
            source(home / "wide.pt2", PROGRAM, shapes={"minus": [1, 8], "plus": [1, 8]}),
        ),
        "open width": ("export", source(home / "wide.pt2", PROGRAM)),
        "bad shape": (
            "export",
            source(home / "digits.pt2", PROGRAM, shapes={"image": [1, 3, 16, 16]}),
        ),
        "unknown input": ("export", source(home / "digits.pt2", PROGRAM, shapes={"img": [1]})),
        "truncated": ("export", source(truncated, PROGRAM)),
        "weights as a program": ("export", source(home / "weights.pt", PROGRAM)),
        "control flow": ("export", source(home / "chooser.pt2", PROGRAM)),
        "custom and state": ("export", source(home / "custom.pt2", PROGRAM)),
        "evil samples": ("export", source(home / "evil-samples.pt2", PROGRAM)),
        "evil operator": ("export", source(home / "evil-operator.pt2", PROGRAM)),
        "evil size": ("export", source(home / "evil-size.pt2", PROGRAM)),
        "evil object": ("export", source(home / "evil-object.pt2", PROGRAM)),
        "evil builtin": ("export", source(home / "evil-builtin.pt2", PROGRAM)),
        "evil library": ("export", source(home / "evil-library.pt2", PROGRAM)),
        **{
            f"hidden {index}": (
                "script_to_onnx",
                source(home / f"hidden-{index}.pt", SCRIPT, shapes={"tokens": [1, 6]}),
            )
            for index in range(5)
        },
        "script": ("script_to_onnx", source(home / "traced.pt", SCRIPT, shapes=images)),
        "script of tokens": (
            "script_to_onnx",
            source(home / "words.pt", SCRIPT, shapes={"tokens": [1, 6]}),
        ),
        "script without shape": ("script_to_onnx", source(home / "traced.pt", SCRIPT)),
        "script with state": ("script_to_onnx", source(home / "counter.pt", SCRIPT, shapes=X)),
        "script that saves": ("script_to_onnx", source(home / "saver.pt", SCRIPT, shapes=X)),
        "pickled module": ("script_to_onnx", source(home / "pickled.pt", SCRIPT, shapes=X)),
        "evil weights": (
            "export",
            source(home / "digits.py", MODULE, factory="make", weights=str(home / "evil.pt")),
        ),
        "example input": ("export", source(home / "digits.py", MODULE, **module)),
        "no shape": ("export", source(home / "digits.py", MODULE, factory="bare", trust=True)),
        "no factory": ("export", source(home / "digits.py", MODULE, factory="fit", trust=True)),
        "no module": ("export", source(odd, MODULE, factory="no_module", trust=True)),
        "other weights": (
            "export",
            source(home / "digits.py", MODULE, weights=str(home / "other.pt"), **module),
        ),
        "broken weights": (
            "export",
            source(home / "digits.py", MODULE, weights=str(home / "digits.py"), **module),
        ),
        "import error": ("export", source(home / "broken.py", MODULE, factory="make", trust=True)),
        "star": ("export", source(odd, MODULE, factory="Star", trust=True, shapes=X)),
        "branch": ("export", source(odd, MODULE, factory="Brancher", trust=True, shapes=X)),
        "counter": ("export", source(odd, MODULE, factory="Counter", trust=True, shapes=X)),
        "noise": ("export", source(odd, MODULE, factory="Noisy", trust=True, shapes=X)),
    }


@pytest.fixture(scope="session")
def told(torch_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the steps said to every case."""
    out = tmp_path_factory.mktemp("torch-cases")
    (out / "cases.json").write_text(json.dumps(cases(torch_home)))
    for package in (edgepack_package, edgepack_packager):
        folder = Path(str(package.__file__)).parent
        (out / folder.name).symlink_to(folder)
    where, _ = toolchains.install(toolchains.find_toolchain("torch"))
    done = subprocess.run(
        [where.python, "-c", ASK, out], env={"PYTHONPATH": str(out)}, cwd=out,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((out / "told.json").read_text()))


# -- what is opened


@pytest.mark.scale
@pytest.mark.toolchain
def test_an_unknown_batch_is_one_sample_and_names_are_those_of_forward(
    told: dict[str, Any],
) -> None:
    image = {"name": "image", "key": "image", "shape": [1, 1, 16, 16], "dtype": "float32"}
    logits = {"name": "logits", "key": "logits", "shape": [1, 10], "dtype": "float32"}
    for name in ("any batch", "example input", "script"):
        kind, result = told[name]
        assert kind == "done", told[name]
        assert (result["inputs"], result["outputs"]) == ([image], [logits])
        assert result["versions"]["torch"].startswith("2.13.0")


@pytest.mark.toolchain
def test_nested_outputs_get_names(told: dict[str, Any]) -> None:
    result = told["nested outputs"][1]
    assert [one["name"] for one in result["inputs"]] == ["right", "left"]
    shapes = {one["name"]: one["shape"] for one in result["outputs"]}
    assert shapes == {"total": [1, 2], "parts_0": [1, 5], "parts_1": [1, 4]}


@pytest.mark.toolchain
def test_a_shape_fills_an_open_axis(told: dict[str, Any]) -> None:
    assert [one["shape"] for one in told["chosen width"][1]["inputs"]] == [[1, 8], [1, 8]]


@pytest.mark.toolchain
def test_a_script_of_tokens_takes_whole_numbers(told: dict[str, Any]) -> None:
    assert told["script of tokens"][1]["inputs"][0]["dtype"] == "int64"


# -- what is refused


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("name", "kind", "reason", "words"),
    [
        ("open width", "UnsupportedError", "unknown_shape", "--shape minus="),
        ("bad shape", "UsageError", "bad_shape", "[-1, 1, 16, 16]"),
        ("unknown input", "UsageError", "unknown_input", "inputs are: image"),
        ("truncated", "UsageError", "corrupt_model", "truncated.pt2"),
        ("weights as a program", "UsageError", "corrupt_model", "weights.pt"),
        ("control flow", "UnsupportedError", "unsupported_model", "control flow: cond"),
        ("script without shape", "UsageError", "unknown_shape", "--shape image="),
        ("script with state", "UnsupportedError", "stateful", "seen"),
        ("script that saves", "UnsupportedError", "unsafe_source", "save"),
        ("pickled module", "UsageError", "pickled_model", "module.py:factory"),
        ("no shape", "UsageError", "unknown_shape", "--shape image="),
        ("no factory", "UsageError", "no_factory", "fit"),
        ("no module", "UsageError", "no_factory", "returns int"),
        ("other weights", "UsageError", "wrong_weights", "hidden.weight"),
        ("broken weights", "UnsupportedError", "unsafe_source", "digits.py"),
        ("import error", "UsageError", "bad_module", "torchvision_of_mine"),
        ("star", "UnsupportedError", "unnamed_inputs", "*"),
        ("branch", "UnsupportedError", "export_failed", "branch"),
        ("counter", "UnsupportedError", "unsupported_model", "state: seen changes"),
        ("noise", "UnsupportedError", "unsupported_model", "random numbers: aten::rand_like"),
    ],
)
def test_what_cannot_be_built_is_one_clear_error(
    told: dict[str, Any], name: str, kind: str, reason: str, words: str
) -> None:
    assert told[name][:2] == [kind, reason], told[name]
    assert words in told[name][2]


@pytest.mark.toolchain
def test_one_error_lists_all_that_is_wrong(told: dict[str, Any]) -> None:
    _, _, text = told["custom and state"]
    assert "state: seen changes" in text
    assert "edgepack_tests::triple" in text


@pytest.mark.toolchain
@pytest.mark.parametrize(
    "name",
    [
        "evil samples", "evil operator", "evil builtin", "evil library", "evil size",
        "evil object", "evil weights", *(f"hidden {index}" for index in range(5)),
    ],
)  # fmt: skip
def test_nothing_in_a_file_runs(told: dict[str, Any], torch_home: Path, name: str) -> None:
    assert told[name][1] == "unsafe_source", told[name]
    assert "--trust-source" in told[name][2]
    assert not (torch_home / "ran").exists()


# -- whole builds


@pytest.mark.toolchain
@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_the_artefact_answers_like_pytorch(built: Done, tmp_path: Path, target: str) -> None:
    assert built.code == 0, built.err
    said = built.bundle(target, "fp32")
    assert said["parity"]["max_abs"] < 1e-3
    assert said["metrics"]["reference"] > 0.9
    assert said["metrics"]["drop"] == 0
    with open_bundle(Path(said["path"])) as bundle:
        (taken,) = bundle.manifest.inputs
        assert (taken.name, taken.shape) == ("image", (1, 1, 16, 16))
        assert taken.binding.permutation is None  # NCHW stays, also in TFLite
        assert bundle.manifest.provenance.source_format == PROGRAM
    test = digits_data()[1].head(60)
    np.savez(tmp_path / "x.npz", image=test.inputs)
    done = edgepack(
        "run", said["path"], "--input", tmp_path / "x.npz", "--out", tmp_path / "y.npz",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    with np.load(tmp_path / "y.npz") as data:
        assert accuracy(data["logits"], test.labels) > 0.9


@pytest.mark.scale
@pytest.mark.toolchain
def test_same_shaped_inputs_and_outputs_are_not_mixed_up(torch_home: Path, tmp_path: Path) -> None:
    done = edgepack(
        "build", torch_home / "twins.pt2", "--target", "onnx", "--target", "tflite",
        "--unsigned", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    given = {"minus": np.full((1, 4), 1, np.float32), "plus": np.full((1, 4), 10, np.float32)}
    np.savez(tmp_path / "x.npz", **given)
    for target in ("onnx", "tflite"):
        path = done.bundle(target, "fp32")["path"]
        out = tmp_path / f"{target}.npz"
        assert edgepack("run", path, "--input", "x.npz", "--out", out, cwd=tmp_path).code == 0
        with np.load(out) as data:
            assert float(data["output_0"][0, 0]) == 9
            assert float(data["output_1"][0, 0]) == 19


@pytest.mark.toolchain
def test_code_with_weights_is_built_when_trusted(torch_home: Path, tmp_path: Path) -> None:
    done = edgepack(
        "build", f"{torch_home}/digits.py:bare", "--weights", torch_home / "weights.safetensors",
        "--trust-source", "--shape", "image=1,1,16,16", "--target", "onnx", "--evaluate",
        torch_home / "evaluation.npz", "--unsigned", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.bundle("onnx", "fp32")["metrics"]["reference"] > 0.9


FILL = """
import sys
import torch

row = torch.full((2,), float(sys.argv[2]))
torch.save({"weight": torch.stack([row, row]), "bias": row}, sys.argv[1])
"""
LOADING = """
import torch

def make():
    net = torch.nn.Linear(2, 2)
    net.load_state_dict(torch.load({path!r}))
    return net
"""


@pytest.mark.scale
@pytest.mark.toolchain
def test_weights_that_code_loads_itself_decide_too(torch_home: Path, tmp_path: Path) -> None:
    """Its file is the same, and yet a cached export would be of the model before."""
    python = toolchains.install(toolchains.find_toolchain("torch"))[0]
    weights, code = tmp_path / "weights.pt", tmp_path / "net.py"
    code.write_text(LOADING.format(path=str(weights)))
    opened = open_source(f"{code}:make", trust=True)
    asked = Recipe("net", "1.0.0", (Variant("onnx", "fp32"),), ModelCard(), {"input": (1, 2)})
    digests = []
    for value in (1, 2, 1):
        subprocess.run([python.python, "-c", FILL, weights, str(value)], check=True)
        home = tmp_path / f"work-{len(digests)}"
        home.mkdir()
        steps = Steps(home, None, {"torch": python}, timeout_s=120, progress=lambda *_: None)
        digests.append(identified(opened, KINDS["torch_module"], asked, steps).sha256)
    assert digests[0] == digests[2] != digests[1]
    assert opened.sha256 not in digests
    code.write_text("def make():\n    raise SystemExit(3)\n")
    with pytest.raises(UsageError, match="does not run"):
        identified(opened, KINDS["torch_module"], asked, steps)


def test_torchscript_is_built(torch_home: Path, tmp_path: Path) -> None:
    done = edgepack(
        "build", torch_home / "script.pt", "--shape", "image=1,1,16,16", "--target", "onnx",
        "--evaluate", torch_home / "evaluation.npz", "--unsigned", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.bundle("onnx", "fp32")["metrics"]["drop"] == 0


# -- before any toolchain starts


def test_code_is_refused_without_trust(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit(7)\n")
    refused = edgepack("build", "model.py:make", "--target", "onnx", "--unsigned", cwd=tmp_path)
    assert refused.code == 2
    assert "--trust-source" in refused.err
    with pytest.raises(UsageError, match="does not say which function"):
        open_source(tmp_path / "model.py", trust=True)


def test_weights_are_no_model(tmp_path: Path) -> None:
    for name, head in (("w.pt", b"\x80\x02"), ("w.pth", b"PK\x03\x04 no more")):
        (tmp_path / name).write_bytes(head)
        with pytest.raises(UsageError, match="pickle of weights") as caught:
            open_source(tmp_path / name)
        assert "module.py:factory --weights" in caught.value.fix
    (tmp_path / "w.safetensors").write_bytes(b"1234")
    with pytest.raises(UnsupportedError, match="weights without a model"):
        open_source(tmp_path / "w.safetensors")


def test_weights_go_with_code_only(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1234")
    with pytest.raises(UsageError, match="--weights does not go with"):
        open_source(tmp_path / "model.onnx", weights=tmp_path / "model.onnx")


def test_the_digest_covers_all_that_decides(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("one\n")
    (tmp_path / "weights.pt").write_bytes(b"1")

    def digest(factory: str = "make") -> str:
        text = f"{tmp_path}/model.py:{factory}"
        return open_source(text, weights=tmp_path / "weights.pt", trust=True).sha256

    seen = {digest(), digest("other")}
    (tmp_path / "weights.pt").write_bytes(b"2")
    seen.add(digest())
    (tmp_path / "model.py").write_text("two\n")
    seen.add(digest())
    assert len(seen) == 4


def test_an_openvino_ir_is_both_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text('<?xml version="1.0"?>\n<net name="model"/>\n')
    with pytest.raises(UsageError, match="no weights beside it"):
        open_source(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_bytes(b"1")
    first = open_source(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_bytes(b"2")
    assert first.kind.name == "openvino"
    assert open_source(tmp_path / "model.xml").sha256 != first.sha256
    (tmp_path / "page.xml").write_text("<html>")
    with pytest.raises(UsageError, match=r"page\.xml cannot be opened"):
        open_source(tmp_path / "page.xml")
