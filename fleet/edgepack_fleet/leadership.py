"""Which of several workers does what one has to do for all. The others follow.

The leader decides (rollouts, births), and needs a broker for it; the keeper sends alerts and
webhooks and forgets what is old, and needs only the database: somebody has to say that the broker
is gone. A lease says who. Its holder renews it in a thread of its own, so that a long piece of work
does not cost it; it stops to lead before the lease is over, by its own clock, if the database does
not answer. A leader that has lost its broker lets the lease run out, because devices speak to the
others.
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
        connected: Whether we reach the broker.
        changed: Called from a thread of its own when we begin to lead and when we end.
    """

    def __init__(
        self, lease: Lease | None, connected: Callable[[], bool], changed: Callable[[bool], None]
    ) -> None:
        self._lease, self._connected, self._changed = lease, connected, changed
        self._what = lease.name if lease else ""
        self._until = 0.0
        self._leads = False
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-leadership", daemon=True)

    @property
    def held(self) -> bool:
        """Whether we lead, right now."""
        return self._lease is None or time.monotonic() < self._until

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
        begun, connected = time.monotonic(), self._connected()
        if self.held and not connected:
            return  # it runs out, and another takes it
        try:
            # Without a broker we lead only if nobody else does.
            if self._lease.take(0.0 if connected else LEASE_S):
                self._until = begun + LEASE_S - MARGIN_S
            else:
                self._until = 0.0
        except SQLAlchemyError as error:
            log.warning("who leads cannot be asked: %s", type(error).__name__)

    def _tell(self) -> None:
        if self.held != self._leads:
            self._leads = not self._leads
            log.info("this worker %s the %s now", "is" if self._leads else "is not", self._what)
            self._changed(self._leads)
