"""The driver: event -> transition -> persist -> effects, one at a time, for ever.

The only file where the pure core meets the adapters. Everything that happens anywhere (a
message, a word of a runner, a result of the worker, a command, a deadline) is put on one queue
and handled by one thread; what takes long is done by the worker and comes back as an event.
"""

import logging
import os
import queue
import time
from collections.abc import Callable
from typing import Any

from edgepack.errors import EdgepackError
from edgepack.settings import Settings
from edgepack_agent.adapters.control import Asked
from edgepack_agent.adapters.download import disk_errors
from edgepack_agent.adapters.install import as_event
from edgepack_agent.adapters.memory import give_back
from edgepack_agent.adapters.mqtt import Heard, LinkChanged
from edgepack_agent.adapters.worker import Done
from edgepack_agent.config import Config
from edgepack_agent.console import Console
from edgepack_agent.core.age import aged
from edgepack_agent.core.effects import (
    Approve,
    Check,
    Confirm,
    Consider,
    Download,
    Drain,
    Effect,
    Halt,
    Load,
    Log,
    Mirror,
    Publish,
    Recheck,
    Retire,
    Revert,
    Stage,
    Switch,
    Tell,
    TryLater,
)
from edgepack_agent.core.events import Booted, Confirmed, Event, InstallAsked, Reverted, Stood
from edgepack_agent.core.machine import transition
from edgepack_agent.core.state import Slot, State
from edgepack_agent.measuring import Measuring
from edgepack_agent.parts import Parts
from edgepack_agent.patience import Patience
from edgepack_agent.serving import Spoke
from edgepack_agent.timers import Timers
from edgepack_agent.watch import Watch

__all__ = ["Supervisor"]

log = logging.getLogger(__name__)

TICK_S = 5.0
RETRY_S = 5.0
INVENTORY_S = 600.0
STANDING_S = 300.0
"""Seconds between two looks at what the publisher says of the model that runs, at least."""
_Happening = Event | Heard | LinkChanged | Spoke | Done[Event | None] | Asked | Callable[[], None]


