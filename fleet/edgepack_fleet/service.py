"""The running fleet: joins database, broker, repositories and decisions. One process, few threads.

`ingest` saves what devices say and answers; `sender` sends metadata and content; `tick` lets
rollouts decide and empties the outbox. What must survive a kill is in the database before
anything about it is said; on every connection the state is told again.

On PostgreSQL several such processes serve one fleet: each takes its share of what devices say,
and one of them leads, one keeps what is theirs in order (see `leadership`).
"""

import hashlib
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from edgepack import topics
from edgepack_fleet import jobrows, outbox
from edgepack_fleet.access import Access, fleet_id, fleet_secret
from edgepack_fleet.adapters.alert_files import load_alerts
from edgepack_fleet.adapters.baselines import Baselines
from edgepack_fleet.adapters.broker import Address, reload
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.director import Director
from edgepack_fleet.adapters.feed import Feed
from edgepack_fleet.adapters.image_repo import ImageRepo
from edgepack_fleet.adapters.lease import Lease, claim
from edgepack_fleet.adapters.lock import own
from edgepack_fleet.adapters.mqtt import Identity, Incoming, Link
from edgepack_fleet.adapters.object_content import open_content
from edgepack_fleet.adapters.patches import Patches
from edgepack_fleet.adapters.pki import FLEET, Pki
from edgepack_fleet.adapters.posting import Poster
from edgepack_fleet.adapters.tables import JobRow, RolloutRow
from edgepack_fleet.alerting import Alerts
from edgepack_fleet.asking import Requests
from edgepack_fleet.audit import Audit
from edgepack_fleet.authorities import Authorities
from edgepack_fleet.benchmarks import Benchmarks
from edgepack_fleet.core.keeping import Keeping
from edgepack_fleet.core.model import HANDING_OUT
from edgepack_fleet.core.variants import Release
from edgepack_fleet.enrolment import Enrolment
from edgepack_fleet.idempotency import Answers
from edgepack_fleet.leadership import Leadership
from edgepack_fleet.links import Belongings, Links
from edgepack_fleet.readings import Readings
from edgepack_fleet.renewals import GRACE_DAYS, Renewals
from edgepack_fleet.retention import Retention
from edgepack_fleet.revocation import Revocation
from edgepack_fleet.rollouts import Rollouts
from edgepack_fleet.roster import Roster
from edgepack_fleet.sending import Sender
from edgepack_fleet.steering import Steering
from edgepack_fleet.transfer import KINDS, Piece, Transfer
from edgepack_fleet.uplink import Uplink
from edgepack_fleet.webhooks import Webhooks

__all__ = ["Service", "Settings"]

BATCH = 200
GAP_S, LINGER_S = 0.03, 0.3
"""Seconds that a message waits for the next one, and in all: a transaction costs as much as ten
of them."""
WAITING = 2_000
"""Messages that may wait in memory; beyond it the broker keeps them."""
JUMP_S = 5.0
"""Seconds by which the clock must have been set for silence to be counted anew."""
TICK_S, SHORTEST_TICK_S = 1.0, 0.1
REFRESH_S = 600.0
FORGET_S = 60.0
RETRY_S = 1.0

