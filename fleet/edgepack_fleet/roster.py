"""All that people arrange around devices, made once: groups, who may join, who has to go."""

from collections.abc import Callable

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.feed import Feed
from edgepack_fleet.admission import Admission
from edgepack_fleet.connections import Connections
from edgepack_fleet.decommissioning import Decommissioning, Revoker
from edgepack_fleet.organising import Organiser

__all__ = ["Roster"]


class Roster:
    """Joins them.

    Args:
        database: Where devices are kept.
        feed: Tells when they come and go.
        revocation: Shuts them out.
        forget: Lets the director say nothing about a device any more.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        revocation: Revoker,
        forget: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.organiser = Organiser(database, clock)
        self.admission = Admission(database, clock)
        self.decommissioning = Decommissioning(database, revocation, forget)
        self._connections = Connections(database, feed, clock)

    def tidy(self) -> None:
        """Forget what is old."""
        self.admission.tidy()
        self._connections.tidy()
