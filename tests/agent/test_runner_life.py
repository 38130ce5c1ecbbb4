"""A runner's process: starts, dies, is killed, is left alone; and no trace of it is left."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digits import digits_data
from edgepack.errors import EdgepackError, IntegrityError
from edgepack_agent.adapters.runner import Runner
from edgepack_agent.runner import wire
from edgepack_agent.runner.engine import Engine, ExpiredError, QueueFullError
from edgepack_agent.runner.kernel import temperature_c
from edgepack_agent.runner.setup import Setup
from slots import Client, Heard, digits_slot, listen


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_slot(tmp_path_factory.mktemp("life") / "slot")


def soon(probe: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not probe() and time.monotonic() < deadline:
        time.sleep(0.02)
    return probe()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_kill_is_reported_once_and_last(slot: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        os.kill(heard.runner.pid, signal.SIGKILL)
        assert heard.last()["code"] == -signal.SIGKILL
        heard.tell("accept")
        heard.runner.kill()
        heard.runner.stop(1)
        assert heard.events.empty()
        assert is_gone(heard.runner.pid)


def test_stop_and_sigterm_end_it_in_order(slot: Path) -> None:
    with listen() as tcp:
        for end in (
            lambda heard: heard.runner.stop(10),
            lambda heard: os.kill(heard.runner.pid, signal.SIGTERM),
        ):
            with Heard(slot, [tcp]) as heard:
                heard.accepting()
                end(heard)
                assert heard.last()["code"] == 0


def test_interrupts_are_for_the_supervisor(slot: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        os.kill(heard.runner.pid, signal.SIGINT)
        heard.wait("beat")


def test_it_ends_when_the_control_channel_does(slot: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        heard.runner._control.shutdown(2)
        assert heard.last()["code"] == 0


SUPERVISOR = """
import os, signal, sys
from pathlib import Path
from edgepack_agent.adapters.runner import Runner
from edgepack_agent.runner.setup import Setup

runner = Runner.start(Path(sys.argv[1]), [], lambda *_: None, Setup())
print(runner.pid, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_does_not_outlive_its_supervisor(slot: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(slot)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as supervisor:
        pid = int(supervisor.stdout.readline())
        assert not is_gone(pid)
        supervisor.stdin.close()
        assert supervisor.wait(10) == -signal.SIGKILL
    assert soon(lambda: is_gone(pid))


def test_a_wrong_command_ends_it(slot: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        heard.tell("dance")
        failed = next(e for e in iter(heard.events.get, None) if e["evt"] != "beat")
        assert (failed["evt"], failed["reason"]) == ("failed", "bad_command")
        assert heard.last()["code"] == 1


def test_one_that_does_not_listen_is_killed(slot: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        os.kill(heard.runner.pid, signal.SIGSTOP)
        while heard.runner.alive:
            heard.tell("sources", sources=[{"name": "x" * 60, "source": "dir:/" + "x" * 60000}])
        assert heard.last()["code"] == -signal.SIGKILL


def test_memory_pressure_takes_the_runner_first(slot: Path) -> None:
    with Heard(slot) as heard:
        heard.wait("loaded")
        score = Path(f"/proc/{heard.runner.pid}/oom_score_adj").read_text()
        assert int(score) > int(Path("/proc/self/oom_score_adj").read_text())


def test_nothing_is_left_behind(slot: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with listen() as tcp:
        before = descriptors(), threading.active_count()
        for _ in range(3):
            with Heard(slot, [tcp]) as heard:
                heard.accepting()
        assert soon(lambda: (descriptors(), threading.active_count()) == before)


def test_a_process_that_cannot_start_is_one_error(
    slot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    heard: list[dict[str, object]] = []
    with pytest.raises(EdgepackError) as caught:
        Runner.start(slot, [], lambda _, event: heard.append(event), Setup())
    assert (caught.value.reason, heard) == ("runner_start", [])


def test_a_drained_runner_answers_again(slot: Path) -> None:
    image = digits_data()[1].inputs[0]
    with listen() as tcp, Heard(slot, [tcp]) as heard:
        for _ in range(2):
            heard.accepting() if not heard.past else heard.tell("accept")
            with Client(tcp.getsockname()) as client:
                client.infer(image)
            heard.tell("drain")
            heard.wait("drained")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_channel(data: bytes) -> None:
    lines = wire.Lines()
    for line in lines.feed(data + b"\n"):
        with contextlib.suppress(IntegrityError):
            wire.read_command(line)
        with contextlib.suppress(IntegrityError):
            assert isinstance(wire.read_event(line)["evt"], str)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b)), st.integers(1, 7))
def test_lines_arrive_whole_however_they_are_cut(sent: list[bytes], size: int) -> None:
    stream = b"".join(line + b"\n" for line in sent)
    lines = wire.Lines()
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert [line for piece in pieces for line in lines.feed(piece)] == sent


def test_an_endless_line_is_refused() -> None:
    lines = wire.Lines()
    assert not list(lines.feed(b"x" * wire.MAX_LINE))
    with pytest.raises(IntegrityError):
        list(lines.feed(b"x"))


@pytest.mark.parametrize(
    "command",
    [
        {"cmd": "check", "min_score": "high"},
        {"cmd": "accept", "extra": 1},
        {"cmd": "sources", "sources": [{"name": "a", "source": "dir:/x", "every_s": 0}]},
        {"cmd": "sources", "sources": [{"source": "dir:/x"}]},
        {},
    ],
)
def test_half_right_commands_are_wrong(command: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        wire.read_command(json.dumps(command).encode())


def test_the_engine_keeps_its_bound_its_deadline_and_its_word() -> None:
    engine, gate, order = Engine(limit=3), threading.Event(), []
    with ThreadPoolExecutor(4) as threads:
        blocked = threads.submit(engine.run, gate.wait, 10)
        assert soon(lambda: engine.stalled_s > 0)
        late = threads.submit(engine.run, lambda: "late", 0.05)
        with pytest.raises(ExpiredError):
            late.result(5)
        kept = []
        for number in range(3):
            kept.append(threads.submit(engine.run, lambda n=number: order.append(n), math.inf))
            assert soon(lambda: engine.waiting == len(kept))
        with pytest.raises(QueueFullError):
            engine.run(lambda: "one too many", 10)
        assert soon(lambda: engine.stalled_s > 0.5)
        gate.set()
        for waited in (blocked, *kept):
            waited.result(5)
    assert order == [0, 1, 2], "whoever came first"
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 // 0, 10)
    assert engine.run(lambda: "still", 10) == "still"
    assert soon(lambda: engine.stalled_s < 0.5)


def test_a_runner_inherits_no_secret_and_gains_no_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_PASSPHRASE", "a-secret-of-somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-somebody")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Heard(digits_slot(tmp_path / "slot")) as heard:
        heard.wait("loaded")
        process = Path(f"/proc/{heard.runner.pid}")
        environment = (process / "environ").read_bytes()
        assert b"a-secret-of-somebody" not in environment
        assert b"OMP_NUM_THREADS=1" in environment
        status = (process / "status").read_text()
        assert "NoNewPrivs:\t1" in status
        limits = (process / "limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"]


def test_the_hottest_zone_counts_and_a_broken_one_does_not(tmp_path: Path) -> None:
    assert temperature_c(tmp_path) is None
    for name, content in {"0": "41500\n", "1": "63000\n", "2": "no number"}.items():
        zone = tmp_path / f"thermal_zone{name}"
        zone.mkdir()
        (zone / "temp").write_text(content)
    assert temperature_c(tmp_path) == 63.0
