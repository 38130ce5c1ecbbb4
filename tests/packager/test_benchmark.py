"""Measuring a bundle: fresh processes, honest memory, medians, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import IntegrityError, UnsupportedError
from edgepack_targets.fresh import FreshModel, measure_runs
from edgepack_targets.measure import latency, median_run
from packager_rig import edgepack, finish, start
from slots import digits_bundle, digits_slot

LARGE_PARENT = """
import json, sys
from pathlib import Path
ballast = bytearray(400_000_000)
for i in range(0, len(ballast), 4096):
    ballast[i] = 1
from edgepack_targets.fresh import measure_runs
home = Path(sys.argv[1])
(run,), _ = measure_runs(home, home / "golden/inputs.npz", runs=1, seconds=0.01)
print(run["peak_rss_mb"])
"""
PARENT = """
import sys, time
from pathlib import Path
from edgepack_targets.fresh import FreshModel
home = Path(sys.argv[1])
model = FreshModel(home, home / "golden/inputs.npz")
print(model._process.pid, flush=True)
time.sleep(60)
"""
SLOW_METRIC = """
import os, pathlib, time
def metric(outputs, labels):
    pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(60)
"""
WORKER_PARENT = """
import sys
from pathlib import Path
import numpy as np
from edgepack_packager.adapters.worker import host_interpreter, run_step
home = Path(sys.argv[1])
np.savez(home / "a.npz", labels=np.zeros(3))
args = {"metric": "slow.py:metric", "output": "x", "cwd": str(home),
        "answers": {"this": str(home / "a.npz")}, "labels": str(home / "a.npz")}
run_step(host_interpreter(), "score.score", args, home, timeout_s=60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, within_s: float = 20) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    return digits_slot(tmp_path / "slot")


# -- numbers


def test_percentiles_are_those_of_numpy() -> None:
    times = list(np.random.default_rng(1).exponential(size=101))
    said = latency(times)
    assert said["p50"] == pytest.approx(np.percentile(times, 50))
    assert said["p95"] == pytest.approx(np.percentile(times, 95))
    assert latency([2.0]) == {"p50": 2.0, "p95": 2.0}


def test_one_unlucky_process_does_not_count() -> None:
    def run(value: float) -> dict[str, object]:
        both = {"p50": value, "p95": value}
        rest = dict.fromkeys(("load_ms", "first_ms", "throughput_per_s", "peak_rss_mb"), value)
        return {"latency_ms": both, "inferences": 10, **rest}

    middle = median_run([run(1.0), run(900.0), run(2.0)])  # type: ignore[list-item]
    assert middle["load_ms"] == 2.0
    assert middle["latency_ms"] == {"p50": 2.0, "p95": 2.0}
    assert middle["inferences"] == 30


def test_memory_of_a_large_parent_is_not_counted(slot: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE_PARENT, slot], capture_output=True, text=True, check=True
    )
    assert 10 < float(done.stdout) < 400


# -- the process


def test_fresh_model_answers_as_the_bundle_says(slot: Path, tmp_path: Path) -> None:
    with FreshModel(slot, slot / "golden/inputs.npz", threads=1) as model:
        model.answer(slot / "golden/inputs.npz", tmp_path / "y.npz")
        assert model.effective["threads"] == 1
        assert len(model.times(7)) == 7
    with np.load(tmp_path / "y.npz") as got, np.load(slot / "golden/outputs.npz") as golden:
        for name in golden.files:
            np.testing.assert_allclose(got[name], golden[name], rtol=1e-5)


def test_own_errors_keep_their_words(slot: Path) -> None:
    (slot / "model/model.onnx").write_bytes(b"no model")
    with pytest.raises(IntegrityError, match="cannot load"):
        FreshModel(slot, slot / "golden/inputs.npz")


def test_a_process_that_dies_is_an_error(slot: Path) -> None:
    with FreshModel(slot, slot / "golden/inputs.npz") as model:
        os.kill(model._process.pid, signal.SIGKILL)
        with pytest.raises(UnsupportedError, match="SIGKILL"):
            model.times(1)


def test_nothing_is_left_after_a_measurement(slot: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with FreshModel(slot, slot / "golden/inputs.npz") as model:
        pid = model._process.pid
    assert not alive(pid)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_runs_are_processes_of_their_own(slot: Path) -> None:
    told: list[str] = []
    runs, effective = measure_runs(
        slot, slot / "golden/inputs.npz", runs=2, seconds=0.01, say=told.append
    )
    assert told == ["run 1 of 2", "run 2 of 2"]
    assert effective["runtime"]
    for run in runs:
        assert run["inferences"] >= 10
        assert run["latency_ms"]["p50"] <= run["latency_ms"]["p95"]
        assert run["throughput_per_s"] > 0


# -- whoever waits is gone


def test_killing_the_parent_ends_the_measured_process(slot: Path) -> None:
    command = [sys.executable, "-c", PARENT, slot]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert gone(pid)


def test_killing_a_build_ends_its_worker(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_METRIC)
    told = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", WORKER_PARENT, tmp_path]) as parent:
        end = time.monotonic() + 60
        while not (told.exists() and told.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        worker = int(told.read_text())
        assert alive(worker)
        parent.kill()
    assert gone(worker)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_stopping_a_benchmark_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "tmp").mkdir()
    process = start(
        "benchmark", digits_bundle(), "--seconds", "60", cwd=tmp_path,
        env={"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 60
    pids: list[int] = []
    while not pids and time.monotonic() < end:
        time.sleep(0.05)
        pids = [int(pid) for pid in children.read_text().split()]
    process.send_signal(sent)
    done = finish(process)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert all(gone(pid) for pid in pids)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_command_prints_medians_and_where_they_are_from(tmp_path: Path) -> None:
    words = ("benchmark", digits_bundle(), "--runs", "2", "--seconds", "0.01", "--threads", "1")
    said = edgepack(*words, "--json", cwd=tmp_path).document
    assert len(said["runs"]) == 2
    loads = [run["load_ms"] for run in said["runs"]]
    assert said["load_ms"] == pytest.approx(sum(loads) / 2)
    assert said["host"]["machine"] == os.uname().machine
    assert said["threads"] == said["effective"]["threads"] == 1
    shown = edgepack(*words, cwd=tmp_path)
    assert shown.code == 0, shown.err
    for fact in ("load", "first inference", "p50 of the runs", "samples/s", "peak memory", "here"):
        assert fact in shown.out
