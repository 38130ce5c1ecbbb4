"""Which of several workers does what one has to do for all. The others follow.

The leader decides (rollouts, births), and needs a broker for it; the keeper sends alerts and
webhooks and forgets what is old, and needs only the database: somebody has to say that the broker
is gone. A lease says who. Its holder renews it in a thread of its own, so that a long piece of work
does not cost it; it stops to lead before the lease is over, by its own clock, if the database does
not answer. Who has lost the broker does not lead: devices speak to the others, or to nobody.
"""

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from edgepack_fleet.adapters.lease import LEASE_S, Lease

__all__ = ["Leadership"]

RENEW_S = 2.0
MARGIN_S = 2.0
"""Seconds before the end of the lease at which we stop to lead."""

log = logging.getLogger(__name__)


class Leadership:
    """Whether this worker leads.

    Args:
        lease: Says so; None: there is no other worker, and this one always leads.
        able: Whether we can do what it takes; who is not lets another have it.
        changed: Called from a thread of its own when we begin to lead and when we end.
    """

    def __init__(
        self, lease: Lease | None, able: Callable[[], bool], changed: Callable[[bool], None]
    ) -> None:
        self._lease, self._able, self._changed = lease, able, changed
        self._what = lease.name if lease else ""
        self._until = 0.0
        self._leads = False
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fleet-{self._what}", daemon=True)

    @property
    def held(self) -> bool:
        """Whether we lead, right now."""
        return self._lease is None or time.monotonic() < self._until

    @property
    def is_anybodys(self) -> bool:
        """Whether some worker leads, as far as the database tells."""
        return self._lease is None or self._lease.is_held()

    def start(self) -> None:
        """Begin to want to lead."""
        if self._lease is not None:
            self._thread.start()

    def poke(self) -> None:
        """Ask now who leads: something has changed."""
        self._wake.set()

    def stop(self) -> None:
        """Let another lead at once."""
        self._stopping.set()
        self._wake.set()
        if not self._thread.is_alive():
            return
        self._thread.join(10)
        if self._lease is not None and self.held:
            try:
                self._lease.give_back()
            except SQLAlchemyError:
                log.warning("the lease could not be given back; it ends by itself")
        self._until = 0.0

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._try()
                self._tell()
            except Exception:  # a thread that ends would leave the fleet without a leader, silently
                log.exception("who leads could not be found out; trying again")
            self._wake.wait(RENEW_S)
            self._wake.clear()

    def _try(self) -> None:
        assert self._lease is not None
        if not self._able():
            return  # it runs out, and another takes it
        begun = time.monotonic()
        try:
            self._until = begun + LEASE_S - MARGIN_S if self._lease.take() else 0.0
        except SQLAlchemyError as error:
            log.warning("who is the %s cannot be asked: %s", self._lease.name, type(error).__name__)

    def _tell(self) -> None:
        if self.held != self._leads:
            self._leads = not self._leads
            log.info("this worker %s the %s now", "is" if self._leads else "is not", self._what)
            self._changed(self._leads)
