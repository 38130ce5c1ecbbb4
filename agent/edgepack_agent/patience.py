"""When to go on, when to look again, and when it has been long enough. Ends nothing itself.

Deadlines of phases and of whole jobs, pauses between tries, and whether now is a good moment:
everything about an update that is a matter of time comes from here, as events.
"""

import random
from collections.abc import Callable
from functools import partial

from edgepack.errors import EdgepackError
from edgepack_agent.adapters.install import as_event
from edgepack_agent.core.age import left
from edgepack_agent.core.deadlines import backoff, deadline
from edgepack_agent.core.deferral import Moment, Rules, hold, recheck_s
from edgepack_agent.core.effects import Recheck
from edgepack_agent.core.events import Clear, Event, Held, Retry, TimerFired
from edgepack_agent.core.phases import telling
from edgepack_agent.core.state import Hold, State
from edgepack_agent.engine import Engine
from edgepack_agent.parts import Parts

__all__ = ["Patience"]

RETELL_S = 60.0
RETRY_S = 5.0
JUMP_S = 2.0
"""More than a clock that is only slewed moves between two looks."""
_BY_THE_LINK = frozenset({"checking", "downloading", "verifying", "deferred"})
"""Phases whose steps are tried again."""
_CAN_WAIT = frozenset({"checking", "downloading", "verifying"})
"""Phases that are left when the moment turns bad; later ones take seconds and go through."""


class Patience:
    """Time, for one update engine.

    Args:
        parts: For what the device says of itself.
        engine: Takes the events, and lends its timers.
        clock: Monotonic seconds.
    """

    def __init__(self, parts: Parts, engine: Engine, clock: Callable[[], float]) -> None:
        self._parts, self._engine, self._clock = parts, engine, clock
        self._tries = 0
        self._received = 0
        self._told = 0.0
        self._born = self._birth()

    def entered(self, state: State) -> None:
        """Begin to wait for the end of the phase that STATE has come to."""
        self._tries = 0
        self._received = self._parts.installer.received
        self._told = self._clock()
        self._born = self._birth()
        self._expect(state, total=False)
        self._expect(state, total=True)

    def consider(self) -> None:
        """Say whether now is a good moment."""
        self._parts.queue.put(self._judged())

    def recheck(self, effect: Recheck) -> None:
        """Look again when the hold may be over."""
        seconds = recheck_s(effect.hold, self._parts.now().wall)
        self._engine.while_here(seconds, self.consider)

    def try_later(self) -> None:
        """Let the step be tried again after a pause that grows while nothing comes of it."""
        if self._came_on():
            self._tries = 0
        pause = backoff(self._tries, random.random())  # noqa: S311 - no secret
        self._tries += 1
        self._engine.later(pause, self.retry)

    def retry(self) -> None:
        """Let the step be tried again, if it waits for that."""
        if self._engine.state.phase in _BY_THE_LINK and not self._parts.worker.busy:
            self._engine.on(Retry())

    def tick(self) -> None:
        """Notice a moment that has turned bad, a clock that was set; say that we are at it."""
        state, jumped = self._engine.state, self._jumped()
        if state.job is None or state.job.local:
            return
        if jumped and state.phase == "deferred":
            self.consider()
        if state.phase in _CAN_WAIT and isinstance(held := self._judged(), Held):
            self._engine.on(held)
        self._tell_again(self._engine.state)

    def looked_at(self) -> None:
        """Look now: somebody has changed what speaks for or against an update."""
        if self._engine.state.phase == "deferred":
            self.consider()
        else:
            self.tick()

    def held(self, state: State) -> Hold | None:
        """Return why an update would have to wait now, by the device's own rules and STATE's job.

        Raises:
            UsageError: a window's time zone is not known here (reason `no_time_zone`).
        """
        parts, update = self._parts, self._parts.config.update
        rules = Rules(update.windows, update.min_battery)
        lock, others = parts.locks.lock(), parts.locks.inhibitors()
        moment = Moment(parts.now(), lock, others, parts.power())
        return hold(moment, rules, state.job.windows if state.job else ())

    def _judged(self) -> Event:
        try:
            found = self.held(self._engine.state)
        except EdgepackError as error:
            return as_event(error)
        return Held(found) if found else Clear()

    def _tell_again(self, state: State) -> None:
        often = min(RETELL_S, state.job.timeout_s / 3) if state.job else RETELL_S
        if self._clock() - self._told < often:
            return
        self._told = self._clock()
        for tell in telling(state):
            self._parts.desk.tell(tell.outcome, tell.phase)

    def _expect(self, state: State, *, total: bool) -> None:
        seconds = left(state, self._parts.now()) if total else deadline(state)
        if seconds is not None:
            self._engine.while_here(max(seconds, 0.0), partial(self._end, state, total=total))

    def _end(self, state: State, *, total: bool) -> None:
        """Say that it has been long enough; again, if that did not end it."""
        if not total and state.phase == "downloading" and self._came_on():
            self._expect(state, total=False)
            return
        entered = self._engine.entered
        self._engine.on(TimerFired(state.phase, total))
        if self._engine.entered == entered:
            pause = RETRY_S if total else deadline(state) or RETRY_S
            self._engine.while_here(pause, partial(self._end, state, total=total))

    def _birth(self) -> float:
        """Return when this boot began, by the wall clock; that changes only if the clock is set."""
        now = self._parts.now()
        return now.wall - now.up

    def _jumped(self) -> bool:
        """Say whether the clock was set since this phase was entered, or this was asked last."""
        before, self._born = self._born, self._birth()
        return abs(self._born - before) > JUMP_S

    def _came_on(self) -> bool:
        """Say whether anything has arrived since this was asked last."""
        before, self._received = self._received, self._parts.installer.received
        return self._received != before
