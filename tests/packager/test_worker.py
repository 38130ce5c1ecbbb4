"""The worker protocol: whatever a converter does, the driver gets a result or one clear error."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import UsageError
from edgepack_packager.adapters.worker import (
    Interpreter,
    WorkerError,
    host_interpreter,
    run_step,
)
from edgepack_packager.workers.arrays import read_arrays, write_npz


def stand_in(path: Path, body: str) -> Interpreter:
    """Return an interpreter that does BODY instead of the step: a converter gone wrong."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Interpreter("broken", path)


def run(where: Interpreter, out: Path, timeout_s: float = 20) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        run_step(where, "tf.export", {}, out, timeout_s=timeout_s)
    return caught.value


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL"])
def test_crash_names_the_signal(tmp_path: Path, name: str) -> None:
    error = run(stand_in(tmp_path / "python", f"echo last words >&2; kill -{name} $$"), tmp_path)
    assert error.exit_code == 5
    assert error.reason == "converter_crashed"
    assert f"SIG{name}" in error.what
    assert "last words" in error.why


def test_leaving_without_a_word(tmp_path: Path) -> None:
    error = run(stand_in(tmp_path / "python", "exit 3"), tmp_path)
    assert "ended with 3" in error.what


def test_too_slow_is_stopped_with_everything_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"echo $$ > {pids}; sleep 300 & echo $! >> {pids}; wait"
    error = run(stand_in(tmp_path / "python", body), tmp_path, timeout_s=1)
    assert error.reason == "converter_timeout"
    deadline = time.monotonic() + 10
    alive = [int(pid) for pid in pids.read_text().split()]
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if is_running(pid)]
    assert alive == []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_nonsense_on_the_channel(tmp_path: Path) -> None:
    where = stand_in(tmp_path / "python", "")
    script = 'import os, sys; os.write(int(sys.argv[4]), b"hello\\n[1]\\n{}\\n")'
    where.python.write_text(f"#!{sys.executable}\n{script}\n")
    assert "ended with 0" in run(where, tmp_path).what


def test_interpreter_that_is_not_there(tmp_path: Path) -> None:
    error = run(Interpreter("gone", tmp_path / "python"), tmp_path)
    assert "cannot be started" in error.what


@pytest.mark.parametrize("step", ["nothing.here", "tf.nothing", "os.system", "tf._open"])
def test_only_known_steps_run(tmp_path: Path, step: str) -> None:
    with pytest.raises(WorkerError, match=step):
        run_step(host_interpreter(), step, {}, tmp_path, timeout_s=20)


def test_what_a_converter_raises_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        run_step(host_interpreter(), "probe.versions", {}, tmp_path, timeout_s=20)
    assert "KeyError: 'names'" in caught.value.what
    assert "in versions, probe.py:" in caught.value.why
    assert "Traceback" not in caught.value.why


def test_result_and_progress_come_back(tmp_path: Path) -> None:
    args = {"names": ["click", "no-such-distribution"]}
    said = run_step(host_interpreter(), "probe.versions", args, tmp_path, timeout_s=20)
    assert set(said["versions"]) == {"click"}


def test_own_errors_keep_their_words(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "a.onnx").write_text("no model")
    args = {"source": str(tmp_path / "a.onnx"), "shapes": {}}
    with pytest.raises(UsageError) as caught:
        run_step(
            host_interpreter(), "onnx_source.normalise", args, tmp_path, timeout_s=60,
            say=told.append,
        )  # fmt: skip
    assert caught.value.reason == "bad_model"
    assert told == ["opening the model"]


def test_worker_of_a_toolchain_sees_two_packages_only(tmp_path: Path) -> None:
    bare = tmp_path / "env"
    import venv

    venv.create(bare, with_pip=False, symlinks=True)
    where = Interpreter("bare", bare / "bin" / "python")
    args = {"names": ["click", "edgepack"]}
    assert run_step(where, "probe.versions", args, tmp_path, timeout_s=20) == {"versions": {}}


def test_environment_is_quiet_and_keeps_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_PASSPHRASE", "secret")
    where = stand_in(tmp_path / "python", f"env > {tmp_path}/env; exit 1")
    run(where, tmp_path)
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert seen["PYTHONHASHSEED"] == "0"
    assert seen["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert "EDGEPACK_PASSPHRASE" not in seen


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_of_a_step_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = open_files()
    run(stand_in(tmp_path / "python", 'mkdir "$TMPDIR/left" && touch "$0.left"; exit 1'), tmp_path)
    assert (tmp_path / "python.left").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert open_files() <= before


def test_arrays_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Variants that are built side by side write the same calibration samples."""
    path, samples = tmp_path / "a.npz", {"x": np.zeros((500, 500))}
    write_npz(path, samples)
    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write_npz, path, samples) for _ in range(20)]
        while not all(one.done() for one in writing):
            assert read_arrays(path)["x"].shape == (500, 500)
    with pytest.raises(ValueError, match="Object arrays"):
        write_npz(path, {"x": np.array([{}])})
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_are_written_the_same_at_any_time(tmp_path: Path) -> None:
    arrays = {"b/ü": np.arange(6.0).reshape(2, 3), "file": np.array(3, np.int8)}
    first = write_npz(tmp_path / "a.npz", arrays).read_bytes()
    backwards = dict(reversed(arrays.items()))
    assert write_npz(tmp_path / "b.npz", backwards).read_bytes() == first
    back = read_arrays(tmp_path / "a.npz")
    assert {name: array.tolist() for name, array in back.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_interpreter_of_the_host_is_this_one() -> None:
    assert host_interpreter() == Interpreter("host", Path(sys.executable), isolated=False)
