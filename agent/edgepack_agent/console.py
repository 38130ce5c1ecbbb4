"""Commands of a person at the device: judged, begun, and answered when they have ended.

Knows the update engine as something that has a state, takes events and does work; it changes
neither journal nor runner itself.
"""

import os

from edgepack.errors import EdgepackError, UsageError
from edgepack_agent.adapters.control import Asked
from edgepack_agent.core.state import (
    CancelAsked,
    Event,
    Failed,
    Outcome,
    RollbackAsked,
    State,
)
from edgepack_agent.engine import PROBATION_S, Engine, local_job, local_name
from edgepack_agent.parts import Parts
from edgepack_agent.status import describe, failure

__all__ = ["Console"]


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
            "sync": self._sync,
            "rollback": self._roll_back,
            "install": self._install,
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
        if isinstance(result, Failed):
            self._answer(Outcome("", result.status, result.reason, result.detail))
        else:
            self._answer(Outcome("", "FAILED", "unreachable"))

    def _answer(self, result: Outcome | None) -> None:
        waiting, self._waiting, self._result = self._waiting, None, None
        if waiting is None:
            return
        current = self._engine.state.current
        bundle = {"bundle": current.model.release if current else None}
        waiting.reply.set_result(bundle | ({"error": failure(result)} if result else {}))

    def _status(self, asked: Asked) -> None:
        parts = self._parts
        asked.reply.set_result(
            describe(
                self._engine.state,
                parts.serving,
                parts.outbox,
                parts.identity,
                parts.config,
                connected=parts.link.connected,
            )
        )

    def _sync(self, asked: Asked) -> None:
        self._parts.link.hurry()
        self._parts.desk.ask()
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
        if file is None:
            raise UsageError("no bundle was handed in", reason="no_file")
        if self._engine.state.phase != "idle" or self._parts.worker.busy:
            raise EdgepackError("an update is under way", fix="try again soon", reason="busy")
        self._wait(asked)
        name = local_name()
        self._engine.work(lambda _: self._parts.installer.take(file, name, PROBATION_S))

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
