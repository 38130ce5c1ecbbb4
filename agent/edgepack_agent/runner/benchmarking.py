"""Measures a slot: `python -m edgepack_agent.runner.benchmarking`, by the agent alone.

    benchmarking SLOT SCRATCH SECONDS THREADS PARENT

It gives way to the model that serves, is killed first when memory runs out, and is shut into the
slot like a runner; the processes that it measures in are shut in with it. The document of
`edgepack-agent benchmark`, or the error, goes to standard output.
"""

import json
import os
import sys
from pathlib import Path

from edgepack.confinement import die_with_parent
from edgepack.errors import EdgepackError
from edgepack_agent.runner import kernel, landlock
from edgepack_agent.runner.places import places
from edgepack_agent.runner.setup import Setup
from edgepack_agent.runner.slot import open_slot

__all__ = ["main"]

RUNS = 3


def main(arguments: list[str]) -> int:
    """Measure and return the exit code."""
    slot, scratch, seconds, threads, parent = arguments
    die_with_parent(int(parent))
    kernel.give_up_rights()
    kernel.be_killed_first()
    os.nice(10)
    _confine(Path(slot), scratch)
    # Not sooner: numpy starts threads when it is imported, and those would be free.
    from edgepack_targets.fresh import measure_bundle

    try:
        opened = open_slot(Path(slot))
        document = measure_bundle(
            opened.directory, opened.manifest, opened.digest,
            runs=RUNS, seconds=float(seconds), threads=int(threads) or None, say=lambda _: None,
        )  # fmt: skip
    except EdgepackError as error:
        print(json.dumps({"error": error.as_dict()}))
        return error.exit_code
    print(json.dumps(document))
    return 0


def _confine(slot: Path, scratch: str) -> None:
    """Shut this process and all that it starts into SLOT; Python is what it may start."""
    found = places(slot, Setup(scratch=scratch))
    programs = tuple(Path(path) for path in ("/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix))
    # What a process reads of itself is below its own number, which is not known yet.
    read = (*found.read, Path("/proc"))
    landlock.confine(landlock.Places(read, found.write, found.devices, programs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
