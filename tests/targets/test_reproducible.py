"""Two processes, two hash seeds, the same bytes: on every route. And nothing leaves the machine."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from digits import digits_onnx
from digits_targets import TARGETS, subject
from digits_tflite import digits_tflite

BUILD = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from edgepack_targets import registry
from edgepack_targets.interface import Quantization
name, form, source, calibration, out = sys.argv[1:]
target, out = registry.find(name), Path(out)
parts = target.capability().precisions
for part in parts:
    (out / part).mkdir(parents=True)
target.convert(Path(source), form, out / "fp32")
with np.load(calibration) as data:
    for part in parts[1:]:
        how = Quantization(part, cpu_features=("avx512_bf16",))
        target.quantize(out / "fp32", out / part, how, dict(data))
"""


def environment(**changes: str) -> dict[str, str]:
    """Return this environment without what would keep a tool silent of itself."""
    quiet = {"CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY"}
    return {key: value for key, value in os.environ.items() if key not in quiet} | changes


def build(arguments: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-W", "error", "-c", BUILD, *arguments]
    return subprocess.run(code, env=env, capture_output=True, text=True, check=False)


def digests(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("target", TARGETS)
def test_two_processes_give_the_same_bytes_in_silence(target: str, tmp_path: Path) -> None:
    form = "tflite" if target == "tflite" else "onnx"
    source = tmp_path / f"source.{form}"
    (digits_tflite if form == "tflite" else digits_onnx)(source)
    np.savez(tmp_path / "calibration.npz", **subject(target).native_calibration())
    home = tmp_path / "home"
    home.mkdir()
    results = []
    for seed in ("1", "4242"):
        out = tmp_path / seed
        arguments = [target, form, str(source), str(tmp_path / "calibration.npz"), str(out)]
        done = build(arguments, environment(PYTHONHASHSEED=seed, HOME=str(home)))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", "results alone belong on stdout"
        results.append(digests(out))
    assert results[0] == results[1]
    parts = {Path(name).parent.name for name in results[0]}
    assert parts == set(subject(target).target.capability().precisions)
    assert not list(home.iterdir()), "a tool left files in the home directory"
    for file in (tmp_path / "1").rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), f"{file.name} holds a path"


DESCRIBE = """
import sys
from pathlib import Path
from edgepack_targets import registry
registry.find(sys.argv[1]).describe(Path(sys.argv[2]))
"""
CONSENT = """
import openvino_telemetry.main as telemetry
assert telemetry.Telemetry().consent is False
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_runtime_reports_to_nobody_when_a_device_loads_it(target: str, tmp_path: Path) -> None:
    code = DESCRIBE + (CONSENT if target == "openvino" else "")
    done = subprocess.run(
        [sys.executable, "-c", code, target, str(subject(target).model_dir)],
        env=environment(HOME=str(tmp_path)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Each of them writes an identifier there before it reports for the first time.
    assert not list(tmp_path.iterdir())
