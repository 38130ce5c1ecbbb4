"""What must not be imported where: measured in fresh processes, not read from the source."""

import subprocess
import sys

import pytest

HEAVY = {
    "numpy", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "nncf", "ai_edge_quantizer",
    "tensorflow", "torch", "fastapi", "pydantic", "sqlalchemy", "PIL", "uvicorn", "rich", "httpx",
}  # fmt: skip
LOADED = "import sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"


def loaded(statement: str) -> set[str]:
    """Return the top-level modules a fresh interpreter has after STATEMENT."""
    code = f"{statement}\n{LOADED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(eval(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import edgepack.bundle, edgepack.trust, edgepack.messages, edgepack.topics",
        "from edgepack.cli import root; root.main(['--help'], standalone_mode=False)",
        "import edgepack_agent.cli",
        "import edgepack_agent.supervisor",
        "import edgepack_targets.registry as r; r.installed()",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert not loaded(statement) & HEAVY


@pytest.mark.parametrize(
    "core",
    ["edgepack_agent.core.machine", "edgepack_fleet.core.rollout", "edgepack_packager.core.plan"],
)
def test_the_pure_cores_import_no_edge(core: str) -> None:
    assert not loaded(f"import {core}") & (HEAVY | {"sqlite3", "paho"})
