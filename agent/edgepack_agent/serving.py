"""Which runner answers: the current model's, the candidate's beside it. Decides no update.

Owns the listening sockets, so that no swap ever closes one. Two seats: *current* is restarted
with growing pauses whenever it ends; *candidate* is not, the update decides. A candidate
that took over keeps the sockets while the old one stays loaded, so the way back is instant. With
`stop_first` there is one runner at a time: the next one is started when the last is gone.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgepack.errors import EdgepackError, UsageError
from edgepack_agent.adapters.compiled import Compiled
from edgepack_agent.adapters.runner import Runner
from edgepack_agent.config import Config, address
from edgepack_agent.core.deadlines import restart_pause
from edgepack_agent.core.state import Exam, Slot
from edgepack_agent.runner.setup import Setup

__all__ = ["Seat", "Serving", "Spoke", "open_sockets"]

log = logging.getLogger(__name__)
GRACE_S = 10.0
FACTS = ("version", "precision", "device", "hint", "confined")
"""What of `loaded` is told in `status`."""


@dataclass(frozen=True, slots=True)
class Spoke:
    """A runner said something, or ended (`exited`)."""

    runner: Runner
    event: dict[str, Any]


@dataclass(slots=True)
class Seat:
    """A slot, its runner, and what is wanted of it."""

    slot: Slot
    runner: Runner | None
    accept: bool
    started: float
    pause: float = 0.0
    """Seconds before its last restart."""
    loaded: bool = False
    accepting: bool = False
    wanted: bool = False
    """Whether its runner is to be started as soon as there is room."""
    trouble: str = ""
    """Why it last ended, for `status`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What its runner said of itself when the model was loaded; empty: it has not yet."""
    cameras: dict[str, Any] = field(default_factory=dict)
    """How they are, by its last beat."""
    folders: dict[str, Any] = field(default_factory=dict)
    """How they are, by its last beat."""


class Serving:
    """The runners of one device.

    Args:
        config: For threads, sources, and who may ask.
        sockets: Bound and listening.
        place: Directory of a slot.
        blob: Where a file with this SHA-256 is.
        compiled: Where runtimes keep what they compile.
        post: Takes what runners say, from their threads.
        token: What requests over TCP must bear; None: nothing.
    """

    def __init__(
        self,
        config: Config,
        sockets: list[socket.socket],
        place: Callable[[Slot], Path],
        blob: Callable[[str], Path],
        compiled: Compiled,
        post: Callable[[Spoke], None],
        token: str | None = None,
    ) -> None:
        self._config, self._sockets, self._token = config, sockets, token
        self._place, self._blob, self._compiled, self._post = place, blob, compiled, post
        self._leaving: list[threading.Thread] = []
        self._slots: dict[Runner, Slot] = {}
        self.current: Seat | None = None
        self.candidate: Seat | None = None

    def follow(self, config: Config) -> None:
        """Let CONFIG hold from now on; runners that feed sources are told of new limits."""
        before, self._config = self._sources(), config
        if (sources := self._sources()) != before:
            for seat in (self.current, self.candidate):
                if seat and seat.accepting:
                    self._tell(seat, cmd="sources", sources=sources)

    def serve(self, slot: Slot, now: float) -> None:
        """Make SLOT the current one and let it answer."""
        self.current = Seat(slot, None, accept=True, started=now, wanted=True)
        self.fill(now)

    def load(self, slot: Slot, now: float) -> None:
        """Let the current model answer alone, or stop first, and start a candidate on SLOT.

        Raises:
            EdgepackError: its process could not be started.
        """
        if self._alone:
            self._make_room()
        else:
            self.revert(now)
        self.candidate = Seat(slot, None, accept=False, started=now, wanted=True)
        self.fill(now)

    def fill(self, now: float) -> None:
        """Start the runners that are wanted and for which there is room; harmless to repeat.

        Raises:
            EdgepackError: a process could not be started; it is still wanted.
        """
        seats = [seat for seat in (self.candidate, self.current) if seat]
        for seat in seats[:1] if self._alone else seats:
            if not seat.wanted or (self._alone and self._slots):
                continue
            seat.started = now
            seat.runner = self._start(seat.slot)
            seat.wanted = False

    def check(self, exam: Exam | None, path: Path | None) -> None:
        """Let the candidate prove itself; PATH holds the exam."""
        score = exam.min_score if exam else 0.0
        self._tell(self.candidate, cmd="check", exam=str(path) if exam else None, min_score=score)

    def mirror(self, per_s: float) -> str:
        """Let the candidate answer what the current model answers, PER_S a second at most.

        Returns:
            Why that cannot be; nothing if it can. A current runner that is not there now can be
            shown later.
        """
        if self.current is None:
            return "no_current"
        if self._alone:
            return "stop_first"
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if self.current.runner and self.candidate and self.candidate.runner:
                self.current.runner.send({"cmd": "mirror", "per_s": per_s}, ours)
                self.candidate.runner.send({"cmd": "shadow"}, theirs)
        return ""

    def switch(self) -> None:
        """Let the candidate answer too."""
        if self.candidate:
            self.candidate.accept = True
            self._accept(self.candidate)

    def drain(self) -> None:
        """Let the current model take no more; it stays loaded."""
        if self.current and self.candidate:
            self.current.accept = self.current.accepting = False
            self._tell(self.current, cmd="drain")

    def promote(self, slot: Slot, now: float) -> None:
        """Make the candidate on SLOT the current one and end the old; harmless to repeat."""
        if self.candidate and self.candidate.slot == slot:
            old, self.current, self.candidate = self.current, self.candidate, None
            self._end(old)
        elif self.current is None or self.current.slot != slot:
            self._end(self.current)
            self.serve(slot, now)

    def revert(self, now: float) -> None:
        """Let the current model answer alone; harmless to repeat."""
        if self.current and not self.current.accept:
            self.current.accept = True
            if self.current.loaded:
                self._accept(self.current)
        failed, self.candidate = self.candidate, None
        self._end(failed)
        if self._alone and self.current and self.current.runner is None:
            self.current.wanted = True
            self._fill_or_wait(now)

    def retire(self, slot: Slot) -> None:
        """Let the model in SLOT answer no more; harmless to repeat."""
        if self.current and self.current.slot == slot:
            old, self.current = self.current, None
            self._end(old)

    def forget_others(self, *slots: Slot | None) -> None:
        """Remove what runtimes compiled of models that are in none of SLOTS."""
        self._compiled.collect(*slots)

    def seat_of(self, runner: Runner) -> Seat | None:
        """Return the seat that RUNNER sits on; None if it has been replaced."""
        seats = (self.current, self.candidate)
        return next((seat for seat in seats if seat and seat.runner is runner), None)

    def slot_of(self, runner: Runner, event: dict[str, Any]) -> Slot | None:
        """Return the slot that EVENT is about, also if RUNNER has been replaced."""
        if event["evt"] == "exited":
            return self._slots.pop(runner, None)
        return self._slots.get(runner)

    def answering(self) -> Seat | None:
        """Return the seat that answers requests now, the candidate first."""
        seats = (self.candidate, self.current)
        return next((seat for seat in seats if seat and seat.accepting), None)

    def note(self, seat: Seat, event: dict[str, Any], now: float) -> float | None:
        """Keep SEAT in step with EVENT; return in how many seconds to restart it, if so."""
        match event["evt"]:
            case "loaded":
                seat.loaded, seat.trouble = True, ""
                seat.facts = {key: event.get(key) for key in FACTS}
                if seat.accept:
                    self._accept(seat)
            case "accepting":
                seat.accepting = seat.accept
            case "beat":
                seat.cameras, seat.folders = event.get("cameras", {}), event.get("folders", {})
            case "failed":
                seat.trouble = str(event.get("reason", "failed"))
            case "exited":
                return self._exited(seat, event, now)
        return None

    def restart(self, now: float) -> None:
        """Start the current model's runner again, if it has none."""
        seat = self.current
        if seat and seat.runner is None:
            seat.wanted = True
            self._fill_or_wait(now)

    def close(self) -> None:
        """End every runner and close the sockets."""
        for seat in (self.current, self.candidate):
            self._end(seat)
        self.current = self.candidate = None
        for thread in self._leaving:
            thread.join(GRACE_S + 5)
        for listener in self._sockets:
            listener.close()

    def _exited(self, seat: Seat, event: dict[str, Any], now: float) -> float | None:
        seat.runner, seat.loaded, seat.accepting = None, False, False
        seat.trouble = seat.trouble or f"exit code {event.get('code')}"
        log.warning("the runner of %s ended: %s", seat.slot.model.release, seat.trouble)
        if seat is self.candidate:
            return None
        seat.pause = restart_pause(seat.pause, now - seat.started)
        return seat.pause

    @property
    def _alone(self) -> bool:
        """Whether there may be one runner at a time."""
        return self._config.update.swap == "stop_first"

    def _make_room(self) -> None:
        """End every runner; the current model is started again by `revert`."""
        self._end(self.candidate)
        self._end(self.current)
        if self.current:
            self.current.runner, self.current.wanted = None, False
            self.current.loaded = self.current.accepting = False

    def _fill_or_wait(self, now: float) -> None:
        """Start what is wanted; what cannot be started is tried again later."""
        with contextlib.suppress(EdgepackError):
            self.fill(now)

    def _start(self, slot: Slot) -> Runner:
        runner = Runner.start(
            self._place(slot),
            self._sockets,
            lambda runner, event: self._post(Spoke(runner, event)),
            self._setup(slot),
        )
        self._slots[runner] = slot
        return runner

    def _setup(self, slot: Slot) -> Setup:
        config, exam, compiled = self._config, slot.model.exam, self._compiled.place(slot)
        return Setup(
            threads=config.threads,
            device=config.device,
            hint=config.hint,
            heat=config.heat.rule(),
            sources=tuple(path for source in config.sources if (path := source.path())),
            read=(str(self._blob(exam.sha256)),) if exam else (),
            compiled=str(compiled) if compiled else None,
            results=str(config.data_dir / "results") if config.sources else None,
            album=str(config.snapshots_dir) if config.snapshots.keep else None,
            scratch=str(config.run_dir / "scratch"),
        )

    def _accept(self, seat: Seat) -> None:
        if sources := self._sources():
            self._tell(seat, cmd="sources", sources=sources)
            self._observe(seat)
        api = self._config.api
        self._tell(seat, cmd="admit", token=self._token, max_per_s=api.max_per_s, grpc=api.grpc)
        self._tell(seat, cmd="accept")

    def _sources(self) -> list[dict[str, Any]]:
        every = self._config.cameras
        return [
            msgspec.to_builtins(msgspec.structs.replace(source, fps=every.fps(source.fps)))
            for source in self._config.sources
        ]

    def _observe(self, seat: Seat) -> None:
        config, sightings = self._config, self._config.sightings
        pictures = config.snapshots
        wanted = config.events.broker is not None or pictures.keep
        if not wanted or sightings.labels == ():
            return
        snapshots = {
            "directory": str(config.snapshots_dir), "keep": pictures.keep,
            "max_mb": pictures.max_mb, "labels": pictures.labels,
        }  # fmt: skip
        self._tell(
            seat,
            cmd="observe",
            labels=sightings.labels,
            frames=sightings.frames,
            snapshots=snapshots if pictures.keep else None,
        )

    def _tell(self, seat: Seat | None, **command: Any) -> None:
        if seat and seat.runner:
            seat.runner.send(command)

    def _end(self, seat: Seat | None) -> None:
        """End the runner of SEAT without waiting for it."""
        if seat is None or seat.runner is None:
            return
        self._leaving = [thread for thread in self._leaving if thread.is_alive()]
        thread = threading.Thread(target=seat.runner.stop, args=(GRACE_S,), name="leaving")
        thread.start()
        self._leaving.append(thread)


def open_sockets(config: Config) -> list[socket.socket]:
    """Return the sockets of the local inference API, bound and listening.

    Raises:
        UsageError: one of them is taken or not allowed.
    """
    opened: list[socket.socket] = []
    try:
        opened.append(_unix_socket(config.api_socket))
        if config.listen:
            opened.append(socket.create_server(address(config.listen), backlog=128))
    except OSError as error:
        _close_all(opened)
        raise UsageError(
            "the inference API cannot listen",
            why=str(error),
            fix="check `listen` and `run_dir` in the configuration",
            reason="bad_socket",
        ) from error
    return opened


def _unix_socket(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _close_all(opened: Iterable[socket.socket]) -> None:
    for listener in opened:
        listener.close()
