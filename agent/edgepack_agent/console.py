"""Commands of a person at the device: judged, begun, and answered when they have ended.

Knows the update engine as something that has a state, takes events and does work; it changes
neither journal nor runner itself.
"""

import os
from typing import Any

from edgepack.errors import EdgepackError, UsageError
from edgepack_agent.adapters.carrier import write_export
from edgepack_agent.adapters.control import Asked
from edgepack_agent.core.choice import Wish
from edgepack_agent.core.deferral import MAX_LOCK_S, Lock, Moment, Rules, hold
from edgepack_agent.core.events import (
    CancelAsked,
    Event,
    Failed,
    Held,
    PinAsked,
    RollbackAsked,
    Troubled,
)
from edgepack_agent.core.state import Outcome, State
from edgepack_agent.engine import PROBATION_S, Engine, local_job, local_name
from edgepack_agent.parts import Parts
from edgepack_agent.status import describe, failure

__all__ = ["Console"]

MAX_TEXT = 200


class Console:
    """Answers the control socket.

    Args:
        parts: For what commands ask about.
        engine: For what they want to happen.
    """

    def __init__(self, parts: Parts, engine: Engine) -> None:
        self._parts, self._engine = parts, engine
        self._waiting: Asked | None = None
        self._result: Outcome | None = None
        self._commands = {
            "status": self._status,
            "drift": self._drift,
            "sync": self._sync,
            "export": self._export,
            "rollback": self._roll_back,
            "install": self._install,
            "lock": self._lock,
            "unlock": self._unlock,
            "pin": self._pin,
            "unpin": self._unpin,
        }

    def asked(self, asked: Asked) -> None:
        """Take a command; its reply may come later."""
        try:
            self._commands.get(asked.command, _unknown)(asked)
        except EdgepackError as error:
            if asked.file is not None:
                os.close(asked.file)
            asked.reply.set_result({"error": error.as_dict()})

    def phase_changed(self, state: State) -> None:
        """Note how an update fails; when it has ended, tell whoever waits."""
        self._result = state.result or self._result
        if state.phase == "idle":
            self._answer(self._result)

    def refused(self, result: Event) -> None:
        """Tell whoever waits that what they asked for did not even begin."""
        match result:
            case Failed(status, reason, detail):
                self._answer(Outcome("", status, reason, detail))
            case Troubled(reason, detail):
                self._answer(Outcome("", "FAILED", reason, detail))
            case Held(hold):
                self._answer(Outcome("", "FAILED", hold.reason, {"message": hold.text}))
            case _:
                self._answer(Outcome("", "FAILED", "unreachable"))

    def _answer(self, result: Outcome | None) -> None:
        waiting, self._waiting, self._result = self._waiting, None, None
        if waiting is None:
            return
        current = self._engine.state.current
        bundle = {"bundle": current.model.release if current else None}
        waiting.reply.set_result(bundle | ({"error": failure(result)} if result else {}))

    def _status(self, asked: Asked) -> None:
        asked.reply.set_result(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `status` says."""
        parts = self._parts
        return describe(
            self._engine.state,
            parts.serving,
            parts.outbox,
            parts.identity,
            parts.config,
            connected=parts.link.connected,
            lock=parts.locks.lock(),
            now=parts.now(),
        ) | {
            "certificate": parts.renewer.describe(),
            "drift": parts.drifting.describe(),
            "telemetry": parts.allowance.describe(),
            "settings": parts.steering.describe(),
        }

    def _drift(self, asked: Asked) -> None:
        watch = self._parts.drifting
        told = watch.describe() or {"alarms": [], "features": {}, "filling": None}
        asked.reply.set_result(told | {"histograms": watch.histograms()})

    def _export(self, asked: Asked) -> None:
        if asked.file is None:
            raise UsageError("no file was handed in", reason="no_file")
        parts = self._parts
        count = write_export(asked.file, parts.identity, parts.reports, self.describe())
        os.close(asked.file)
        asked.reply.set_result({"messages": count, "rows": len(parts.outbox)})

    def _sync(self, asked: Asked) -> None:
        self._parts.link.hurry()
        self._parts.desk.ask()
        self._engine.ask_standing()
        self._parts.reports.close_interval()
        self._parts.reports.send()
        asked.reply.set_result({"connected": self._parts.link.connected})

    def _roll_back(self, asked: Asked) -> None:
        state = self._engine.state
        if state.phase != "idle":
            self._begin(asked, CancelAsked())
            return
        if state.previous is None:
            raise UsageError("there is no previous model to go back to", reason="no_previous")
        self._parts.check_floor(state.previous.model)
        self._begin(asked, RollbackAsked(local_job(state.previous.model)))

    def _install(self, asked: Asked) -> None:
        file = asked.file
        if not self._parts.config.allow_local_install:
            raise UsageError(
                "this device takes models from its fleet only",
                fix="set allow_local_install: true in its configuration",
                reason="not_allowed",
            )
        self._check_welcome()
        if file is None:
            raise UsageError("no bundle was handed in", reason="no_file")
        if self._engine.state.phase != "idle" or self._parts.worker.busy:
            raise EdgepackError("an update is under way", fix="try again soon", reason="busy")
        self._wait(asked)
        name, release = local_name(), str(asked.args.get("release") or "")
        current = self._engine.state.current
        line = current.model.release.partition("@")[0] if current else ""
        wish = Wish(release, line)
        self._engine.work(lambda _: self._parts.installer.take(file, name, PROBATION_S, wish))

    def _check_welcome(self) -> None:
        """Check that nobody at this device has spoken against installing.

        Raises:
            UsageError: somebody has (`pinned`, `lock`).
        """
        why = self._engine.state.pinned
        if why:
            fix = "edgepack-agent unpin"
            raise UsageError("the device is pinned to its model", why=why, fix=fix, reason="pinned")
        moment = Moment(self._parts.now(), self._parts.locks.lock(), self._parts.locks.inhibitors())
        if found := hold(moment, Rules()):
            fix = "edgepack-agent unlock"
            raise UsageError("updates are locked here", why=found.text, fix=fix, reason="lock")

    def _lock(self, asked: Asked) -> None:
        for_s, text = asked.args.get("for_s", 0), str(asked.args.get("reason", ""))[:MAX_TEXT]
        if not isinstance(for_s, int | float) or not 0 < for_s <= MAX_LOCK_S:
            raise UsageError(
                "a lock needs an end",
                why=f"it may last up to {MAX_LOCK_S:.0f} seconds",
                fix="edgepack-agent lock --for 2h",
                reason="bad_duration",
            )
        now = self._parts.now()
        self._parts.locks.set(Lock(now, float(for_s), text))
        self._engine.reconsider()
        asked.reply.set_result({"locked": True, "until": round(now.wall + for_s), "reason": text})

    def _unlock(self, asked: Asked) -> None:
        self._parts.locks.clear()
        self._engine.reconsider()
        left = list(self._parts.locks.inhibitors())
        asked.reply.set_result({"locked": bool(left), "inhibitors": left})

    def _pin(self, asked: Asked) -> None:
        if self._engine.state.current is None:
            raise UsageError("there is no model to stay with", reason="no_model")
        why = str(asked.args.get("reason", ""))[:MAX_TEXT]
        self._engine.on(PinAsked(why or "by a person at the device"))
        self._tell_pinned(asked)

    def _unpin(self, asked: Asked) -> None:
        self._engine.on(PinAsked(""))
        self._tell_pinned(asked)

    def _tell_pinned(self, asked: Asked) -> None:
        state = self._engine.state
        bundle = state.current.model.release if state.current else None
        asked.reply.set_result({"bundle": bundle, "pinned": state.pinned or None})

    def _begin(self, asked: Asked, event: Event) -> None:
        self._wait(asked)
        try:
            self._engine.on(event)
        except EdgepackError:
            # Whoever waits is told of this, and of nothing more.
            self._waiting = None
            raise

    def _wait(self, asked: Asked) -> None:
        if self._waiting is not None:
            raise EdgepackError("somebody else waits for this already", reason="busy")
        self._waiting, self._result = asked, None


def _unknown(asked: Asked) -> None:
    raise UsageError(f"the agent does not know `{asked.command}`", reason="unknown_command")
