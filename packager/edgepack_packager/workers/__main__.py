"""Worker side of the protocol: run one step, tell what happened, end. Decides nothing.

    python -m edgepack_packager.workers REQUEST.json FD

REQUEST.json is `{"step": "tf.export", "args": {...}, "out": DIR, "parent": PID}`. Events are
JSON lines on the file descriptor FD: `progress` {text}, then one of `done` {result} or `error`
{class, what, why, fix, reason}. Standard output and error belong to the converters and are kept
as a log.

This module and those under `edgepack_packager.workers` that a toolchain runs import the standard
library, `edgepack.errors`, `edgepack.confinement`, numpy and that toolchain's own packages,
because nothing else is there.
"""

import errno
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

from edgepack.confinement import die_with_parent, stay_offline
from edgepack.errors import EdgepackError

MODULES = frozenset(
    {
        "convert",
        "digits",
        "keras_compress",
        "observe",
        "onnx2tf_bridge",
        "onnx_compress",
        "onnx_source",
        "openvino_source",
        "patches",
        "probe",
        "score",
        "tf",
        "tflite_source",
        "torch_compress",
        "torch_source",
    }
)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LEAST = 1 << 16
"""Bytes; with fewer left on the disk, that is why a step failed."""
Step = Callable[[dict[str, Any], Path, Callable[[str], None]], dict[str, Any]]


def _find(step: str) -> Step:
    module, _, name = step.partition(".")
    if module not in MODULES or name.startswith("_"):
        raise LookupError(f"no step {step}")
    found: Step = getattr(import_module(f"edgepack_packager.workers.{module}"), name)
    return found


def _send(channel: TextIO, event: str, **facts: Any) -> None:
    channel.write(json.dumps({"event": event} | facts) + "\n")
    channel.flush()


def _progress(channel: TextIO, text: str) -> None:
    _send(channel, "progress", text=text)


def _crash(error: Exception, out: Path) -> dict[str, str]:
    """Return what a converter raised and where: one line of each, never a whole traceback."""
    if _is_full(error, out):
        # Not the converter's fault, and not the model's.
        return {
            "class": "UsageError",
            "what": "there is no room for the build's temporary files",
            "why": str(getattr(error, "strerror", None) or error),
            "fix": "make room, or set TMPDIR to a directory that has it",
            "reason": "no_space",
        }
    first = str(error).strip().splitlines()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "class": type(error).__name__,
        "what": first[0][:400] if first else "",
        "why": f"in {frame.name}, {Path(frame.filename).name}:{frame.lineno}",
    }


def _is_full(error: Exception, out: Path) -> bool:
    """Say whether there is no room to write; what is not Python says so in words of its own."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    try:
        return shutil.disk_usage(out).free < LEAST
    except OSError:
        return False


def _run(request: dict[str, Any], channel: TextIO) -> int:
    try:
        result = _find(request["step"])(
            request["args"],
            Path(request["out"]),
            lambda text: _send(channel, "progress", text=text),
        )
    except EdgepackError as error:
        facts = {"what": error.what, "why": error.why, "fix": error.fix, "reason": error.reason}
        _send(channel, "error", **{"class": type(error).__name__}, **facts)
        return 1
    except Exception as error:  # noqa: BLE001  whatever a converter raises is told to the driver
        _send(channel, "error", **_crash(error, Path(request["out"])))
        return 1
    _send(channel, "done", result=result)
    return 0


def main() -> NoReturn:
    """Run the step that the request file asks for."""
    request = json.loads(Path(sys.argv[1]).read_text())
    die_with_parent(request["parent"])
    descriptor = int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    stay_offline()
    with os.fdopen(descriptor, "w") as channel:
        code = _run(request, channel)
    sys.stdout.flush()
    sys.stderr.flush()
    # Some runtimes crash while their threads are torn down; the result is already told.
    os._exit(code)


main()