class Supervisor:
    """One device.

    Args:
        parts: Its adapters. They post what happens to `post`.
        clock: Monotonic seconds.
    """

    def __init__(self, parts: Parts, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts, self._clock = parts, clock
        self._queue = parts.queue
        self._state: State = parts.journal.state
        self._timers = Timers(clock)
        self._entered = 0
        """Counts phase changes: tells a timer whether it still speaks of the same phase."""
        self._unsaved: list[Event] = []
        """Events of this phase that wait for a disk that can be written."""
        self._console = Console(parts, self)
        self._watch = Watch(parts, self, clock)
        self._patience = Patience(parts, self, clock)
        parts.answering.learn("measure", Measuring(parts, self, self._patience.held).find)
        self._running = True
        self._effects: dict[type[Any], Callable[[Any], None]] = {
            Tell: lambda e: parts.desk.tell(e.outcome, e.phase),
            Publish: self._publish,
            Approve: lambda e: self.work(lambda stop: parts.installer.approve(e.job, stop)),
            TryLater: lambda _: self._patience.try_later(),
            Consider: lambda _: self._patience.consider(),
            Recheck: self._patience.recheck,
            Halt: lambda _: parts.worker.cancel(),
            Download: lambda e: self.work(lambda stop: parts.installer.download(e.model, stop)),
            Stage: lambda e: self.work(lambda _: parts.installer.stage(e.slot)),
            Load: self._load,
            Check: self._check,
            Mirror: self._watch.compare,
            Switch: lambda _: parts.serving.switch(),
            Drain: self._drain,
            Confirm: self._confirm,
            Revert: self._revert,
            Retire: self._retire,
            Log: lambda e: log.warning("%s", e.text),
        }

    @property
    def state(self) -> State:
        """Where the update is."""
        return self._state

    @property
    def _config(self) -> Config:
        return self._parts.config

    @property
    def entered(self) -> int:
        """How many phases have been entered."""
        return self._entered

    # -- the loop

    def run(self) -> None:
        """Recover, say READY, and go on until `stop`."""
        self._recover()
        self._parts.notifier.ready()
        self._parts.link.start()
        if self._parts.announcer:
            self._parts.announcer.start()
        self._timers.repeat(lambda: self._config.telemetry.interval_s, self._close_interval)
        self._timers.repeat(TICK_S, self._tick)
        self._timers.repeat(lambda: self._config.poll_s, self._ask, jitter=True)
        self._timers.repeat(INVENTORY_S, self._tell_inventory)
        self._timers.repeat(
            lambda: max(self._config.poll_s, STANDING_S), self.ask_standing, jitter=True
        )
        if self._parts.notifier.watchdog_s:
            self._timers.repeat(self._parts.notifier.watchdog_s, self._sign_of_life)
        try:
            while self._running:
                self._step()
        finally:
            self._close()

    def stop(self) -> None:
        """End the loop soon; may be called from a signal handler."""
        self._queue.put(self._end)

    def post(self, happening: _Happening) -> None:
        """Put something that happened on the queue; from any thread."""
        self._queue.put(happening)

    def _step(self) -> None:
        left = self._timers.next_in()
        try:
            happening = self._queue.get(timeout=left) if left is None or left > 0 else None
        except queue.Empty:
            happening = None
        if happening is not None:
            self._safely(lambda: self._handle(happening))
        for action in self._timers.due():
            self._safely(action)

    def _safely(self, action: Callable[[], None]) -> None:
        """Do ACTION; neither a failing disk nor a mistake of ours must stop inference."""
        try:
            action()
        except EdgepackError as error:
            log.warning("%s: %s", error, error.why)
        except Exception:
            # The phase it belonged to has a deadline, which ends the update with a reason.
            log.exception("something unexpected went wrong; the model goes on")

    def _handle(self, happening: Any) -> None:
        match happening:
            case Heard():
                self._heard(happening)
            case LinkChanged():
                self._link_changed(happening.up)
            case Spoke():
                self._watch.spoke(happening)
                if self._parts.announcer:
                    self._parts.announcer.heard(happening.runner, happening.event)
                self._parts.notifier.status(self._summary())
            case Done():
                self._done(happening)
            case Asked():
                self._console.asked(happening)
            case _ if callable(happening):
                happening()
            case _:
                self.on(happening)

    def _done(self, done: Done[Event | None]) -> None:
        if not self._parts.worker.accept(done) or done.result is None:
            return
        if isinstance(done.result, Stood):
            self.on(done.result)
        elif self._state.phase == "idle" and not isinstance(done.result, InstallAsked):
            self._console.refused(done.result)
        else:
            self.on(done.result)

    def on(self, event: Event) -> None:
        """Event -> transition -> persist -> effects."""
        before = self._state
        after, effects = transition(before, event)
        after = aged(before, after, self._parts.now(), booted=isinstance(event, Booted))
        try:
            self._parts.journal.save(after)
        except EdgepackError:
            # Nothing has happened yet, in memory either: it will, once it can be written.
            if event not in self._unsaved:
                self._unsaved.append(event)
                self.while_here(RETRY_S, lambda: self._again(event))
            raise
        self._state = after
        if after.phase != before.phase:
            log.info("%s -> %s %s", before.phase, after.phase, after.result or "")
            self._phase_changed(after)
        for effect in effects:
            self._effect(effect)

    def _again(self, event: Event) -> None:
        self._unsaved.remove(event)
        self.on(event)

    def _effect(self, effect: Effect) -> None:
        try:
            self._effects[type(effect)](effect)
        except EdgepackError as error:
            log.warning("%s: %s", type(effect).__name__, error)
            self.post(as_event(error))

    def _phase_changed(self, state: State) -> None:
        self._entered += 1
        self._timers.leave()
        self._unsaved.clear()
        self._patience.entered(state)
        self._console.phase_changed(state)
        if state.phase == "idle":
            give_back()
        self._parts.notifier.status(self._summary())

    # -- timers

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ACTION in SECONDS."""
        self._timers.later(seconds, action)

    def ask_standing(self) -> None:
        """Ask what the publisher says of the model that runs, if nothing else is going on."""
        state, worker = self._state, self._parts.worker
        if state.phase == "idle" and state.current and not worker.busy:
            model = state.current.model
            back = state.previous.model if state.previous else None
            self.work(lambda _: self._parts.installer.standing(model, back))

    def reconsider(self) -> None:
        """Look now whether this is a good moment for an update."""
        self._patience.looked_at()

    def while_here(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ACTION in SECONDS, unless another phase has been entered by then."""
        self._timers.later(seconds, action, here=True)

    def _tick(self) -> None:
        self._patience.tick()
        self._watch.tick()
        if self._parts.link.connected:
            self._parts.desk.tick()
            self._parts.requests.tick()
            self._parts.reports.send()
        idle = self._state.phase == "idle"
        self._parts.renewer.tick(connected=self._parts.link.connected, idle=idle)
        self._follow_settings(idle=idle)
        if self._parts.announcer:
            self._parts.announcer.tick(self._console.describe())

    def _ask(self) -> None:
        self._parts.desk.ask()
        self._parts.requests.ask()

    def _tell_inventory(self) -> None:
        self._parts.reports.inventory(self._parts.inventory())
        give_back()

    def _follow_settings(self, *, idle: bool) -> None:
        """Ask the director for new settings, if nothing else is going on."""
        parts = self._parts
        if idle and parts.link.connected and not parts.worker.busy and parts.steering.due():
            self.work(self._read_settings)

    def _read_settings(self, _stop: Callable[[], bool]) -> None:
        try:
            found = self._parts.installer.settings()
        except EdgepackError as error:
            log.warning("no news of settings: %s: %s", error, error.why)
            return
        self.post(lambda: self._take_settings(found))

    def _take_settings(self, found: Settings | None) -> None:
        with disk_errors():
            told = self._parts.steering.take(found)
        if told is not None:
            self._publish(told)

    def _close_interval(self) -> None:
        self._parts.reports.close_interval()
        if self._parts.link.connected:
            self._parts.reports.send()

    def _sign_of_life(self) -> None:
        # Writing what is there already proves that loop and journal make progress.
        self._parts.journal.probe()
        self._parts.notifier.alive()

    # -- effects

    def work(self, run: Callable[[Callable[[], bool]], Event | None]) -> None:
        """Let the worker do RUN; its result comes back as an event."""
        self._parts.worker.begin(run, as_event)

    def _publish(self, event: Publish) -> None:
        self._parts.reports.event(event)
        if self._parts.link.connected:
            self._parts.reports.send()

    def _load(self, effect: Load) -> None:
        self._parts.serving.load(effect.slot, self._clock())

    def _check(self, effect: Check) -> None:
        exam = effect.exam
        path = self._parts.downloads.checked(exam.sha256) if exam else None
        self._parts.serving.check(exam, path)

    def _drain(self, effect: Drain) -> None:
        self._parts.serving.drain()
        self._watch.begin(effect)

    def _confirm(self, effect: Confirm) -> None:
        model = effect.slot.model
        self._parts.serving.promote(effect.slot, self._clock())
        self._parts.raise_floor(model.release.partition("@")[0], model.epoch)
        self._tidy()
        self._parts.link.announce()
        self.post(Confirmed())

    def _revert(self, effect: Revert) -> None:
        self._parts.worker.cancel()
        self._parts.serving.revert(self._clock())
        if effect.discard:
            with disk_errors():
                self._parts.slots.discard(effect.discard)
        result = self._state.result
        # What has arrived is kept if the next job may want it, which nobody wants of a bad model.
        useless = result is not None and (
            result.status == "REJECTED" or result.reason == "disk_full"
        )
        self._tidy(None if useless else self._state.candidate)
        self.post(Reverted())
        if result is not None and result.reason == "replaced":
            # The newer job was heard of while there was another one; its answer comes later.
            self._parts.desk.ask()

    def _retire(self, effect: Retire) -> None:
        self._parts.serving.retire(effect.slot)
        with disk_errors():
            self._parts.slots.discard(effect.slot)
            self._parts.slots.link(self._state)
        self._parts.link.announce()

    def _tidy(self, tried: Slot | None = None) -> None:
        """Make links and blobs follow the journal; what fails now is done at the next start."""
        try:
            with disk_errors():
                self._parts.slots.link(self._state)
                kept = self._state.current, self._state.previous, tried
                self._parts.slots.collect(*kept)
                self._parts.serving.forget_others(*kept)
        except EdgepackError as error:
            log.warning("%s: %s", error, error.why)

    # -- what happens: the link

    def _heard(self, heard: Heard) -> None:
        if heard.kind.startswith("job/"):
            self._parts.desk.heard(heard.kind, heard.payload)
        elif heard.kind.startswith("req/"):
            self._parts.requests.heard(heard.kind, heard.payload)
        elif heard.kind == "ack":
            self._parts.reports.acknowledged(heard.payload)
        elif heard.kind.startswith("cert/"):
            self._parts.renewer.heard(heard.kind, heard.payload)

    def _link_changed(self, up: bool) -> None:
        log.info("the link is %s", "up" if up else "down")
        self._parts.desk.link_changed(up=up)
        self._parts.requests.link_changed(up=up)
        self._parts.reports.link_lost()
        if up:
            self._tell_inventory()
            self._parts.reports.send()
            self._patience.retry()
        self._parts.notifier.status(self._summary())

    # -- begin and end

    def _recover(self) -> None:
        parts = self._parts
        if parts.journal.lost or self._state == State():
            self._fall_back_on_disk()
        if self._state.current:
            parts.serving.serve(self._state.current, self._clock())
        if self._state.phase == "idle":
            self._tidy()
        self._phase_changed(self._state)
        self._safely(lambda: self.on(Booted()))

    def _fall_back_on_disk(self) -> None:
        """Without a journal, the slot that proves to be whole is the truth."""
        found = self._parts.slots.recover()
        if found is None or self._parts.stops(found.model):
            return
        self._state = State(current=found)
        self._parts.journal.save(self._state)
        self._parts.outbox.new_boot()
        model = found.model
        self._parts.reports.event(Publish("recovered", model.release, model.digest, "journal_lost"))

    def _end(self) -> None:
        self._running = False

    def _close(self) -> None:
        parts = self._parts
        parts.notifier.stopping()
        parts.control.close()
        parts.worker.stop(grace_s=5)
        parts.serving.close()
        self._last_beats()
        self._safely(self._close_interval)
        parts.link.stop()
        if parts.announcer:
            parts.announcer.close()
        parts.journal.close()
        parts.outbox.close()
        os.close(parts.lock)

    def _last_beats(self) -> None:
        """Count what the runners said while they ended."""
        while not self._queue.empty():
            happening = self._queue.get()
            if isinstance(happening, Spoke) and self._parts.announcer:
                self._parts.announcer.heard(happening.runner, happening.event)
            if isinstance(happening, Spoke) and happening.event["evt"] == "beat":
                slot = self._parts.serving.slot_of(happening.runner, happening.event)
                if slot:
                    self._parts.reports.beat(slot, happening.event)

    def _summary(self) -> str:
        seat = self._parts.serving.answering()
        model = seat.slot.model.release if seat else "no model"
        link = "online" if self._parts.link.connected else "offline"
        return f"{model} - {self._state.phase} - {link}"