R = TypeVar("R")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the fleet lives and who it talks to."""

    data: Path
    broker: Address
    database: str | None = None
    """SQLAlchemy URL; None: SQLite below `data`."""
    hosts: tuple[str, ...] = ()
    """Names and addresses, beside `localhost`, that devices reach us under."""
    grace_days: float = GRACE_DAYS
    """Days after the end of its certificate in which a device may still renew it."""
    max_per_s: float = 100.0
    """Requests a second over REST with one token; 0: no limit."""
    webhook_private: bool = False
    """Whether webhooks may lead to addresses of private networks."""
    public_broker: Address | None = None
    """Where devices reach the broker; None: where we do, under our public name if it is here."""
    content: str | None = None
    """Where models are kept: a directory or the URL of an object store; None: below `data`."""
    worker: str = FLEET
    """What this process is called on the broker; no other of the same fleet is."""
    keep_raw_days: float = 0.0
    """Days for which rows of telemetry are kept beside what they come to; 0: they are not."""
    alerts: Path | None = None
    """File of alert rules; None: only those that the fleet has by itself."""

    @property
    def keeping(self) -> Keeping:
        """How long what is kept."""
        return Keeping(raw_days=self.keep_raw_days)


@dataclass(frozen=True, slots=True)
class _Connected:
    """In the queue of messages: from here on, they are of a new connection."""


class Service:
    """Everything but HTTP. Made, started and stopped once.

    Args:
        settings: Where and with whom.
        clock: Unix seconds.

    Raises:
        UsageError: the data directory, its keys or its database cannot be used.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        data = own(settings.data)
        self.settings, self._clock = settings, clock
        self.database = (
            Database(settings.database) if settings.database else Database.in_directory(data)
        )
        self.database.migrate()
        self.feed = Feed(self.database, clock)
        self.access = Access(self.database, fleet_secret(data, create=True), clock)
        self.access.install_bootstrap()
        self.pki = Pki(data / "pki", settings.hosts, client=settings.worker)
        self.content = open_content(settings.content, data, shared=self.database.is_shared)
        self.images = ImageRepo(data / "image", self.content)
        self.retention = Retention(self.database, settings.keeping, clock)
        self.baselines = Baselines(self.content, self._published)
        self.patches = Patches(data / "patches", self.content)
        self.director = Director(data / "director")
        if self.database.is_shared:
            claim(self.database, hashlib.sha256(self.director.root()).hexdigest())
        self.rollouts = Rollouts(self.database, self.director.assign, self.releases, clock)
        self.enrolment = Enrolment(
            self.database, self.pki, self.director.root, self._public_broker, clock
        )
        self.revocation = Revocation(self.database, self.pki, settings.broker, clock)
        self.roster = Roster(self.database, self.feed, self.revocation, self.director.forget, clock)
        secret = fleet_secret(data, create=True)
        self.audit = Audit(self.database, clock)
        self.source = f"urn:edgepack:fleet:{fleet_id(secret)}"
        """Who tells changes, as a URI; two fleets never have the same."""
        poster = Poster(private=settings.webhook_private)
        self.webhooks = Webhooks(self.database, self.feed, secret, self.source, clock, poster)
        self.answers = Answers(self.database, secret, clock)
        self.links = self._make_links(secret)
        self.renewals = Renewals(self.database, self.pki, secret, clock, settings.grace_days)
        self.requests = Requests(self.database, clock)
        self.benchmarks = Benchmarks(self.database, self.requests, self.rollouts.release)
        self.steering = Steering(self.database, self.director.configure, clock)
        self.uplink = self._make_uplink()
        self.authorities = Authorities(
            self.database, self.pki, self.renewals, self._renew_certificates, clock
        )
        self.transfer = Transfer(self._image_file, self.director.metadata, self.content)
        self.server_renewed: Callable[[], None] = lambda: None
        """Called when the certificate of our own listener is a new one."""
        self._heard_since: float | None = None
        self._said: queue.Queue[Incoming | _Connected | None] = queue.Queue(WAITING)
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=loop, name=f"fleet-{loop.__name__.strip('_')}", daemon=True)
            for loop in (self._ingest, self._tick, self._forget)
        ]
        self.link = self._make_link()
        me = f"{self.settings.worker} {secrets.token_hex(8)}"
        self.leadership = Leadership(self._lease("leader", me), self._is_linked, self._lead)
        # Who says that the broker is gone must not need it.
        self.upkeep = Leadership(self._lease("keeper", me), lambda: True, lambda _: None)
        self.webhooks.leads = lambda: self.upkeep.held
        self.sender = self._make_sender()
        self.alerts = self._make_alerts()
        self.alerts.leads = lambda: self.upkeep.held

    def _make_links(self, secret: bytes) -> Links:
        belongings = Belongings(self.content.read, self.images.exams, self.patches.offers)
        return Links(secret, self._clock, belongings, self.revocation.blocks)

    def _make_uplink(self) -> Uplink:
        raw = self.settings.keep_raw_days > 0
        expected = self.baselines.expected
        return Uplink(
            self.database, self._clock, self.links.link, self.renewals, expected, keep_raw=raw
        )

    def _make_sender(self) -> Sender[Piece]:
        return Sender(
            self.transfer.answer,
            lambda piece: self.link.publish_paced(piece.topic, piece.payload, qos=piece.qos),
            self.link.acknowledge,
            lambda: self.transfer.refused.update(["busy"]),
        )

    def _make_link(self) -> Link:
        name = self.settings.worker
        return Link(
            self.settings.broker,
            Identity(self.pki.bundle_path, *self.pki.pair(name)),
            self._received,
            self._connection,
            name,
            shared=self.database.is_shared,
        )

    def _lease(self, name: str, me: str) -> Lease | None:
        return Lease(self.database, name, me) if self.database.is_shared else None

    def _is_linked(self) -> bool:
        return self.link.connected

    def _is_broker_up(self) -> bool:
        # A leader has a link: the broker is there, even if we do not reach it.
        return self.link.connected or (self.database.is_shared and self.leadership.is_anybodys)

    def _make_alerts(self) -> Alerts:
        readings = Readings(
            self.database, self.settings.data, self.baselines.of, self._is_broker_up
        )
        config = load_alerts(self.settings.alerts)
        return Alerts(self.database, config, readings.take, self._clock)

    def start(self) -> None:
        """Connect to the broker and begin to work."""
        for thread in self._threads:
            thread.start()
        self.sender.start()
        self.webhooks.start()
        self.alerts.start()
        self.link.start()
        self.leadership.start()
        self.upkeep.start()

    def stop(self) -> None:
        """Finish what is begun, disconnect and end."""
        self.feed.close()
        self.leadership.stop()
        self._stopping.set()
        self._wake.set()
        self._said.put(None)
        self.sender.stop()
        self.webhooks.stop()
        self.alerts.stop()
        self.upkeep.stop()
        for thread in self._threads:
            thread.join(10)
        self.link.stop()
        self.database.close()

    def releases(self) -> list[Release]:
        """Return what is published, the newest publication of a line last."""
        return [Release(r.name, r.version, r.variants) for r in self.images.releases()]

    def _published(self) -> frozenset[str]:
        return frozenset(v.sha256 for r in self.images.releases() for v in r.variants)

    def _image_file(self, name: str) -> bytes | None:
        """Return a file of the image repository, or the offers of patches beside it."""
        return self.patches.file(name) or self.images.metadata(name)

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return self._clock()

    def _public_broker(self) -> Address:
        """Return where devices connect to: under our public name, if the broker is on this host."""
        if self.settings.public_broker is not None:
            return self.settings.public_broker
        broker, hosts = self.settings.broker, self.settings.hosts
        return Address(hosts[0], broker.port) if hosts and broker.is_loopback else broker

    def poke(self) -> None:
        """Let rollouts decide now instead of at the next tick."""
        self._wake.set()

    def _received(self, message: Incoming) -> None:
        uplink = topics.parse_up(message.topic)
        if uplink is None or uplink.kind not in KINDS:
            self._said.put(message)
            return
        if self.revocation.blocks(uplink.device):
            self.transfer.refused["revoked"] += 1
            self.link.acknowledge(message)
            return
        # Never wait here: content leaves by the thread that is in this very call.
        self.sender.take(message)

    def _connection(self, up: bool) -> None:
        self._heard_since = self._clock() if up else None
        if up and self.leadership.held:
            self._said.put(_Connected())
        self.leadership.poke()

    def _lead(self, leads: bool) -> None:
        if leads:
            # What was said while nobody led is not known: silence counts from here.
            self._heard_since = self._heard_since and self._clock()
            self._said.put(_Connected())
        self.link.lead(leads)

    def _ingest(self) -> None:
        while (item := self._said.get()) is not None:
            batch, after = self._gather(item)
            if batch:
                self._save(batch)
            if isinstance(after, _Connected):
                self._persist(self._welcome)
            elif after is None:
                return

    def _gather(
        self, first: Incoming | _Connected
    ) -> tuple[list[Incoming], Incoming | _Connected | None]:
        """Return what has come up to here as one batch, and the item that ended it."""
        batch: list[Incoming] = []
        item: Incoming | _Connected | None = first
        latest = time.monotonic() + LINGER_S
        while isinstance(item, Incoming):
            batch.append(item)
            if len(batch) == BATCH:
                break
            try:
                item = self._said.get(timeout=max(0.0, min(GAP_S, latest - time.monotonic())))
            except queue.Empty:
                break
        return batch, item

    def _save(self, batch: list[Incoming]) -> None:
        answers = self._persist(lambda: self.uplink.ingest(batch))
        if answers is None:
            return  # we stop, and it is not saved: the broker keeps it
        for answer in answers:
            self.link.publish(answer.topic, answer.payload)
        for message in batch:
            self.link.acknowledge(message)
        if any(not _is_report(message) for message in batch):
            self._wake.set()

    def _persist(self, work: Callable[[], R]) -> R | None:
        """Do WORK on the database, again and again until it succeeds or we stop."""
        while not self._stopping.is_set():
            try:
                return work()
            except SQLAlchemyError:
                log.exception("the database does not answer; trying again")
                self._stopping.wait(RETRY_S)
        return None

    def _welcome(self) -> None:
        """After a new connection: learn who is online, and hint again at every waiting job."""
        self.uplink.everybody_offline()
        waiting = (
            select(JobRow.device_id)
            .join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
            .where(JobRow.status.in_(jobrows.OPEN), RolloutRow.state.in_(HANDING_OUT))
        )
        with self.database.write() as session:
            now = self._clock()
            session.add_all([jobrows.hint(device, now) for device in session.scalars(waiting)])
        self._wake.set()

    def _tick(self) -> None:
        refreshed = offset = -math.inf
        while not self._stopping.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            now, began = self._clock(), time.monotonic()
            before, offset = offset, now - time.monotonic()
            if abs(offset - before) > JUMP_S:
                # The clock was set: what it said before tells nothing about how long ago it was.
                refreshed = -math.inf
                self._heard_since = self._heard_since and now
            try:
                if now - refreshed > REFRESH_S:
                    refreshed = now
                    self.images.keep_fresh()
                    self.director.keep_fresh()
                    self._renew_certificates()
                    self.webhooks.tidy()
                    self.roster.tidy()
                    self.feed.trim()
                self.access.save_used()
                self.pki.look()
                self.feed.look()
                if not self.leadership.held:
                    self.revocation.learn()
                else:
                    self.revocation.tick()  # learns, too
                    self.requests.tick(now)
                    self.rollouts.tick(self._heard_since or now, now)
                    self.steering.tick(now)
                if self.link.connected:
                    outbox.empty(self.database, self.link.publish_all)
            except Exception:  # a thread that ends would stop every rollout, silently
                log.exception("a tick failed; the next one tries again")
            # With many devices a decision takes long: half of the time is for what they say.
            self._stopping.wait(max(SHORTEST_TICK_S, time.monotonic() - began))

    def _forget(self) -> None:
        def go_on(seconds: float) -> bool:
            # As long as it took, others have the database; whoever does not lead any more ends.
            return not self._stopping.wait(seconds) and self.upkeep.held

        while not self._stopping.is_set():
            try:
                if self.upkeep.held:
                    self.retention.run(go_on)
            except Exception:  # a thread that ends would let the database grow, silently
                log.exception("what is old is still there; trying again")
            self._stopping.wait(FORGET_S)

    def _renew_certificates(self) -> None:
        """Renew what is past half of its life, and let it be used at once."""
        self.renewals.revoke_retired()
        renewed = self.pki.keep_fresh()
        for name in sorted(renewed):
            log.info("renewed before half of its life was over: %s", name)
        if "server" in renewed:
            self.server_renewed()
            if not reload(self.settings.data):
                log.warning("the broker goes on with its old certificate until it is restarted")
        if "fleet" in renewed:
            self.link.reconnect()


def _is_report(message: Incoming) -> bool:
    """Return whether MESSAGE is of the many that no rollout waits for."""
    return message.topic.endswith(("/up/tele", "/up/evt"))
