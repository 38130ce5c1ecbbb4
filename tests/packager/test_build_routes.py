"""Every route, built for real: reproducible, proven, small enough, and alike on all targets."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import digits_data
from edgepack.bundle import open_bundle
from edgepack.manifest import Manifest
from edgepack.oci import MLBOM, PROVENANCE, README
from packager_rig import Done, OnnxDigits, Pair, bundles, edgepack

TARGETS = ("onnx", "openvino", "tflite")


def manifests(home: Path) -> dict[str, Manifest]:
    found = {}
    for path in sorted(home.glob("*.edgepack")):
        with open_bundle(path) as bundle:
            found[bundle.manifest.variant] = bundle.manifest
    return found


def run(bundle: Path, given: Path, out: Path) -> dict[str, Any]:
    done = edgepack("run", bundle, "--input", given, "--out", out, cwd=out.parent)
    assert done.code == 0, done.err
    with np.load(out) as data:
        return dict(data)


def check_identical(pair: Pair, variants: int) -> None:
    """VARIANTS were built twice, and are byte by byte the same."""
    assert pair.first.code == 0, pair.first.err
    assert pair.second.code == 0, pair.second.err
    one, two = bundles(pair.home / "one"), bundles(pair.home / "two")
    assert len(two) == variants
    assert [name for name in two if one[name] != two[name]] == []


def check_proof(done: Done, target: str) -> None:
    plain, small = done.bundle(target, "fp32"), done.bundle(target, "int8")
    assert plain["parity"]["max_abs"] < 1e-3
    assert plain["parity"]["cosine"] > 0.99999
    assert plain["metrics"]["drop"] == 0
    assert small["metrics"]["drop"] <= 0.01
    assert small["metrics"]["this"] > 0.9
    assert small["model_bytes"] <= 0.35 * plain["model_bytes"]


# -- the matrix: every source x target x precision that must pass

SMALLER = {"fp32": 1.0, "fp16": 0.62, "int8": 0.45}
"""The share of the fp32 file that each precision may take."""
MATRIX = [
    pytest.param(source, target, precision, marks=marks, id=f"{source}-{target}-{precision}")
    for source, marks in (
        ("keras", pytest.mark.toolchain),
        # From its SavedModel on, a Keras model goes the same way.
        ("saved", (pytest.mark.toolchain, pytest.mark.scale)),
        # test_torch_source builds some of it every time.
        ("torch", (pytest.mark.toolchain, pytest.mark.scale)),
        ("onnx", ()),
    )
    for target in TARGETS
    for precision in SMALLER
    if (source, target) != ("onnx", "tflite")
]


def check_cell(done: Done, target: str, precision: str) -> None:
    """The variant was built, answers like its source, is as small as it says, and can be run."""
    built, plain = done.bundle(target, precision), done.bundle(target, "fp32")
    assert built["metrics"]["reference"] > 0.9
    assert abs(built["metrics"]["drop"]) <= 0.01
    assert built["model_bytes"] <= SMALLER[precision] * plain["model_bytes"]
    assert built["parity"]["cosine"] > (0.9999 if precision != "int8" else 0.9)
    with open_bundle(Path(built["path"])) as bundle:
        assert bundle.manifest.target.precision == precision
        assert bundle.manifest.target.runtime == target


@pytest.mark.parametrize(("source", "target", "precision"), MATRIX)
def test_cell(source: str, target: str, precision: str, request: pytest.FixtureRequest) -> None:
    builds: Pair = request.getfixturevalue(f"{source}_builds")
    check_cell(builds.first, target, precision)


@pytest.mark.onnx2tf
@pytest.mark.parametrize("precision", SMALLER)
def test_cell_onnx_tflite(precision: str, onnx_tflite_build: Done) -> None:
    check_cell(onnx_tflite_build, "tflite", precision)


# -- ONNX


def test_two_onnx_builds_are_byte_identical(onnx_builds: Pair) -> None:
    check_identical(onnx_builds, 6)


def test_a_bundle_says_how_it_came_to_be_and_what_it_is_made_of(onnx_builds: Pair) -> None:
    for said in onnx_builds.first.document["bundles"]:
        with open_bundle(Path(said["path"])) as bundle:
            origin, bom = (bundle.read(path) for path in (PROVENANCE, MLBOM))
            source = bundle.manifest.provenance.source_sha256
            files = {f.path: f.sha256 for f in bundle.manifest.files if f.role == "model"}
            assert bundle.manifest.release.partition("@")[0] in bundle.read(README).decode()
        assert str(onnx_builds.home).encode() not in origin + bom
        assert len(origin) + len(bom) < 16_384
        statement = json.loads(origin)
        assert {s["name"]: s["digest"]["sha256"] for s in statement["subject"]} == files
        needed = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert needed[0]["digest"]["sha256"] == source
        assert needed[1]["name"] in {"calibration", "evaluation"}
        hashes = {c["name"]: c["hashes"][0]["content"] for c in json.loads(bom)["components"][:1]}
        assert hashes.items() <= files.items()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_onnx_source_keeps_its_accuracy(onnx_builds: Pair, target: str) -> None:
    check_proof(onnx_builds.first, target)


def test_document_says_what_was_measured(onnx_builds: Pair) -> None:
    document = onnx_builds.first.document
    assert document["schema"] == "edgepack.build/v1"
    assert document["failed"] == []
    for said in document["bundles"]:
        path = Path(said["path"])
        assert path.stat().st_size == said["size_bytes"]
        with open_bundle(path) as bundle:
            assert bundle.digest == said["digest"]
            assert bundle.manifest.target.precision == said["precision"]
        assert 0 < said["latency_ms"]["p50"] <= said["latency_ms"]["p95"]


def test_report_lies_beside_the_bundle_and_names_its_digest(onnx_builds: Pair) -> None:
    for said in onnx_builds.first.document["bundles"]:
        report = json.loads(Path(said["path"]).with_suffix(".report.json").read_text())
        assert report["schema"] == "edgepack.report/v1"
        assert report["digest"] == said["digest"]
        assert report["effective"]["precision"] == "f32"
        assert (report["applied"]["quantized_operators"] > 0) == (said["precision"] == "int8")


def test_bundle_holds_nothing_else_and_unzips(onnx_builds: Pair) -> None:
    home = onnx_builds.home / "one"
    assert {p.suffix for p in home.iterdir()} == {".edgepack", ".json", ".md", ".svg"}
    for path in home.glob("*.edgepack"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None


def test_manifest_says_where_the_model_comes_from(onnx_builds: Pair, digits: OnnxDigits) -> None:
    for variant, manifest in manifests(onnx_builds.home / "one").items():
        assert manifest.provenance.source_format == "onnx"
        assert manifest.inputs[0].name == "image"
        assert manifest.inputs[0].shape == (1, 1, 16, 16)
        assert manifest.metrics is not None
        assert manifest.metrics.limit == 0.01
        assert manifest.task == "classify"
        assert (manifest.calibration is not None) == ("int8" in variant)
        if manifest.calibration:
            assert manifest.calibration.samples == 200


def test_golden_tolerance_is_tighter_than_the_way_to_the_source(onnx_builds: Pair) -> None:
    built = manifests(onnx_builds.home / "one")
    for target in ("onnx", "openvino"):
        plain, small = built[f"{target}-fp32"], built[f"{target}-int8"]
        assert plain.agreement.min_cosine > small.agreement.min_cosine > 0.98
        parity = onnx_builds.first.bundle(target, "int8")["parity"]["cosine"]
        # Half of the golden samples' own distance is at most half of the worst sample's.
        assert small.agreement.min_cosine >= 1 - (1 - parity) / 2


# -- Keras and SavedModel


@pytest.mark.toolchain
def test_two_keras_builds_are_byte_identical(keras_builds: Pair) -> None:
    check_identical(keras_builds, 3)


@pytest.mark.toolchain
@pytest.mark.parametrize("target", TARGETS)
def test_keras_source_keeps_its_accuracy(keras_builds: Pair, target: str) -> None:
    check_proof(keras_builds.first, target)


@pytest.mark.toolchain
def test_all_targets_show_the_same_interface(keras_builds: Pair) -> None:
    for manifest in manifests(keras_builds.home / "one").values():
        (image,), (scores,) = manifest.inputs, manifest.outputs
        assert (image.name, image.shape, image.layout) == ("image", (1, 16, 16, 1), "NHWC")
        assert (scores.name, scores.shape) == ("scores", (1, 10))
        assert manifest.postprocess is not None
        assert manifest.postprocess.activation == "none", "the scores are probabilities already"


@pytest.mark.toolchain
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_same_input_gives_same_decisions_on_all_targets(
    keras_builds: Pair, keras_home: Path, tmp_path: Path, precision: str
) -> None:
    decisions = {}
    for target in TARGETS:
        bundle = keras_builds.home / "one" / f"digits-0.1.0-{target}-{precision}.edgepack"
        outputs = run(bundle, keras_home / "x.npz", tmp_path / f"{target}.npz")
        assert outputs["scores"].shape == (50, 10)
        decisions[target] = outputs["scores"].argmax(axis=1)
    # int8 is quantised by three different tools: they may differ where the model is undecided.
    allowed = 0 if precision == "fp32" else 1
    for target in TARGETS:
        assert (decisions[target] != decisions["onnx"]).sum() <= allowed


@pytest.mark.toolchain
def test_run_answers_pictures(keras_builds: Pair, keras_home: Path, tmp_path: Path) -> None:
    bundle = keras_builds.home / "one" / "digits-0.1.0-tflite-int8.edgepack"
    done = edgepack("run", bundle, "--source", keras_home / "heldout", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    results = done.document["results"]
    right = [r for r in results if Path(r["source"]).name[0] == r["answer"]["top"][0]["label"]]
    assert len(results) == 60
    assert len(right) >= 54


@pytest.mark.scale
@pytest.mark.toolchain
def test_two_saved_model_builds_are_byte_identical(saved_builds: Pair) -> None:
    check_identical(saved_builds, 3)


@pytest.mark.toolchain
@pytest.mark.scale
def test_two_torch_builds_are_byte_identical(torch_builds: Pair) -> None:
    check_identical(torch_builds, 3)


@pytest.mark.scale
@pytest.mark.toolchain
def test_saved_model_keeps_its_signature_names(saved_builds: Pair) -> None:
    for manifest in manifests(saved_builds.home / "one").values():
        assert manifest.provenance.source_format == "saved_model"
        assert [t.name for t in manifest.inputs] == ["image"]
        assert [t.name for t in manifest.outputs] == ["output_0"]


@pytest.mark.scale
@pytest.mark.toolchain
def test_several_inputs_and_outputs_keep_their_names(zoo: Path, tmp_path: Path) -> None:
    done = edgepack(
        "build", zoo / "pair.keras", "--target", "tflite", "--target", "onnx", "--unsigned",
        "--no-cache", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    samples = {"left": np.eye(4, dtype=np.float32), "right": np.ones((4, 4, 3), np.float32)}
    np.savez(tmp_path / "x.npz", **samples)
    answers = [
        run(Path(b["path"]), tmp_path / "x.npz", tmp_path / f"{b['target']}.npz")
        for b in (one | {"path": tmp_path / one["path"]} for one in done.document["bundles"])
    ]
    assert [set(answer) for answer in answers] == [{"total", "both"}] * 2
    assert answers[0]["total"].shape == (4, 2)
    np.testing.assert_allclose(answers[0]["both"], answers[1]["both"], rtol=1e-4, atol=1e-5)


@pytest.mark.scale
@pytest.mark.toolchain
def test_one_of_several_signatures_is_chosen(zoo: Path, tmp_path: Path) -> None:
    build = ["build", zoo / "two", "--target", "onnx", "--unsigned", "--no-cache"]
    unsaid = edgepack(*build, cwd=tmp_path)
    assert unsaid.code == 2
    assert "count, double" in unsaid.err
    done = edgepack(*build, "--signature", "double", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    np.savez(tmp_path / "x.npz", x=np.ones((1, 4), np.float32))
    answer = run(
        tmp_path / done.document["bundles"][0]["path"], tmp_path / "x.npz", tmp_path / "y.npz"
    )
    assert answer["y"].tolist() == [[2, 2, 2, 2]]


# -- run and benchmark


def test_benchmark_measures(onnx_builds: Pair, tmp_path: Path) -> None:
    bundle = onnx_builds.home / "one" / "digits-0.1.0-openvino-int8.edgepack"
    done = edgepack("benchmark", bundle, "--threads", "1", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    said = done.document
    assert said["schema"] == "edgepack.benchmark/v1"
    assert said["effective"]["precision"] == "f32"
    assert min(said["load_ms"], said["first_ms"], said["throughput_per_s"]) > 0
    assert said["peak_rss_mb"] > 10
    assert "is not signed" in done.err


def test_run_scores_like_the_build_said(
    onnx_builds: Pair, digits: OnnxDigits, tmp_path: Path
) -> None:
    with np.load(digits.evaluation) as data:
        np.savez(tmp_path / "x.npz", image=data["image"])
    bundle = onnx_builds.home / "one" / "digits-0.1.0-onnx-int8.edgepack"
    outputs = run(bundle, tmp_path / "x.npz", tmp_path / "y.npz")
    accuracy = (outputs["logits"].argmax(axis=1) == digits_data()[1].labels).mean()
    said = onnx_builds.first.bundle("onnx", "int8")["metrics"]["this"]
    assert accuracy == pytest.approx(said)


@pytest.mark.parametrize(
    "args", [(), ("--input", "x.npz"), ("--input", "x.npz", "--out", "y.npz", "--source", "a.png")]
)
def test_run_wants_tensors_or_pictures(
    onnx_builds: Pair, tmp_path: Path, args: tuple[str, ...]
) -> None:
    bundle = onnx_builds.home / "one" / "digits-0.1.0-onnx-fp32.edgepack"
    done = edgepack("run", bundle, *args, cwd=tmp_path)
    assert done.code == 2
    assert "--source" in done.err


def test_outputs_that_cannot_be_written_leave_nothing(
    onnx_builds: Pair, digits: OnnxDigits, tmp_path: Path
) -> None:
    bundle = onnx_builds.home / "one" / "digits-0.1.0-onnx-fp32.edgepack"
    (tmp_path / "taken").mkdir()
    for out in ("taken", "nowhere/y.npz"):
        done = edgepack("run", bundle, "--input", digits.calibration, "--out", out, cwd=tmp_path)
        assert done.code == 2, done.err
        assert "cannot be written" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# -- signing


def test_signed_build_verifies_and_differs_only_by_the_signature(
    digits: OnnxDigits, tmp_path: Path
) -> None:
    made = edgepack("keys", "create", tmp_path / "mine.pem", "--no-passphrase", cwd=tmp_path)
    assert made.code == 0, made.err
    build = ["build", digits.model, "--target", "onnx", "--no-cache", "--json", "--out"]
    by_flag = edgepack(*build, "flag", "--key", tmp_path / "mine.pem", cwd=tmp_path)
    by_name = edgepack(
        *build, "name", cwd=tmp_path, env={"EDGEPACK_KEY": str(tmp_path / "mine.pem")}
    )
    assert (by_flag.code, by_name.code) == (0, 0), by_flag.err + by_name.err
    assert "not signed" not in by_flag.err
    assert bundles(tmp_path / "flag") == bundles(tmp_path / "name")
    bundle = tmp_path / by_flag.document["bundles"][0]["path"]
    verified = edgepack("verify", bundle, "--key", tmp_path / "mine.pub.pem", cwd=tmp_path)
    assert verified.code == 0, verified.err


def test_unsigned_build_says_so(onnx_builds: Pair) -> None:
    assert "not signed" in onnx_builds.first.err


def test_metric_of_the_users_own_is_used(digits: OnnxDigits, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def half(outputs, labels):\n"
        "    return (outputs['logits'].argmax(axis=1) == labels).mean() / 2\n"
    )
    done = edgepack(
        "build", digits.model, "--target", "onnx", "--unsigned", "--evaluate", digits.evaluation,
        "--metric", "own.py:half", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert 0.4 < done.document["bundles"][0]["metrics"]["this"] < 0.5
    (manifest,) = manifests(tmp_path / "dist").values()
    assert manifest.metrics is not None
    assert manifest.metrics.name == "own.py:half"
    assert manifest.task == "raw"


def test_recipe_puts_its_words_into_the_manifest(digits: OnnxDigits, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model:\n  labels: [" + ", ".join("abcdefghij") + "]\n  license: MIT\n"
        "  preprocess: {color: gray}\n"
    )
    done = edgepack(
        "build", digits.model, "--target", "openvino", "--unsigned", "--recipe", "r.yaml",
        "--version", "2.1.0", "--name", "shown", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.document["bundles"][0]["metrics"] == {"reference": None, "this": None, "drop": None}
    with open_bundle(tmp_path / "dist" / "shown-2.1.0-openvino-fp32.edgepack") as bundle:
        assert bundle.read("labels.txt").decode().split() == list("abcdefghij")
        manifest = bundle.manifest
    assert (manifest.license, manifest.task, manifest.inputs[0].layout) == (
        "MIT", "classify", "NCHW",
    )  # fmt: skip
    assert manifest.postprocess is not None
    assert manifest.postprocess.activation == "softmax", "the net gives logits"
