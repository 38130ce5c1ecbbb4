"""Damaged ONNX, TFLite and IR files: no hang, no crash of the driver, always a clear error.

A worker process per mutant would take seconds each, so one process forks per mutant: what a
native library does to its own process stays in the fork. Whatever did not end in an error of
ours is then given to the real worker, which has to make one of it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from digits import digits_onnx
from digits_tflite import digits_tflite
from edgepack.errors import EdgepackError
from edgepack_packager.adapters.worker import host_interpreter, run_step

SECONDS = 20
FORKS = """
import json, os, resource, signal, sys
from importlib import import_module
from pathlib import Path
from edgepack.errors import EdgepackError

step, listed, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
module, _, name = step.partition(".")
open_source = getattr(import_module("edgepack_packager.workers." + module), name)

def attempt(path, out):
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    args = {"source": path, "shapes": {}, "kind": "", "signature": None}
    try:
        open_source(args, Path(out), lambda text: None)
    except EdgepackError as error:
        clear = bool(error.what and error.reason) and error.exit_code in (2, 3, 5)
        return 10 if clear else 11
    except BaseException:
        return 12
    return 0

for path in json.loads(listed.read_text()):
    out = path + ".out"
    os.mkdir(out)
    child = os.fork()
    if not child:
        os._exit(attempt(path, out))
    _, status = os.waitpid(child, 0)
    print(json.dumps([path, os.waitstatus_to_exitcode(status)]), flush=True)
"""
OPENED, REFUSED, HUNG = 0, 10, -14


def mutant(content: bytes, rng: np.random.Generator) -> bytes:
    """Return CONTENT damaged in one to four places; mostly near its ends, where structure is."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        ends = rng.random() < 0.8
        near = int(rng.integers(0, min(len(data), 3000))) if data else 0
        place = (near if rng.random() < 0.5 else len(data) - near - 1) if ends else None
        at = max(0, int(rng.integers(0, max(len(data), 1))) if place is None else place)
        size = int(rng.integers(1, 40))
        match rng.integers(0, 7):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << int(at % 8)])
            case 2:
                del data[at:]
            case 3:
                del data[at : at + size]
            case 4:
                data[at : at + 4] = b"\xff" * 4
            case 5:
                data[at:at] = data[at : at + size]
            case _:
                data[at : at + size] = bytes(size)
    return bytes(data)


def write_mutants(kind: str, home: Path, count: int, seed: int) -> list[Path]:
    """Write COUNT damaged files of KIND to HOME and return them."""
    rng = np.random.default_rng(seed)
    onnx = digits_onnx(home / "sound.onnx", batch=1)
    if kind == "tflite":
        content = digits_tflite(home / "sound.tflite").read_bytes()
    elif kind == "onnx":
        content = onnx.read_bytes()
    else:
        ov.save_model(ov.convert_model(onnx), home / "sound.xml")
        content = (home / "sound.xml").read_bytes()
    suffix = {"openvino": "xml"}.get(kind, kind)
    made = []
    for index in range(count):
        path = home / f"m{index}.{suffix}"
        path.write_bytes(mutant(content, rng))
        if kind == "openvino":
            weights = (home / "sound.bin").read_bytes()
            whole = index % 4
            path.with_suffix(".bin").write_bytes(weights if whole else mutant(weights, rng))
        made.append(path)
    return made


def outcomes(step: str, files: list[Path], home: Path) -> dict[Path, int]:
    """Return how opening each of FILES ended: an exit code, or minus a signal."""
    listed = home / "files.json"
    listed.write_text(json.dumps([str(path) for path in files]))
    command = [sys.executable, "-c", FORKS, step, str(listed), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1500)
    return {Path(path): code for path, code in map(json.loads, done.stdout.splitlines())}


STEPS = {
    "onnx": "onnx_source.normalise",
    "tflite": "tflite_source.open",
    "openvino": "openvino_source.open",
}


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.scale)])
@pytest.mark.parametrize("kind", STEPS)
def test_damaged_models_are_refused_or_opened_never_worse(
    tmp_path: Path, kind: str, count: int
) -> None:
    files = write_mutants(kind, tmp_path, count, seed=count)
    ended = outcomes(STEPS[kind], files, tmp_path)
    assert len(ended) == count
    assert [path.name for path, code in ended.items() if code == HUNG] == []
    assert sum(code == REFUSED for code in ended.values()) > 0.4 * count
    odd = [path for path, code in ended.items() if code not in {OPENED, REFUSED}]
    for path in odd[:5]:
        check_told(STEPS[kind], path, tmp_path)
    # A native library may end its own process; that stays rare.
    assert len(odd) <= 0.1 * count, {path.name: ended[path] for path in odd}


def check_told(step: str, path: Path, home: Path) -> None:
    """Check that the real worker makes a clear error of what happens with PATH."""
    out = home / f"{path.name}-again"
    out.mkdir()
    args: dict[str, Any] = {"source": str(path), "shapes": {}, "kind": "", "signature": None}
    with pytest.raises(EdgepackError) as caught:
        run_step(host_interpreter(), step, args, out, timeout_s=60)
    assert caught.value.exit_code in {2, 3, 5}
    assert caught.value.what
    assert "Traceback" not in caught.value.diagnostics()
