"""What a device measures is what a host judges by: one code, one document."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema

from packager_rig import edgepack
from task_models import blob_detector, recipe_of

AGENT = Path(sys.executable).with_name("edgepack-agent")
ROOT = Path(__file__).parents[2]


def test_a_devices_numbers_are_the_profile_of_a_build(tmp_path: Path) -> None:
    model = blob_detector(tmp_path / "model.onnx", (1, 0, 0))
    recipe = recipe_of("detect", tmp_path / "recipe.yaml")
    words = (
        "build",
        model,
        "--recipe",
        recipe,
        "--name",
        "spots",
        "--target",
        "onnx",
        "--unsigned",
    )
    first = edgepack(*words, "--out", tmp_path / "one", "--json", cwd=tmp_path)
    bundle = Path(first.bundle("onnx", "fp32")["path"])
    done = subprocess.run(
        [AGENT, "benchmark", bundle, "--runs", "1", "--seconds", "0.2", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout)
    jsonschema.validate(
        measured, json.loads((ROOT / "docs/reference/benchmark.schema.json").read_text())
    )
    assert measured["digest"] == first.bundle("onnx", "fp32")["digest"]
    measured["latency_ms"] = {"p50": 900.0, "p95": 999.0}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(measured))
    judged = edgepack(
        *words, "--out", tmp_path / "two", "--profile", profile, "--max-latency-ms", "500",
        cwd=tmp_path,
    )  # fmt: skip
    assert judged.code == 6, "by what the device has measured, not by this host"
    assert "900" in judged.err
    people = subprocess.run(
        [AGENT, "benchmark", bundle, "--runs", "1", "--seconds", "0.1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "latency p50 / p95" in people.stdout


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.edgepack").write_bytes(b"no bundle")
    words = [AGENT, "benchmark", tmp_path / "no.edgepack"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "error:" in done.stderr
