"""Agents whose every write is watched while they run, and who can be cut off at any of them.

One strace over the process that forks them (see `warm`) writes into a pipe; a thread reads it,
keeps a model of each device's disk, and kills an agent when its number is up. `Plug.pull` then
leaves on the real disk what a power cut might have left.
"""

import contextlib
import copy
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from crashstates.disk import Disk, Image, materialise, read_image
from crashstates.trace import Op, Reader, joined, strace
from crashstates.warm import RUNNERS

__all__ = ["Plug", "Watched", "python_path"]

_HERE = Path(__file__).parents[1]


def python_path() -> str:
    """Return the PYTHONPATH of a process that runs a module of the tests."""
    return os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))


MANY_EARLY = 6
"""Operations that wait for one of another thread: more, and the record itself is wrong."""


class Plug:
    """The power supply of one device.

    Args:
        name: The device's.
        data: Its data directory.
        config: Its configuration.
        log: Where its agent's words go.
    """

    def __init__(self, name: str, data: Path, config: Path, log: Path) -> None:
        self.name, self.data, self.config, self.log = name, data, config, log
        self.disk = Disk.read(data)
        self.ops = 0
        """Operations since the agent was last started."""
        self.last = ""
        """The last one, for people."""
        self.pid = 0
        self.ended = threading.Event()
        self.ended.set()
        self._reader = Reader(str(data))
        self.needle = self._reader.needle
        self._when: Callable[[int, Op], bool] = lambda _count, _op: False
        self._unsure: list[Op] = []
        self._early: list[Op] = []
        self.difference: list[str] = []
        """Files of which the model is wrong."""
        self._lock = threading.Lock()

    @property
    def on(self) -> bool:
        """Whether the agent runs."""
        return not self.ended.is_set()

    def kill_when(self, when: Callable[[int, Op], bool]) -> None:
        """Kill the agent after the operation, and its number since the start, for which WHEN."""
        with self._lock:
            self._when = when

    def kill(self) -> None:
        """Kill the agent now."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.on:
                os.kill(self.pid, signal.SIGKILL)

    def pull(self, seed: int, *, ordered: bool) -> None:
        """Leave what a power cut might leave; the agent must have ended."""
        assert not self.on
        self.disk.ordered = ordered
        image = self.disk.crash(seed)
        shutil.rmtree(self.data)
        materialise(image, self.data)
        self.disk = Disk(image)

    def heard(self, line: str) -> None:
        """Take a line of the record that is about this device."""
        for op in self._reader.take(line):
            if not op.sure:
                self._unsure.append(op)
                continue
            self._apply(op)
            self.ops += 1
            self.last = str(op)
            with self._lock:
                if self.on and self._when(self.ops, op):
                    self._when = lambda _count, _op: False
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)

    def _apply(self, op: Op) -> None:
        """Do OP; what is said before the call of another thread that it needs waits for that."""
        if not self._possible(op):
            self._early.append(op)
            assert len(self._early) < MANY_EARLY, f"what is it about? {self._early}"
            return
        self._early = [each for each in self._early if not self._possible(each)]

    def _possible(self, op: Op) -> bool:
        try:
            self.disk.apply(op)
        except KeyError:
            return False
        return True

    def follows(self) -> bool:
        """Say whether the model holds what the real disk holds, once the agent was killed.

        Each of its threads may have been in the middle of a call, done or not: the disk tells.
        """
        unsure, self._unsure, self._early = [*self._unsure, *self._early], [], []
        self.disk.forget()
        real = _plain(read_image(self.data))
        for chosen in itertools.product((True, False), repeat=len(unsure)):
            disk = copy.deepcopy(self.disk)
            with contextlib.suppress(KeyError, AssertionError):
                for op in itertools.compress(unsure, chosen):
                    disk.apply(op)
                if _plain(disk.seen()) == real:
                    self.disk = disk
                    return True
        return self._take_over(unsure, real)

    def _take_over(self, unsure: list[Op], real: Image) -> bool:
        """Take over from the real disk what a killed thread wrote and nobody could see any more."""
        for op in unsure:
            entry = real.get(op.path)
            if op.kind == "write" and entry is not None and entry.content is not None:
                self.disk.apply(Op("write", op.path, data=entry.content))
        self.difference = [
            name
            for name in sorted(real.keys() | _plain(self.disk.seen()).keys())
            if real.get(name) != self.disk.seen().get(name)
        ]
        return not self.difference


def _plain(image: Image) -> Image:
    """Return IMAGE without what SQLite writes by mapping it, which it never reads back."""
    return {path: entry for path, entry in image.items() if not path.endswith("-shm")}


class Watched:
    """A forge of agents under one strace; a context manager."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._plugs: dict[str, Plug] = {}
        self._pids: dict[int, Plug] = {}
        self._gone: set[int] = set()
        """Processes and threads that have ended since an agent was last started."""
        self._starting, self._lock = threading.Lock(), threading.Lock()
        self.broken: str = ""
        """Why the record could not be followed any more; empty as long as it can."""

    def __enter__(self) -> Self:
        home, pipe = self._home, self._home / "record"
        os.mkfifo(pipe)
        env = os.environ | {
            "PYTHONPATH": python_path(),
            RUNNERS: str(home / "runners.sock"),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        warm = [sys.executable, "-m", "crashstates.warm"]
        self._runners = _served([*warm, "runners", env[RUNNERS]], env)
        self._thread = threading.Thread(target=self._follow, args=(pipe,), daemon=True)
        self._thread.start()
        self._agents = _served([*strace(pipe), *warm, "agents"], env)
        return self

    def __exit__(self, *_: object) -> None:
        for plug in self._plugs.values():
            plug.kill()
        for process in (self._agents, self._runners):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(20)
            process.stdout.close()
        self._thread.join(20)

    def add(self, plug: Plug) -> None:
        """Watch the device of PLUG."""
        self._plugs[f"{plug.data}"] = plug

    def start(self, plug: Plug) -> None:
        """Start the agent of PLUG."""
        assert not plug.on
        assert not self.broken, self.broken
        wanted = {"config": str(plug.config), "log": str(plug.log)}
        # The thread that reads the record must never wait for this: strace would stop with it.
        with self._starting:
            self._gone.clear()
            assert self._agents.stdin is not None
            assert self._agents.stdout is not None
            self._agents.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._agents.stdin.flush()
            plug.ops = 0
            plug.pid = int(self._agents.stdout.readline())
            with self._lock:
                if plug.pid not in self._gone:
                    plug.ended.clear()
                    self._pids[plug.pid] = plug

    def _follow(self, pipe: Path) -> None:
        try:
            with pipe.open("rb") as record:
                for line in joined(raw.decode("ascii") for raw in record):
                    self._line(line)
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}"
            raise

    def _line(self, line: str) -> None:
        words = line.split(maxsplit=2)
        if len(words) > 1 and words[1] == "+++":
            self._ended(int(words[0]))
            return
        for plug in self._plugs.values():
            if plug.needle in line:
                plug.heard(line)

    def _ended(self, pid: int) -> None:
        with self._lock:
            plug = self._pids.pop(pid, None)
            self._gone.add(pid)
        if plug is not None:
            plug.ended.set()


def _served(words: list[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process
