"""`edgepack doctor`: what can be built here, and the one command that enables the rest."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgepack_packager.core.doctor import Facts, examine
from edgepack_packager.core.documents import Doctor, DoctorRoute
from edgepack_packager.core.plan import KINDS
from edgepack_targets import registry
from edgepack_targets.machine import describe_machine
from packager_rig import edgepack

CAPABILITIES = {name: registry.find(name).capability() for name in registry.names()}
ALL = Facts(
    version="1",
    python="3.11",
    machine=describe_machine(),
    capabilities=CAPABILITIES,
    runtimes=dict.fromkeys(CAPABILITIES, "1.0"),
    extras={name: registry.find(name).extra for name in CAPABILITIES},
    toolchains={"tf": "/tf", "torch": "/torch", "onnx2tf": "/onnx2tf"},
    purposes={},
    key="/home/key.pem",
    key_fix="",
    cache="/cache",
    free_mb=10_000,
)


def route(found: Doctor, source: str, target: str) -> DoctorRoute:
    (one,) = [r for r in found["routes"] if (r["source"], r["target"]) == (source, target)]
    return one


def test_every_source_and_target_has_an_answer() -> None:
    found = examine(ALL)
    assert {(r["source"], r["target"]) for r in found["routes"]} == {
        (kind, target) for kind in KINDS for target in CAPABILITIES
    }
    for kind in ("keras", "saved_model", "torch_program", "onnx"):
        for target in ("openvino", "tflite", "onnx"):
            one = route(found, kind, target)
            assert one["state"] == "works"
            assert {"fp32", "int8"} <= set(one["precisions"])
    assert found["fixes"] == []
    assert found["ok"] is True


def test_a_missing_toolchain_is_one_command_away() -> None:
    found = examine(replace(ALL, toolchains={**ALL.toolchains, "tf": None}))
    one = route(found, "keras", "openvino")
    assert one["state"] == "installable"
    assert one["fix"] == "edgepack toolchain install tf"
    assert found["fixes"].count("edgepack toolchain install tf") == 1
    assert route(found, "onnx", "openvino")["state"] == "works"


def test_a_missing_runtime_names_its_extra() -> None:
    found = examine(replace(ALL, runtimes={**ALL.runtimes, "openvino": None}))
    one = route(found, "onnx", "openvino")
    assert (one["state"], one["fix"]) == ("missing", 'pip install "edgepack[openvino]"')
    assert found["ok"] is False


def test_what_no_command_enables_has_no_fix() -> None:
    one = route(examine(ALL), "openvino", "tflite")
    assert (one["state"], one["fix"], one["precisions"]) == ("none", "", [])


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (replace(ALL, key=None, key_fix="edgepack keys create k.pem"), "key"),
        (replace(ALL, free_mb=100, toolchains={"tf": None}), "disk"),
    ],
)
def test_what_is_missing_here_is_said_with_its_fix(facts: Facts, name: str) -> None:
    (check,) = [c for c in examine(facts)["checks"] if c["name"] == name]
    assert not check["ok"]
    assert check["fix"] in examine(facts)["fixes"]


def test_cpu_says_what_int8_and_bf16_are_worth() -> None:
    old = {**ALL.machine, "cpu_features": []}
    told = {c["name"]: c["told"] for c in examine(replace(ALL, machine=old))["checks"]}  # type: ignore[arg-type]
    assert "int8 may not be faster" in told["int8"]
    assert "bf16 variants do not run here" in told["bf16"]


def test_command_looks_at_this_machine(tmp_path: Path) -> None:
    empty = {"EDGEPACK_TOOLCHAINS": str(tmp_path / "none")}
    found = edgepack("doctor", "--json", cwd=tmp_path, env=empty).document
    assert set(found["runtimes"]) == set(CAPABILITIES)
    assert route(found, "keras", "tflite")["fix"] == "edgepack toolchain install tf"
    shown = edgepack("doctor", cwd=tmp_path, env=empty)
    assert shown.code == 0, shown.err
    assert "edgepack toolchain install tf" in shown.out
    assert "edgepack keys create" in shown.out
    assert "telemetry" in shown.out


def test_a_place_of_toolchains_that_is_no_whole_path_is_one_clear_error(tmp_path: Path) -> None:
    refused = edgepack("doctor", cwd=tmp_path, env={"EDGEPACK_TOOLCHAINS": "toolchains"})
    assert refused.code == 2
    assert refused.err.startswith("error: EDGEPACK_TOOLCHAINS is no absolute path: toolchains\n")
    assert "fix: write the whole path" in refused.err
    assert "Traceback" not in refused.err
