"""The worker's quantising steps, called as a build calls them: settings in, facts out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits_targets import TARGETS, converted, quantized, subject
from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers import convert


@pytest.fixture
def calibration(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    target = request.node.callspec.params["target"]
    np.savez(tmp_path / "calibration.npz", **subject(target).native_calibration())
    return str(tmp_path / "calibration.npz")


def quantize(target: str, out: Path, **args: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    given = {"from": str(converted(target)), "target": target, "calibration": None} | args
    return convert.quantize(given, out, lambda _: None)


@pytest.mark.parametrize("target", TARGETS)
def test_without_settings_it_is_static_int8(target: str, calibration: str, tmp_path: Path) -> None:
    done = quantize(target, tmp_path / "out", calibration=calibration, seed=3)
    assert done["applied"]["int8_share"] == 1
    assert done["calibration"]["samples"] == 200
    assert done["calibration"]["seed"] == 3


@pytest.mark.parametrize("target", TARGETS)
def test_settings_reach_the_quantiser(target: str, calibration: str, tmp_path: Path) -> None:
    how = {"precision": "int8", "per_channel": False, "exclude": [], "cpu_features": []}
    done = quantize(target, tmp_path / "out", calibration=calibration, how=how)
    assert "per-tensor" in done["calibration"]["method"]
    half = quantize(target, tmp_path / "half", how={"precision": "fp16"})
    assert half["applied"]["float16_weights"] > 150_000
    assert half["calibration"]["samples"] == 0


@pytest.mark.parametrize("target", ["tflite"])
def test_a_model_with_int8_ends_is_told_of_as_the_source_has_it(
    target: str, calibration: str, tmp_path: Path
) -> None:
    how = {"precision": "int8", "io": "int8"}
    done = quantize(target, tmp_path / "out", calibration=calibration, how=how)
    assert {kind for _, _, kind in (*done["inputs"], *done["outputs"])} == {"float32"}


@pytest.mark.parametrize("how", [{"precision": "int7"}, {"precision": "int8", "ranges": "widest"}])
def test_unknown_settings_are_an_error(how: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        quantize("onnx", tmp_path / "out", how=how)
    assert caught.value.reason == "bad_settings"


def test_what_a_target_cannot_do_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        quantize("onnx", tmp_path / "out", how={"precision": "bf16"})
    assert caught.value.reason == "no_precision"


@pytest.mark.parametrize("target", TARGETS)
def test_layers_come_worst_first_as_plain_json(target: str, calibration: str) -> None:
    args = {"fp32": str(converted(target)), "from": str(quantized(target)), "target": target}
    done = convert.diagnose(args | {"calibration": calibration}, Path(), lambda _: None)
    names, operators, losses = zip(*done["layers"], strict=True)
    assert len(set(names)) == len(names)
    assert all(isinstance(operator, str) for operator in operators)
    assert list(losses) == sorted(losses, reverse=True)
