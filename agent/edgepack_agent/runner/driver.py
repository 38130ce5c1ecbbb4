"""The runner's life: load, obey, beat, end. Joins the parts; each decision is in one of them."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edgepack.errors import EdgepackError, IntegrityError
from edgepack_agent.core.heat import HeatRule
from edgepack_agent.core.sightings import Rule, Seen
from edgepack_agent.runner import kernel, wire
from edgepack_agent.runner.album import Album
from edgepack_agent.runner.api import Api
from edgepack_agent.runner.cameras import camera_families
from edgepack_agent.runner.channel import Channel
from edgepack_agent.runner.connection import DEADLINE_S
from edgepack_agent.runner.cooling import Cooling
from edgepack_agent.runner.engine import Engine, QueueFullError
from edgepack_agent.runner.gate import Gate
from edgepack_agent.runner.interface import Load, Model
from edgepack_agent.runner.mirror import Mirror
from edgepack_agent.runner.observing import Observer
from edgepack_agent.runner.preview import preview_routes
from edgepack_agent.runner.server import Server
from edgepack_agent.runner.shadow import Comparison
from edgepack_agent.runner.sources import Feed, Results
from edgepack_agent.runner.statistics import Statistics
from edgepack_agent.runner.throttle import Throttle

__all__ = ["Driver", "Options"]

if TYPE_CHECKING:
    from edgepack_agent.runner.grpc_api import GrpcServer

T = TypeVar("T")

log = logging.getLogger(__name__)

_BEAT_S = 1.0
_STALL_S = 2.0
"""Without progress of the model for this long, the beat stops."""
_PATIENCE_S = 0.05
_BACKLOG = 64 * 1024
"""Bytes that wait for the supervisor; with more, what cameras see is not said."""
_LAST_S = 4.0
"""For the last answers and images each: the supervisor does not wait much longer than both."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the runner was started with."""

    control: socket.socket
    listeners: tuple[socket.socket, ...]
    load: Load
    state: Path | None
    """Directory for the results of sources."""
    confined: bool = False
    """Whether this process is shut into what it needs."""
    heat: HeatRule | None = None
    """When cameras are slowed down; None: never."""
    moved: Callable[[], list[str]] = list
    """Returns the sources that this process may not open because they came after it."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What there is once the model is."""

    model: Model
    api: Api
    server: Server
    feed: Feed
    comparison: Comparison
    cooling: Cooling


