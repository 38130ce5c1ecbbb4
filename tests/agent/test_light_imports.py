"""The supervisor is small: what it does not need, it does not load. Its size is in benchmarks."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack_agent.adapters.installed import Installed, Shelf

HEAVY = {
    "urllib3", "backports.zstd", "numpy", "asyncio", "uvicorn", "rich", "onnxruntime",
    "click", "yaml", "difflib", "edgepack_targets.registry", "cryptography.x509",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """Return the modules that a new process has after CODE."""
    tell = f"{code}; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_agent_loads_neither_runtime_nor_http_client_nor_command_line() -> None:
    found = loaded(
        "import edgepack_agent.__main__, edgepack_agent.parts, edgepack_agent.supervisor"
    )
    assert "tuf.ngclient" in found
    assert not found & HEAVY


def test_python_tufs_own_fetcher_is_still_there_for_others() -> None:
    code = (
        "import edgepack_agent.adapters.slim_tuf; "
        "from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher; Urllib3Fetcher()"
    )
    assert "urllib3" in loaded(code)


def test_what_is_installed_is_asked_anew_only_after_a_change(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
place = Path({str(tmp_path)!r})
sys.path.append(str(place))
from edgepack_agent.adapters.installed import Shelf
shelf = Shelf()
first = shelf.read()
assert first.runtimes["onnx"] and first.agent
assert shelf.read() is first
info = place / "edgepack_other-1.0.dist-info"
info.mkdir()
assert shelf.read() is not first and shelf.read() == first
assert "edgepack_targets.registry" not in sys.modules"""
    assert loaded(code)


def test_a_look_that_fails_is_said_and_leaves_what_was_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A test before this one may have silenced or configured logs in this process.
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    caplog.set_level("DEBUG", logger="edgepack_agent")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert Shelf().read() == Installed()
    assert "cannot tell which runtimes are installed" in caplog.text
