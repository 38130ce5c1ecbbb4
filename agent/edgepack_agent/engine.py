"""The update engine as its helpers see it: it has a state, takes events and does work."""

import secrets
from collections.abc import Callable
from typing import Protocol

from edgepack_agent.core.events import Event
from edgepack_agent.core.state import Job, Model, State

__all__ = ["PROBATION_S", "Engine", "local_job", "local_name"]

PROBATION_S = 3.0
"""Seconds of probation for what a person at the device begins."""
PATIENCE_S = 60.0


class Engine(Protocol):
    """What console and watch may ask of the supervisor."""

    @property
    def state(self) -> State:
        """Where the update is."""
        ...

    @property
    def entered(self) -> int:
        """How many phases have been entered."""
        ...

    def on(self, event: Event) -> None:
        """Take an event."""
        ...

    def work(self, run: Callable[[Callable[[], bool]], Event | None]) -> None:
        """Do something long; its result comes back as an event."""
        ...

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ACTION in SECONDS."""
        ...

    def while_here(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ACTION in SECONDS, unless another phase has been entered by then."""
        ...

    def ask_standing(self) -> None:
        """Ask what the publisher says of the model that runs, if nothing else is going on."""
        ...

    def reconsider(self) -> None:
        """Look now whether this is a good moment for an update."""
        ...


def local_job(model: Model) -> Job:
    """Return a job of this device's own for MODEL."""
    return Job(local_name(), model.release, model.path, PROBATION_S, PATIENCE_S, local=True)


def local_name() -> str:
    """Return a name for a job that no fleet has given."""
    return f"local-{secrets.token_hex(4)}"