class Driver:
    """A runner from its first to its last word."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._statistics = Statistics()
        self._engine = Engine()
        self._throttle = Throttle()
        self._throttled: bool | None = None
        self._commands: asyncio.Queue[wire.Command] = asyncio.Queue()
        self._handed: deque[int] = deque()
        """Descriptors in the order of the commands they came with."""
        self._mirror: Mirror | None = None
        self._stopping = asyncio.Event()
        self._clock = (time.monotonic(), time.process_time())
        self._loaded: _Loaded | None = None
        self._draining: asyncio.Task[None] | None = None
        self._grpc_at: str | None = None
        self._grpc: GrpcServer | None = None

    async def run(self) -> int:
        """Live until told to stop; return the exit code."""
        self._up = Channel(self._options.control)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        lives = [self._hear(), self._live(), self._stopping.wait()]
        done, _ = await asyncio.wait(
            [loop.create_task(life) for life in lives], return_when=asyncio.FIRST_COMPLETED
        )
        error = next((task.exception() for task in done if task.exception()), None)
        if error is None:
            await self._finish()
        else:
            self._say(_failure(error))
        await self._up.sent()
        return 1 if error else 0

    async def _hear(self) -> None:
        lines = wire.Lines()
        while (came := await self._up.receive())[0]:
            data, descriptors = came
            self._handed.extend(descriptors)
            for line in lines.feed(data):
                command = wire.read_command(line)
                if isinstance(command, wire.Stop):
                    self._stopping.set()
                self._commands.put_nowait(command)
        os._exit(0)  # the supervisor is gone: nobody wants an answer, nobody would stop us

    async def _live(self) -> None:
        loaded = self._loaded = await self._load()
        self._say_loaded(loaded.model)
        beating = asyncio.create_task(self._beat(loaded.cooling))
        try:
            while True:
                await self._obey(await self._commands.get(), loaded)
        finally:
            beating.cancel()

    async def _load(self) -> _Loaded:
        options, engine, statistics = self._options, self._engine, self._statistics
        model = await self._alone(lambda: options.load(statistics, engine.progressed))
        api = Api(model, engine, statistics)
        server = Server(api, options.listeners)
        results = Results(options.state / "results.jsonl" if options.state else None)
        feed = Feed(self._shown(model.look), self._shown(model.watch), results, statistics)
        api.add(preview_routes(feed))
        api.families.append(lambda: camera_families(feed.cameras))
        comparison = Comparison(
            model.manifest, lambda x: engine.run(lambda: model.aside(x), math.inf)
        )
        return _Loaded(model, api, server, feed, comparison, Cooling(feed, options.heat))

    async def _alone(self, work: Callable[[], T]) -> T:
        """Return what long WORK on the model returns; commands are heard meanwhile."""
        return await asyncio.to_thread(self._engine.run, work, math.inf)

    async def _obey(self, command: wire.Command, loaded: _Loaded) -> None:
        match command:
            case wire.Check(exam, min_score):
                path = Path(exam) if exam else None
                found = await self._alone(lambda: loaded.model.check(path, min_score))
                self._say({"evt": "checked"} | found)
            case wire.Admit(token, max_per_s, grpc):
                loaded.api.gate, self._grpc_at = Gate(token, max_per_s), grpc
            case wire.Mirror(per_s):
                self._show_no_more(loaded)
                self._mirror = Mirror(self._socket(), loaded.model.manifest, per_s)
                loaded.model.offer = self._mirror.offer
            case wire.Shadow():
                loaded.comparison.follow(self._socket())
            case wire.Accept():
                loaded.comparison.stop()
                await self._begin_grpc(loaded)
                loaded.server.accept()
                loaded.feed.start()
                self._say({"evt": "accepting"})
            case wire.Drain():
                self._show_no_more(loaded)
                loaded.feed.stop()
                loaded.server.refuse()
                self._draining = asyncio.create_task(self._drain(loaded.server))
            case wire.Sources(sources):
                loaded.feed.replace(sources)
                loaded.api.add(preview_routes(loaded.feed))
            case wire.Observe():
                self._observe(command, loaded.feed)

    def _observe(self, command: wire.Observe, feed: Feed) -> None:
        loop = asyncio.get_running_loop()
        labels = None if command.labels is None else frozenset(command.labels)
        rule = Rule(labels, *command.frames)

        def say(seen: Seen) -> None:
            # The loop may have ended before a camera's thread has.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._say_seen, seen)

        def observer(camera: str) -> Observer:
            album = Album(camera, command.snapshots) if command.snapshots else None
            return Observer(camera, rule, say, album)

        feed.observer = observer

    def _socket(self) -> socket.socket:
        """Return the socket that came with the command."""
        if not self._handed:
            raise IntegrityError("a command came without its socket", reason="bad_command")
        return socket.socket(fileno=self._handed.popleft())

    def _show_no_more(self, loaded: _Loaded) -> None:
        loaded.model.offer = None
        if self._mirror is not None:
            self._mirror.stop()

    async def _begin_grpc(self, loaded: _Loaded) -> None:
        if self._grpc_at is None or self._grpc is not None:
            return
        try:
            from edgepack_agent.runner.grpc_api import GrpcServer

            self._grpc = GrpcServer(loaded.api, loaded.model, self._grpc_at)
            await self._grpc.start()
        except (ImportError, RuntimeError, OSError) as error:
            # REST and cameras are what the device is for; they go on without it.
            self._grpc = None
            self._statistics.failed("grpc")
            log.warning("gRPC is not served at %s: %s", self._grpc_at, error)

    async def _end_grpc(self) -> None:
        server, self._grpc = self._grpc, None
        if server is not None:
            await server.stop()

    async def _drain(self, server: Server) -> None:
        await self._end_grpc()
        if await server.drained(DEADLINE_S):
            self._say_beat()
            self._say({"evt": "drained"})

    async def _finish(self) -> None:
        """Answer what is under way and tell the last counts."""
        if self._loaded:
            self._loaded.feed.stop()
            self._loaded.server.refuse()
            await self._end_grpc()
            await self._loaded.server.drained(_LAST_S)
            await asyncio.to_thread(self._loaded.feed.ended, _LAST_S)
            self._say_beat()

    def _shown(self, see: Callable[[Any], T]) -> Callable[[Any], T]:
        """Return what the sources' threads, which have time, show their pictures to."""

        def shown(picture: Any) -> T:
            while True:
                try:
                    return self._engine.run(lambda: see(picture), math.inf)
                except QueueFullError:
                    time.sleep(_PATIENCE_S)

        return shown

    async def _beat(self, cooling: Cooling) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            self._throttled = self._throttle.seen()
            cooling.tick(self._throttled)
            if self._engine.stalled_s < _STALL_S:
                self._say_beat()
            if new := self._options.moved():
                # The supervisor starts it again, with a right to them; who asks meanwhile waits.
                log.warning("starts again, to be allowed to open %s", ", ".join(new))
                self._stopping.set()

    def _say_beat(self) -> None:
        now = (time.monotonic(), time.process_time())
        wall, used = now[0] - self._clock[0], now[1] - self._clock[1]
        self._clock = now
        self._say(
            {
                "evt": "beat",
                "rss_mb": round(kernel.rss_mb(), 1),
                "cpu_percent": round(100 * used / max(wall, 1e-3), 1),
                "temperature_c": kernel.temperature_c(),
                "throttled": self._throttled,
                "stats": self._statistics.take(),
                "cameras": self._cameras(),
                "folders": self._loaded.feed.folders() if self._loaded else {},
            }
            | self._compared()
        )

    def _compared(self) -> dict[str, Any]:
        comparison = self._loaded.comparison if self._loaded else None
        return {"shadow": comparison.describe()} if comparison and comparison.begun else {}

    def _say_seen(self, seen: Seen) -> None:
        # Of a supervisor that does not listen nothing is expected but that it will; what it
        # misses here is said again.
        if self._up.waiting > _BACKLOG:
            self._statistics.failed("sightings_dropped")
        else:
            self._say({"evt": "seen", "seen": msgspec.to_builtins(seen)})

    def _cameras(self) -> dict[str, Any]:
        cameras = self._loaded.feed.cameras if self._loaded else []
        return {camera.source.name: camera.describe() for camera in cameras}

    def _say(self, event: dict[str, Any]) -> None:
        self._up.send(wire.write_line(event))

    def _say_loaded(self, model: Model) -> None:
        effective = model.effective
        self._say(
            {
                "evt": "loaded",
                "runtime": model.manifest.target.runtime,
                "version": effective.version,
                "precision": effective.precision,
                "device": effective.device,
                "hint": effective.hint,
                "confined": self._options.confined,
                "digest": model.digest,
                "release": model.manifest.release,
            }
        )


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, EdgepackError):
        message = f"{error.what}: {error.why}" if error.why else error.what
        code, reason = error.exit_code, error.reason
    else:
        log.error("the runner failed", exc_info=error)
        message, code, reason = type(error).__name__, EdgepackError.exit_code, "runner_error"
    return {"evt": "failed", "reason": reason, "message": message, "code": code}
