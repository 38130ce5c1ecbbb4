"""A peer to hold the runner's throughput against: LitServe, serving the same file in ONNX Runtime.

It runs in an environment of its own, never in ours.
"""

import subprocess
import venv
from pathlib import Path

SERVER = Path(__file__).with_name("litserve_peer.py")
NEEDS = ("litserve==0.2.19", "onnxruntime", "numpy", "python-multipart")


def environment(home: Path) -> Path:
    """Return the Python of an environment with the peer, made on first use."""
    python = home / "bin" / "python"
    if not (home / "done").exists():
        venv.create(home, with_pip=True, clear=True)
        words = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *NEEDS]
        subprocess.run(words, check=True)
        (home / "done").touch()
    return python
