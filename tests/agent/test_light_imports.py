"""The supervisor is small: what it does not need, it does not load. Its size is in benchmarks."""

import json
import subprocess
import sys

HEAVY = ("urllib3", "backports.zstd", "numpy", "asyncio", "uvicorn", "rich", "onnxruntime")


def loaded(code: str) -> set[str]:
    """Return the modules that a new process has after CODE."""
    tell = f"{code}; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_supervisor_loads_neither_runtime_nor_http_client_nor_decoder() -> None:
    found = loaded("import edgepack_agent.supervisor, edgepack_agent.parts")
    assert "tuf.ngclient" in found
    assert not found & set(HEAVY)


def test_python_tufs_own_fetcher_is_still_there_for_others() -> None:
    code = (
        "import edgepack_agent.adapters.slim_tuf; "
        "from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher; Urllib3Fetcher()"
    )
    assert "urllib3" in loaded(code)
