"""Targets are found by name, lazily; what is missing is said with the remedy."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digits_targets import TARGETS
from edgepack.errors import UnsupportedError
from edgepack_targets import registry
from edgepack_targets.extras import meets, require

DEVICE_ONLY = {"nncf", "onnx", "ai_edge_quantizer", "tensorflow", "torch", "sklearn", "pandas"}


def test_the_three_targets_are_known_and_installed() -> None:
    assert set(TARGETS) <= set(registry.names())
    assert set(TARGETS) <= registry.installed().keys()
    assert registry.find("onnx").name == "onnx"


@pytest.mark.parametrize(
    ("name", "close"), [("openvno", "openvino"), ("TFLite", "tflite"), ("onxx", "onnx")]
)
def test_an_unknown_target_names_the_nearest_and_all_known(name: str, close: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        registry.find(name)
    assert caught.value.exit_code == 5
    assert f"`{close}`" in caught.value.fix
    assert all(known in caught.value.why for known in TARGETS)


def test_a_name_like_no_other_gets_no_wild_guess() -> None:
    with pytest.raises(UnsupportedError) as caught:
        registry.find("qqqqqqqq")
    assert "did you mean" not in caught.value.fix


def test_a_missing_distribution_names_its_extra() -> None:
    with pytest.raises(UnsupportedError) as caught:
        require("edgepack-no-such-runtime", extra="tflite", wanted_for="the runtime")
    assert 'pip install "edgepack[tflite]"' in caught.value.diagnostics()
    assert caught.value.reason == "extra_missing"


@pytest.mark.parametrize("target", TARGETS)
def test_a_runtime_that_is_not_installed_is_an_error_that_names_the_extra(target: str) -> None:
    # A fresh interpreter in which importlib.metadata finds no runtime, as on a bare device.
    code = (
        "import importlib.metadata as m; real = m.version\n"
        "def version(name):\n"
        "    if name in ('onnxruntime', 'openvino', 'ai-edge-litert'):\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from pathlib import Path\n"
        "from edgepack.errors import UnsupportedError\n"
        "from edgepack_targets import registry\n"
        f"assert registry.installed() == {{}}\n"
        "try:\n"
        f"    registry.find('{target}').describe(Path('nowhere'))\n"
        "except UnsupportedError as error:\n"
        "    print(error.fix)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f'pip install "edgepack[{target}]"'


@pytest.mark.parametrize("target", TARGETS)
def test_a_device_imports_neither_converters_nor_frameworks(target: str) -> None:
    code = (
        f"import sys; import edgepack_targets.{target}_session\n"
        "import edgepack_targets.pipeline.golden, edgepack_targets.pipeline.preprocess\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not DEVICE_ONLY & set(eval(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("installed", "minimum", "enough"),
    [
        ("1.31.1", "1.23", True),
        ("1.9.0", "1.23", False),
        ("2026.4.1", "2025.4", True),
        ("2.0.0rc1", "2.0", True),
        ("1.31.1", "1.31", True),
        ("1", "1.0", True),
    ],
)
def test_versions_are_compared_by_number(installed: str, minimum: str, enough: bool) -> None:
    assert meets(installed, minimum) is enough


@given(st.tuples(st.integers(0, 9999), st.integers(0, 99)), st.integers(0, 99))
def test_a_version_meets_itself_and_anything_lower(version: tuple[int, int], patch: int) -> None:
    major, minor = version
    assert meets(f"{major}.{minor}.{patch}", f"{major}.{minor}")
    assert not meets(f"{major}.{minor}.{patch}", f"{major}.{minor + 1}")
