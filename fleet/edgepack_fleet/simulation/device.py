"""One simulated device: connects, reports, takes jobs up, loses its link, comes back.

Says what an agent says, in its order and signed with a key of its own, and believes only what an
agent would: a report is done when it is acknowledged, a step of a job when it is accepted.
"""

import random
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import messages, topics
from edgepack.errors import IntegrityError
from edgepack.signed import SIGNED_KINDS, sign_report
from edgepack_fleet.simulation.behaviour import Step, Traits, measure, steps
from edgepack_fleet.simulation.hub import Connection, Hub, Opening
from edgepack_fleet.simulation.outbox import Outbox
from edgepack_fleet.simulation.scenario import Scenario
from edgepack_fleet.simulation.tally import Tally

__all__ = ["AGENT", "Checker", "Device", "Identity"]

AGENT = "edgepack-simulate"
"""What the inventory says for the agent, so that nobody takes it for a device."""
LONGEST_PAUSE_S = 30.0
DRIFTS_AFTER = 2
"""Reports after which a model that drifts is noticed."""
SAMPLED_ACKS = 20_000
Checker = Callable[["Device", messages.Job, Callable[[str], None]], None]
"""Checks what a job is about, then calls back with the reason for which it fails; empty: none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What enrolment gave."""

    name: str
    report_key: ec.EllipticCurvePrivateKey
    tls: ssl.SSLContext | None = None
    director_root: bytes = b""


@dataclass(slots=True)
class _Work:
    """A job under way."""

    job: messages.Job
    ahead: Iterator[Step]
    step: Step
    token: str = ""
    asked: float = 0.0
    """When the step was said that waits for its answer; 0: none does."""


