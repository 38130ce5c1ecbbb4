"""`edgepack compare`: two bundles side by side, by their numbers and sample by sample."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import pytest

import bundles
from digits import INPUT, digits_data
from edgepack.bundle import open_bundle, write_bundle
from edgepack.manifest import Binding, Manifest, TensorSpec
from edgepack_packager.core.compare import answers_agree, interface_differences
from packager_rig import Done, edgepack
from slots import digits_bundle

LABELS = digits_data()[1].labels


@dataclass(frozen=True)
class Case:
    """Two trained digits classifiers, the second one worse, and labelled data."""

    good: Path
    bad: Path
    data: Path


@cache
def case() -> Case:
    home = Path(mkdtemp(prefix="edgepack-compare-"))
    np.savez(home / "val.npz", **{INPUT: digits_data()[1].inputs, "labels": LABELS})
    return Case(digits_bundle(), digits_bundle("1.1.0", wrong_labels=0.42), home / "val.npz")


def answers(bundle: Path, home: Path) -> np.ndarray:
    x = home / "x.npz"
    np.savez(x, **{INPUT: digits_data()[1].inputs})
    done = edgepack("run", bundle, "--input", x, "--out", home / "y.npz", cwd=home)
    assert done.code == 0, done.err
    with np.load(home / "y.npz") as data:
        return np.asarray(data[data.files[0]])


def compared(*words: str | Path, cwd: Path) -> Done:
    done = edgepack("compare", *words, "--json", cwd=cwd)
    assert done.code == 0, done.err
    return done


def with_outputs(*names: str, manifest: Manifest) -> Manifest:
    specs = tuple(
        TensorSpec(name=n, shape=(1, 10), dtype="float32", binding=Binding(native_name=n))
        for n in names
    )
    return msgspec.structs.replace(manifest, outputs=specs)


def test_counts_are_those_of_the_answers(tmp_path: Path) -> None:
    said = compared(case().good, case().bad, "--data", case().data, cwd=tmp_path).document
    a, b = (answers(one, tmp_path).argmax(axis=1) for one in (case().good, case().bad))
    assert said["a"]["accuracy"] == pytest.approx((a == LABELS).mean())
    assert said["b"]["accuracy"] == pytest.approx((b == LABELS).mean())
    assert said["paired"]["lost"] == ((a == LABELS) & (b != LABELS)).sum() > 0
    assert said["paired"]["gained"] == ((a != LABELS) & (b == LABELS)).sum()
    assert said["paired"]["p_value"] < 0.01
    (output,) = said["agreement"]["outputs"]
    assert output["top1"] == pytest.approx((a == b).mean())
    assert said["agreement"]["samples"] == len(LABELS)
    assert said["same_interface"] is True


def test_a_bundle_is_like_itself(tmp_path: Path) -> None:
    said = compared(case().good, case().good, cwd=tmp_path).document
    (output,) = said["agreement"]["outputs"]
    assert (output["top1"], output["max_abs"], output["cosine"]["lowest"]) == (1.0, 0.0, 1.0)
    assert said["agreement"]["data"] == "golden"
    assert said["paired"] is None
    assert said["a"]["digest"] == said["b"]["digest"]
    assert said["a"]["accuracy"] is None


def test_a_person_reads_what_it_costs(tmp_path: Path) -> None:
    done = edgepack("compare", case().good, case().bad, "--data", case().data, cwd=tmp_path)
    assert done.code == 0, done.err
    for fact in ("digits@1.0.0", "digits@1.1.0", "p50", "B beside A costs", "lost", "B / A"):
        assert fact in done.out
    assert "is not signed" in done.err


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 2), np.float32))
    done = edgepack("compare", case().good, case().bad, "--data", "x.npz", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "does not fit the model" in done.err


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x" * 100)
    assert edgepack("compare", case().good, "a.onnx", cwd=tmp_path).code == 3
    assert edgepack("compare", case().good, "none", cwd=tmp_path).code == 2


def test_bundles_with_other_inputs_are_measured_each_on_its_own(tmp_path: Path) -> None:
    with open_bundle(case().good) as bundle:
        bundle.extract(tmp_path / "slot")
        old = bundle.manifest
    spec = msgspec.structs.replace(old.inputs[0], name="pixels")
    files = {
        str(path.relative_to(tmp_path / "slot")): path
        for path in (tmp_path / "slot").rglob("*")
        if path.is_file() and path.name not in {"manifest.json", "chunks.json"}
    }
    with np.load(tmp_path / "slot/golden/inputs.npz") as data:
        np.savez(tmp_path / "inputs.npz", pixels=data[INPUT])
    files = {name: path for name, path in files.items() if name in {e.path for e in old.files}}
    files["golden/inputs.npz"] = tmp_path / "inputs.npz"
    new = msgspec.structs.replace(old, inputs=(spec,), files=(), build_id="")
    other = write_bundle(tmp_path / "dist", new, files).path
    said = compared(case().good, other, cwd=tmp_path).document
    assert said["same_interface"] is False
    assert {"input image", "input pixels"} <= {one["what"] for one in said["differences"]}
    assert said["agreement"] is None
    assert said["latency_ratio"] > 0


# -- pure


def test_interfaces_differ_in_names_types_shapes_and_meaning() -> None:
    plain = bundles.manifest()
    assert interface_differences(plain, plain) == []
    other = bundles.manifest(labels=("a",), task="raw")
    found = {one["what"]: (one["a"], one["b"]) for one in interface_differences(plain, other)}
    assert found["task"] == ("classify", "raw")
    assert "labels" in found
    two = with_outputs("scores", "boxes", manifest=plain)
    (missing,) = interface_differences(plain, two)
    assert missing == {"what": "output boxes", "a": None, "b": "float32 1 x 10"}


def test_only_outputs_of_both_in_one_shape_are_compared() -> None:
    a = {"x": np.eye(3), "y": np.ones((3, 1)), "z": np.ones((3, 2))}
    b = {"x": np.eye(3)[::-1], "y": np.zeros((3, 1)), "z": np.ones((3, 4)), "w": np.ones(3)}
    x, y = answers_agree(a, b)
    assert (x["name"], x["top1"], x["cosine"]["lowest"]) == ("x", pytest.approx(1 / 3), 0.0)
    assert (y["name"], y["top1"], y["max_abs"]) == ("y", None, 1.0)
