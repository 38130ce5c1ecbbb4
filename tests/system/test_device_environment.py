"""A device with only `edgepack[agent,onnx]` runs the agent; heavy packages are absent there."""

import subprocess
import sys
from pathlib import Path

import pytest

from system.harness import Site

pytestmark = [pytest.mark.mosquitto, pytest.mark.system]
ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("tensorflow", "torch", "fastapi", "pydantic", "sqlalchemy", "nncf", "onnx", "openvino")


@pytest.fixture(scope="module")
def device_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a new environment with the extras of a device and nothing else."""
    venv = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{ROOT}[agent,onnx]"], check=True)
    return venv / "bin"


@pytest.mark.scale
@pytest.mark.timeout(600)
def test_the_agent_runs_with_the_device_extras_alone(
    place: Site, releases: dict[str, list[Path]], device_bin: Path
) -> None:
    probe = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    found = subprocess.run(
        [device_bin / "python", "-c", probe, *ABSENT], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"

    place.edgepack("fleet", "groups", "create", "lab")
    place.publish(releases["1.0.0"])
    place.add_agent("cam", "onnx", bin_dir=device_bin)
    assert place.ended(place.roll_out("digits@1.0.0"))["state"] == "completed"
    assert place.infer("cam") >= 0.9
    assert str(device_bin) in " ".join(place.commands["cam"])