@dataclass(slots=True)
class Device:
    """A device; everything happens in the hub's thread."""

    number: int
    identity: Identity
    scenario: Scenario
    traits: Traits
    hub: Hub
    tally: Tally
    checker: Checker
    draw: random.Random
    release: str | None = None
    outbox: Outbox = field(default_factory=Outbox)
    state: str = "off"
    link: Connection | None = None
    ever: bool = False
    """Whether it has been connected."""
    inferences: int = 0
    told: int = 0
    """Of these, in reports that the fleet has acknowledged."""
    meta: dict[str, Callable[[str, bytes], None]] = field(default_factory=dict)
    """Who waits for the answer to a request for metadata or content, by its name."""
    _boot: str = ""
    _seq: int = 0
    _conn: str = ""
    _pause: float = 0.5
    _since: float = 0.0
    _reports: int = 0
    _work: _Work | None = None
    _get: str = ""
    _dead: bool = False
    _calm: bool = False
    """Whether it only tells what it has."""
    _added: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        """Whether the broker has it."""
        return self.link is not None and self.link.accepted

    def start(self) -> None:
        """Connect, and go on by itself from here."""
        self.release, self._boot = self.scenario.release, secrets.token_hex(8)
        self.outbox.patience_s = self.scenario.resend_s
        self._since = self.hub.clock()
        self._event("inventory", detail=_inventory(self.scenario))
        if self.release:
            self._event("activated", bundle=self.release)
        self.connect()
        self.hub.after(self.draw.uniform(0, self.scenario.telemetry_s), self._report)
        if self.scenario.faults.disconnects_per_hour:
            self.hub.after(self._next_fault(), self._fail)

    def connect(self) -> None:
        """Open a connection, again and again until there is one."""
        if self._dead or self.link is not None:
            return
        self._conn = secrets.token_hex(8)
        name = self.identity.name
        will = messages.Conn(online=False, conn=self._conn)
        opening = Opening(
            name,
            topics.device_filter(name),
            (topics.up(name, "conn"), messages.encode(will)),
            self.identity.tls,
        )
        try:
            self.link = self.hub.open(opening, self)
        except OSError:
            self._again()

    def up(self) -> None:
        """Tell the birth, and everything that waits."""
        self.tally.connects += 1
        self.ever, self._pause, self._get = True, 0.5, ""
        if self.state == "off":
            self.state = "idle"
        birth = messages.Conn(
            online=True, conn=self._conn, boot=self._boot, agent=AGENT, bundle=self.release
        )
        self.outbox.connected()
        self._say("conn", messages.encode(birth), retain=True)
        self._flush()
        self._ask()

    def down(self) -> None:
        """Come back later."""
        self.tally.disconnects += 1
        self.link = None
        self._again()

    def heard(self, topic: str, payload: bytes) -> None:
        """Take what the fleet says."""
        if self._loses():
            return
        kind = topic.split("/dn/", 1)[-1]
        first, _, rest = kind.partition("/")
        self.tally.heard[first if first in {"meta", "blob"} else kind] += 1
        try:
            if first == "ack":
                self._acked(messages.decode(payload, messages.Ack))
            elif first == "job":
                self._job(rest, payload)
            elif first in {"meta", "blob"} and (found := topics.parse_block(topic)):
                self._block(found[1], found[2], payload)
        except IntegrityError as error:
            self.tally.refused[error.reason] += 1

    def request(self, kind: str, message: messages.MetaRequest | messages.BlobRequest) -> None:
        """Ask for metadata or content; the answer goes to who is in `meta` under its name."""
        self._say(kind, messages.encode(message))

    def stop(self) -> None:
        """Leave with a goodbye."""
        self._dead = True
        if self.link is not None:
            bye = messages.Conn(online=False, conn=self._conn)
            self.link.publish(
                topics.up(self.identity.name, "conn"), messages.encode(bye), retain=True
            )
            self.link.leave()
            self.link = None

    def last_report(self) -> None:
        """Report what was measured since the last report; measure no more, and stay connected."""
        self._tell_measured()
        self._calm = True
        self._tell_again()

    # -- the link

    def _say(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self.tally.sent[kind] += 1
        if kind in SIGNED_KINDS:
            name, key = self.identity.name, self.identity.report_key
            payload = sign_report(name, kind, payload, time.time(), key)
        if self.link is None or (not retain and self._loses()):
            return
        self.link.publish(topics.up(self.identity.name, kind), payload, retain=retain)

    def _loses(self) -> bool:
        loss = self.scenario.faults.loss
        if loss and self.draw.random() < loss:
            self.tally.lost += 1
            return True
        return False

    def _again(self) -> None:
        self.hub.after(self.draw.uniform(0, self._pause), self.connect)
        self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)

    def _fail(self) -> None:
        """Lose the connection without a goodbye, and perhaps what was in memory."""
        self.hub.after(self._next_fault(), self._fail)
        if self.link is None or self._calm:
            return
        self.link.drop()
        self.link = None
        self.tally.disconnects += 1
        faults = self.scenario.faults
        if self.draw.random() < faults.reboots:
            self._boot, self._seq = secrets.token_hex(8), 0
        self.hub.after(self.draw.uniform(*faults.away_s), self.connect)

    def _next_fault(self) -> float:
        return self.draw.expovariate(self.scenario.faults.disconnects_per_hour / 3600)

    # -- reports

    def _tell_again(self) -> None:
        self._flush()
        if not self._dead and self.outbox.rows:
            self.hub.after(self.outbox.patience_s / 4, self._tell_again)

    def _report(self) -> None:
        if self._dead or self._calm:
            return
        self.hub.after(self.scenario.telemetry_s, self._report)
        self._tell_measured()

    def _tell_measured(self) -> None:
        now, seconds = time.time(), self.hub.clock() - self._since
        self._since = self.hub.clock()
        if self.release is not None and not self._calm:
            model = self.traits.model(self.scenario, self.release)
            found = measure(self.scenario, model, seconds, self.draw)
            self.inferences += found.inferences
            row = messages.Telemetry(
                boot=self._boot,
                seq=self._number(),
                start=now - seconds,
                end=now,
                bundle=self.release,
                inferences=found.inferences,
                errors=found.errors,
                latency_ms=found.latency_ms,
                rss_mb=64.0,
                cpu_percent=20.0,
            )
            self._keep("tele", row)
            self._reports += 1
            if self._reports == DRIFTS_AFTER and self.traits.luck < model.affected * model.drift:
                self._event("drift", bundle=self.release, reason="brightness")
        self._flush()

    def _event(self, kind: str, **facts: Any) -> None:
        event = messages.Event(
            boot=self._boot, seq=self._number(), ts=time.time(), type=kind, **facts
        )
        self._keep("evt", event)

    def _number(self) -> int:
        number, self._seq = self._seq, self._seq + 1
        return number

    def _keep(self, kind: Any, row: messages.Telemetry | messages.Event) -> None:
        self.outbox.add(kind, row)
        self.tally.rows += 1
        self._added[row.boot, row.seq] = self.hub.clock()

    def _flush(self) -> None:
        if not self.online:
            return
        now, before = self.hub.clock(), self.outbox.again
        for kind, batch in self.outbox.due(now):
            self._say(kind, messages.encode_batch(batch))
        self.tally.again += self.outbox.again - before

    def _acked(self, ack: messages.Ack) -> None:
        now = self.hub.clock()
        for row in self.outbox.release(ack):
            self.tally.released += 1
            self.told += getattr(row, "inferences", 0)
            added = self._added.pop((row.boot, row.seq), None)
            if added is not None and len(self.tally.ack_s) < SAMPLED_ACKS:
                self.tally.ack_s.append(now - added)

    # -- jobs

    def _ask(self) -> None:
        if self._dead or not self.online:
            return
        self._get = secrets.token_hex(8)
        self._say("job/get", messages.encode(messages.JobGet(token=self._get)))
        token = self._get
        self.hub.after(self.scenario.answer_s, lambda: self._ask() if self._get == token else None)

    def _job(self, kind: str, payload: bytes) -> None:
        if kind == "notify":
            self._ask()
        elif kind == "get/accepted":
            self._got(messages.decode(payload, messages.JobReply))
        elif kind == "update/accepted":
            self._taken(messages.decode(payload, messages.JobReply))
        elif kind in {"update/rejected", "get/rejected"}:
            self._refused(messages.decode(payload, messages.Rejected))

    def _got(self, reply: messages.JobReply) -> None:
        if reply.token != self._get:
            return
        self._get, job, work = "", reply.job, self._work
        if job is None or (work is not None and work.job.job != job.job):
            self._work = None
            self.state = "idle"
        if job is None or self.state == "silent":
            return
        if self._work is not None:
            self._work.job = job
            self._speak()
            return
        ahead = steps(job, self.scenario, self.traits, self.draw)
        self._work = _Work(job, ahead, next(ahead))
        self._speak()

    def _speak(self) -> None:
        """Say the step at hand, and again until it is answered."""
        work = self._work
        if work is None or self._dead:
            return
        work.token, work.asked = secrets.token_hex(8), self.hub.clock()
        update = messages.JobUpdate(
            token=work.token,
            job=work.job.job,
            version=work.job.version,
            status=work.step.status,  # type: ignore[arg-type]
            state=work.step.state,
            reason=work.step.reason,
            detail=work.step.detail or {},
        )
        if self.online:
            self._say("job/update", messages.encode(update))
        token = work.token
        self.hub.after(self.scenario.answer_s, lambda: self._speak_again(token))

    def _speak_again(self, token: str) -> None:
        if self._work is not None and self._work.token == token:
            self._speak()

    def _taken(self, reply: messages.JobReply) -> None:
        work = self._work
        if work is None or reply.job is None or reply.token != work.token:
            return
        work.job, work.token, step = reply.job, "", work.step
        if step.status != "IN_PROGRESS":
            self._finish(work)
            return
        self.state = step.state
        if self.traits.silent:
            self.state = "silent"
        elif step.state == "downloading" and self.traits.checks:
            self.checker(self, work.job, lambda reason: self._checked(work, reason))
        else:
            self._go_on(work)

    def _checked(self, work: _Work, reason: str) -> None:
        if self._work is not work:
            return
        if reason:
            work.step, work.ahead = Step(0.0, "downloading", "FAILED", reason), iter(())
            self._speak()
        else:
            self._go_on(work)

    def _go_on(self, work: _Work) -> None:
        following = next(work.ahead)

        def speak() -> None:
            if self._work is work:
                work.step = following
                self._speak()

        self.hub.after(following.after_s, speak)

    def _finish(self, work: _Work) -> None:
        job, step = work.job, work.step
        self.tally.jobs[f"{step.status}:{step.reason}" if step.reason else step.status] += 1
        self._work, self.state = None, "idle"
        if step.status == "SUCCEEDED":
            # What the model before did since the last report is told as its own.
            self._tell_measured()
            self.release, self._reports = job.release, 0
            self._event("activated", bundle=job.release)
            self._flush()
        self._ask()

    def _refused(self, refusal: messages.Rejected) -> None:
        self.tally.refused[refusal.code] += 1
        work = self._work
        if work is None or refusal.token != work.token:
            return
        if refusal.code == "version_mismatch" and refusal.job is not None:
            work.job = refusal.job
            self._speak()
        else:
            self._work, self.state = None, "idle"
            self._ask()

    def _block(self, xfer: str, index: str, payload: bytes) -> None:
        if (waiting := self.meta.get(xfer)) is not None:
            waiting(index, payload)


def _inventory(scenario: Scenario) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(inventory(scenario)))


def inventory(scenario: Scenario) -> messages.Inventory:
    """Return what the devices of SCENARIO say they are."""
    return messages.Inventory(
        agent=AGENT,
        os="simulated",
        arch=scenario.arch,
        cpu_features=scenario.cpu_features,
        ram_mb=4096,
        disk_free_mb=16384,
        runtimes=scenario.runtimes,
    )
