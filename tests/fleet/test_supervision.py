"""When a process is started again: rules, and the supervisor with real processes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UnreachableError, UsageError
from edgepack_fleet.core.supervision import HEALTHY_S, TRIES, Standing
from edgepack_fleet.supervising import Part, Supervisor


@given(st.lists(st.floats(0, 2 * HEALTHY_S), max_size=40))
def test_it_gives_up_only_after_many_early_ends_in_a_row(ran: list[float]) -> None:
    standing, early = Standing(), 0
    for seconds in ran:
        standing = standing.ended(seconds)
        early = 1 if seconds >= HEALTHY_S else early + 1
        assert standing.failures == early
        assert (standing.pause_s is None) == (early > TRIES)
        if standing.pause_s is not None:
            assert 1.0 <= standing.pause_s <= 30.0


def test_pauses_grow_and_a_healthy_run_forgets_them() -> None:
    standing, pauses = Standing(), []
    for _ in range(TRIES):
        standing = standing.ended(0.1)
        pauses.append(standing.pause_s)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert standing.ended(HEALTHY_S).pause_s == 1


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def log_to(lines: list[str]) -> Callable[[str, str], None]:
    return lambda name, line: lines.append(f"{name}: {line}")


def test_what_ends_is_started_again_and_all_ends_in_order(tmp_path: Path) -> None:
    lines: list[str] = []
    code = """
import os, signal, sys, time
name, here, parent = sys.argv[1:]
os.chdir(here)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
with open(name, "a") as file: file.write("x")
if name == "b":
    if open(name).read() == "x":
        while not os.path.exists("ready"): time.sleep(0.01)
        raise SystemExit(3)
    os.kill(int(parent), signal.SIGTERM)
signal.sigwait([signal.SIGTERM])
print(name, "left")
"""
    where = [str(tmp_path), str(os.getpid())]
    parts = [
        Part(name, [*python(code), name, *where], (tmp_path / name).exists) for name in ("a", "b")
    ]
    before = signal.getsignal(signal.SIGTERM)
    Supervisor(parts, log_to(lines)).run((tmp_path / "ready").touch)
    assert (tmp_path / "a").read_text() == "x"
    assert (tmp_path / "b").read_text() == "xx"
    assert lines == ["b: ended with 3; again in 1 s", "b: b left", "a: a left"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (1, UnreachableError)])
def test_a_part_that_refuses_to_start_ends_all(
    tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    parts = [Part("x", python(f"print('no such thing'); raise SystemExit({code})"), lambda: False)]
    with pytest.raises(kind, match="the x does not start") as caught:
        Supervisor(parts, lambda *_: None).run(lambda: None)
    assert caught.value.why == "no such thing"  # type: ignore[attr-defined]


def test_a_signal_before_it_is_ready_ends_it() -> None:
    slow = f"import os, signal; os.kill({os.getpid()}, 2); signal.pause()"
    ready: list[bool] = []
    Supervisor([Part("x", python(slow), lambda: False)], lambda *_: None).run(
        lambda: ready.append(True)
    )
    assert not ready
