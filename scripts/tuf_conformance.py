"""Run a checkout of tuf-conformance against `edgepack-agent tuf-client`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tuf_gateway import bench  # noqa: E402 - lives among the tests


def main() -> int:
    """Run the suite in SUITE with the interpreter PYTHON, which has its requirements."""
    suite, python, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="edgepack-") as home, bench(Path(home)) as place:
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", "--entrypoint", place.entry]
        # Waiting is by the monotonic clock, which a suite has no reason to change.
        environment = os.environ | {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        folder = Path(suite) / "tuf_conformance"
        done = subprocess.run([*command, folder, *options], cwd=home, env=environment, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
