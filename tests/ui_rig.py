"""A fleet with a history, for the pages: what devices say goes in through the real uplink.

Only the broker is left out. Time is a field: a day can pass in a second.
"""

import contextlib
import itertools
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

import bundles
from edgepack import messages, topics
from edgepack.manifest import Metrics, Target
from edgepack_fleet.access import bootstrap_token
from edgepack_fleet.adapters.alert_tables import AlertRow
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import GroupRow, JobRow, RolloutRow
from edgepack_fleet.core.gates import parse_gate
from edgepack_fleet.core.model import Policy
from edgepack_fleet.enrolment import Offer
from edgepack_fleet.organising import Description
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from fleet_rig import csr, latencies, serving
from trust_rig import Clock, World, target_of

NOBODY = Address("127.0.0.1", 1)
BASELINE = {
    "classes": {"none": 1420, "person": 580},
    "confidence": {"edges": [0.25, 0.5, 0.75, 0.9], "counts": [40, 100, 320, 620, 920]},
    "inputs": {
        "image": {
            "mean": {
                "edges": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
                "counts": [60, 190, 420, 620, 450, 200, 60],
            },
            "spread": {
                "edges": [0.1, 0.15, 0.2, 0.25, 0.3],
                "counts": [90, 330, 660, 610, 240, 70],
            },
        }
    },
}
"""What every bundle was built with."""
BINS: dict[str, list[int]] = {
    name: found["counts"]
    for name, found in BASELINE["inputs"]["image"].items()  # type: ignore[index]
}
BOXES = (
    messages.Inventory(agent="0.1.0", arch="aarch64", os="Debian 12", ram_mb=4096,
                       disk_free_mb=21_000, runtimes={"onnx": "1.24.0"}),
    messages.Inventory(agent="0.1.0", arch="x86_64", os="Debian 12", ram_mb=8192,
                       disk_free_mb=96_000, runtimes={"openvino": "2026.1", "onnx": "1.24.0"}),
)  # fmt: skip


@dataclass
class Town:
    """A service that is not started, its publisher, and its devices."""

    home: Path
    now: float
    broker: Address = NOBODY
    service: Service = field(init=False)
    world: World = field(init=False)
    seq: "itertools.count[int]" = field(default_factory=itertools.count)
    digests: dict[str, str] = field(default_factory=dict)
    """By release: the variant that devices of these tests run."""
    luck: random.Random = field(default_factory=lambda: random.Random(7))
    said: list[Incoming] = field(default_factory=list)
    gathering: bool = False
    """Whether what is said waits to be taken at once."""

    def __post_init__(self) -> None:
        self.service = Service(Settings(self.home / "fleet", self.broker), lambda: self.now)
        self.world = World(self.home, Clock(datetime.fromtimestamp(self.now, UTC)))

    # -- what people do

    def publish(self, version: str, score: float, name: str = "person") -> None:
        size = {"1.3.0": 61_000, "1.4.0": 52_000}.get(version, 48_000)
        for runtime, precision, drop, share in (
            ("onnx", "int8", 0.006, 1.0), ("openvino", "int8", 0.004, 1.1),
            ("openvino", "fp16", 0.001, 2.0),
        ):  # fmt: skip
            target = Target(runtime=runtime, min_runtime="1.23" if runtime == "onnx" else "2025.4",
                            precision=precision, execution_precision="f32")  # fmt: skip
            metrics = Metrics(name="top1", reference=score, this=score - drop, drop=drop,
                              samples=2000, dataset_digest="0" * 64, limit=0.01)  # fmt: skip
            folder = self.home / "bundles" / f"{name}-{version}-{runtime}-{precision}"
            made = bundles.write(folder, model_bytes=int(size * share), name=name, drift=BASELINE,
                                 version=version, target=target, metrics=metrics)  # fmt: skip
            self.world.publish(made.path)
            self.digests.setdefault(f"{name}@{version}", f"sha256:{target_of(made.path).sha256}")

    def group(self, *names: str) -> None:
        with self.service.database.write() as session:
            session.add_all(GroupRow(id=name, created=self.now) for name in names)

    def rollout(self, release: str, group: str, waves: str = "1,25%,100%", *gates: str,
                **limits: Any) -> str:  # fmt: skip
        policy = Policy(gates=tuple(map(parse_gate, gates)), **limits)
        return self.service.rollouts.create(release, group, waves, policy)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.service.rollouts.tick(0.0, self.now)

    def newest(self, group: str) -> str:
        """Return the path of the newest rollout to GROUP."""
        query = select(RolloutRow.id).where(RolloutRow.group_id == group)
        with self.service.database.read() as session:
            return f"/rollouts/{session.scalars(query.order_by(RolloutRow.number.desc())).first()}"

    def rollouts(self, group: str = "", release: str = "") -> list[str]:
        """Return the ids of rollouts, the oldest first; only those to GROUP, of RELEASE."""
        with self.service.database.read() as session:
            rows = session.scalars(select(RolloutRow).order_by(RolloutRow.number))
            return [row.id for row in rows
                    if group in {"", row.group_id} and release in {"", row.release}]  # fmt: skip

    # -- what devices do

    def enrol(self, name: str, group: str, box: messages.Inventory = BOXES[0]) -> None:
        token = self.service.enrolment.create_token(group, 60, 1)
        request = messages.EnrollRequest(
            secret=token.secret, csr=csr(ec.generate_private_key(ec.SECP256R1())), name=name,
            inventory=box,
        )  # fmt: skip
        self.service.enrolment.enroll(request)

    def say(self, device: str, kind: str, message: Any) -> None:
        self.said.append(Incoming(topics.up(device, kind), msgspec.json.encode(message)))
        if not self.gathering:
            self._hear()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Take what is said inside as one batch, as a busy fleet does."""
        self.gathering = True
        yield
        self.gathering = False
        self._hear()

    def _hear(self) -> None:
        batch, self.said = self.said, []
        self.service.uplink.ingest(batch)
        assert not self.service.uplink.refused

    def connect(self, device: str, bundle: str | None = None) -> None:
        self.say(device, "conn", messages.Conn(
            online=True, conn="c", boot="b", agent="0.1.0", bundle=bundle))  # fmt: skip

    def disconnect(self, device: str) -> None:
        self.say(device, "conn", messages.Conn(online=False, conn="c"))

    def event(self, device: str, kind: str, bundle: str, reason: str = "", **detail: Any) -> None:
        self.say(device, "evt", [messages.Event(
            boot="b", seq=next(self.seq), ts=self.now, type=kind, bundle=bundle, reason=reason,
            detail=detail)])  # fmt: skip

    def report(self, device: str, bundle: str, *, slow: float = 1.0, count: int = 1500,
               errors: int = 0, minutes: float = 5.0, bright: float = 0.0,
               temperature: bool = True) -> None:  # fmt: skip
        hour = (self.now % 86400) / 86400
        # At night, too, enough is asked for a gate to judge by.
        busy = max(400, int(count * (0.55 + 0.45 * math.sin(2 * math.pi * (hour - 0.3)))))
        drawn = (self.luck.lognormvariate(math.log(7.0 * slow), 0.35) for _ in range(200))
        latency = latencies(dict.fromkeys(drawn, busy // 200))
        self.say(device, "tele", [messages.Telemetry(
            boot="b", seq=next(self.seq), start=self.now - 60 * minutes, end=self.now,
            bundle=bundle, inferences=sum(latency.counts), latency_ms=latency,
            errors={"deadline": errors} if errors else {},
            digest=self.digests[bundle],
            classes={"person": busy * 29 // 100, "none": busy * 71 // 100},
            confidence=messages.Histogram(edges=(0.25, 0.5, 0.75, 0.9), counts=tuple(
                busy * share // 2000 for share in BASELINE["confidence"]["counts"])),  # type: ignore[index]
            features={"inputs.image.mean": self._moved(BINS["mean"], busy, bright),
                      "inputs.image.spread": self._moved(BINS["spread"], busy, 0.0)},
            rss_mb=118 + 6 * self.luck.random(), cpu_percent=31.0,
            temperature_c=51 + 7 * hour + self.luck.random() if temperature else None,
        )])  # fmt: skip

    def _moved(self, counts: list[int], busy: int, share: float) -> tuple[int, ...]:
        """Return COUNTS of BUSY values, a SHARE of them one bin further up."""
        moved = [int(count * share) for count in counts[:-1]]
        found = [
            c - out + into for c, out, into in zip(counts, [*moved, 0], [0, *moved], strict=True)
        ]
        return tuple(count * busy // sum(counts) for count in found)

    def job(self, device: str, *steps: tuple[str, str], **detail: Any) -> bool:
        """Say each status, and where it is or why, of the open job of DEVICE; False: none."""
        with self.service.database.read() as session:
            waiting = JobRow.status.in_(("QUEUED", "IN_PROGRESS"))
            row = session.scalar(select(JobRow).where(JobRow.device_id == device, waiting))
        if row is None:
            return False
        for later, (status, word) in enumerate(steps):
            named = "state" if status == "IN_PROGRESS" else "reason"
            facts: Any = {"status": status, named: word}
            self.say(device, "job/update", messages.JobUpdate(
                token="t", job=row.id, version=row.version + later, detail=detail, **facts,
            ))  # fmt: skip
        return True

    def finish(self, device: str, release: str, **detail: Any) -> None:
        """Install RELEASE on DEVICE, if it has a job."""
        if self.job(device, ("IN_PROGRESS", "downloading"), ("SUCCEEDED", ""), **detail):
            self.event(device, "activated", release)


def token(made: Town, role: Any = "operator") -> str:
    return bootstrap_token((made.home / "fleet" / "secret").read_bytes(), role)


@contextlib.contextmanager
def shown(made: Town) -> Iterator[str]:
    """Yield the address at which a browser sees the fleet."""
    with serving(main_app(made.service, "https://127.0.0.1:8443")) as port:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            made.service.feed.close()


def shadow(agreement: float, ratio: float) -> dict[str, Any]:
    """Return what a device says of a comparison."""
    return {"shadow": {"agreement": agreement, "p95_ratio": ratio, "samples": 400},
            "exam": {"score": 0.94}}  # fmt: skip


def town(home: Path, now: float, broker: Address = NOBODY) -> Town:
    """Return a fleet of 36 devices with a day behind it; it is NOW at the end."""
    made = Town(home, now - 26 * 3600, broker)
    made.publish("1.3.0", 0.931)
    made.group("cameras-eu", "cameras-us", "lab")
    names = {
        "cameras-eu": [f"eu-cam-{n:02}" for n in range(1, 21)],
        "cameras-us": [f"us-cam-{n:02}" for n in range(1, 13)],
        "lab": [f"bench-{n}" for n in range(1, 5)],
    }
    every = [(device, group) for group, devices in names.items() for device in devices]
    for number, (device, group) in enumerate(every):
        made.enrol(device, group, BOXES[number % 2])
    with made.at_once():
        for device, _ in every:
            made.connect(device)
    for group in names:
        made.rollout("person@1.3.0", group, "100%")
    made.tick()
    with made.at_once():
        for device, _ in every:
            made.finish(device, "person@1.3.0", **shadow(1.0, 1.0))
    made.tick()
    _day(made, [device for device, _ in every])
    made.publish("1.4.0", 0.944)
    _canaries(made, names, now)
    _people(made)
    return made


def _people(made: Town) -> None:
    """Let somebody ask to join, tag two devices, and let an alert fire and another one end."""
    offer = Offer("lab", 86_400, 9, approval_s=86_400)
    secret = made.service.enrolment.offer(offer).secret
    for name in ("new-cam-1", "new-cam-2"):
        request = messages.EnrollRequest(
            secret=secret, csr=csr(ec.generate_private_key(ec.SECP256R1())), name=name,
            inventory=BOXES[0],
        )  # fmt: skip
        made.service.enrolment.enroll(request)
    for device, tags in {
        "bench-1": {"site": "hall", "row": "2"},
        "bench-2": {"site": "yard"},
    }.items():
        made.service.roster.organiser.describe(device, Description(tags=tags))
    alerts = {"al-1": ("group_offline", "critical", {"group": "cameras-us"}),
              "al-2": ("errors_rise", "warning", {"release": "person@1.4.0"})}  # fmt: skip
    with made.service.database.write() as session:
        session.add_all(
            AlertRow(id=id_, rule=rule, severity=severity, labels=labels, state="pending",
                     since=made.now - 900, value=0.17, seen=made.now, told=None, silenced=0.0,
                     acknowledged="", said="")
            for id_, (rule, severity, labels) in alerts.items()
        )  # fmt: skip
    for state in ("firing", "resolved"):
        with made.service.database.write() as session:
            for id_ in ["al-1", "al-2"] if state == "firing" else ["al-2"]:
                row = session.get_one(AlertRow, id_)
                row.state, row.told, row.said = state, made.now, state


def _day(made: Town, devices: list[str]) -> None:
    """Let a day pass in which the first of DEVICES reports often, the others now and then."""
    for step in range(48):
        made.now += 1800
        with made.at_once():
            made.report(devices[0], "person@1.3.0", minutes=30, errors=3 if step % 15 == 5 else 0,
                        bright=0.6)  # fmt: skip
            for device in devices[1:] if step % 16 == 0 else ():
                made.report(device, "person@1.3.0", minutes=30, count=9000, bright=0.6)
        if step == 20:
            made.disconnect(devices[0])
        if step == 21:
            made.connect(devices[0], "person@1.3.0")
    made.event(devices[3], "drift", "person@1.3.0", "inputs.image.mean", psi=0.31, p=1e-9, n=4200)
    made.event(devices[4], "drift", "person@1.3.0", "inputs.image.mean", psi=0.18, p=3e-6, n=3900)
    made.event(devices[9], "drift", "person@1.3.0", "classes", psi=0.14, p=2e-5, n=2800)
    made.event(
        devices[12], "drift", "person@1.3.0", "inputs.image.spread", psi=0.12, p=4e-4, n=2800
    )
    made.event(
        devices[12], "drift_over", "person@1.3.0", "inputs.image.spread", psi=0.02, p=0.4, n=2800
    )


def _canaries(made: Town, names: dict[str, list[str]], now: float) -> None:
    """Let 1.4.0 be everywhere in the lab, stopped in one group, and halfway in another one."""
    made.rollout("person@1.4.0", "lab", "1,100%")
    for _ in range(4):
        made.tick()
        with made.at_once():
            for device in names["lab"]:
                made.finish(device, "person@1.4.0", **shadow(0.99, 0.93))
    made.tick()
    _stopped(made, names["cameras-us"])
    _halfway(made, names["cameras-eu"])
    for device in (names["cameras-eu"][-1], *names["cameras-us"][-2:]):
        made.disconnect(device)
    while made.now < now - 300:
        made.now += 300
        with made.at_once():
            for device in names["cameras-eu"][:4]:
                made.report(device, "person@1.4.0", slow=0.9)
    made.now = now
    made.tick()


def _stopped(made: Town, devices: list[str]) -> None:
    made.rollout("person@1.4.0", "cameras-us", "2,50%,100%", "agreement>=0.95", max_failures=3)
    bad = {3: "golden_mismatch", 4: "golden_mismatch", 5: "acceptance_below_limit"}
    for _ in range(3):
        made.tick()
        with made.at_once():
            for number, device in enumerate(devices[:6]):
                if number not in bad:
                    made.finish(device, "person@1.4.0", **shadow(0.98, 0.95))
                elif made.job(device, ("IN_PROGRESS", "self_test"), ("REJECTED", bad[number])):
                    made.event(device, "rejected", "person@1.4.0", bad[number])


def _halfway(made: Town, devices: list[str]) -> None:
    made.rollout(
        "person@1.4.0", "cameras-eu", "1,25%,100%", "p95_ratio<=1.2",
        "agreement>=0.95,min_devices=4", "error_rate<=0.01,on_missing=skip",
        soak_s=3600, timeout_s=90_000,
    )  # fmt: skip
    made.tick()
    made.finish(devices[0], "person@1.4.0", **shadow(0.985, 0.94))
    made.tick(3700)
    with made.at_once():
        for number, device in enumerate(devices):
            made.report(device, "person@1.4.0" if number == 0 else "person@1.3.0", slow=0.9)
    made.tick()
    for number, device in enumerate(devices[1:4]):
        made.finish(device, "person@1.4.0", **(shadow(0.97, 1.08) if number < 2 else {}))
    made.job(devices[4], ("IN_PROGRESS", "probation"))
    made.tick()


def young(home: Path, now: float) -> Town:
    """Return a fleet of an hour: one release went round, two were refused, one was taken back."""
    made = Town(home, now - 3600)
    for version, score in (("1.3.0", 0.931), ("1.4.0", 0.944), ("1.5.0", 0.951)):
        made.publish(version, score)
    groups = {"lab": ["bench-1", "bench-2"], "gate": ["gate-1"], "yard": ["yard-1", "yard-2"]}
    made.group(*groups)
    for group, devices in groups.items():
        for device in devices:
            made.enrol(device, group)
            made.connect(device)
        made.rollout("person@1.3.0", group, "100%")
    everybody = [device for devices in groups.values() for device in devices]
    _settle(made, everybody, "person@1.3.0")
    made.rollout("person@1.4.0", "lab", "1,100%")
    _refuse(made, "bench-1", "person@1.4.0")
    made.rollout("person@1.5.0", "lab", "100%")
    _settle(made, groups["lab"], "person@1.5.0")
    made.rollout("person@1.4.0", "gate", "1,100%")
    _refuse(made, "gate-1", "person@1.4.0")
    made.rollout("person@1.4.0", "yard", "1,100%", on_breach="revert")
    _settle(made, ["yard-1"], "person@1.4.0")
    _refuse(made, "yard-2", "person@1.4.0")
    made.tick()
    _settle(made, ["yard-1"], "person@1.3.0")
    made.now = now - 300
    made.report("bench-1", "person@1.5.0", count=100, temperature=False)
    made.report("yard-1", "person@1.3.0", count=100, errors=2)
    made.now = now
    made.tick()
    return made


def _settle(made: Town, devices: list[str], release: str) -> None:
    """Let DEVICES install RELEASE and say so."""
    made.tick()
    for device in devices:
        made.finish(device, release, **shadow(0.98, 0.95))
        made.connect(device, release)
    made.tick()


def _refuse(made: Town, device: str, release: str) -> None:
    """Let DEVICE refuse RELEASE."""
    made.tick()
    assert made.job(device, ("IN_PROGRESS", "self_test"), ("REJECTED", "golden_mismatch"))
    made.event(device, "rejected", release, "golden_mismatch")
    made.tick()


if __name__ == "__main__":  # a fleet to look at, until its input ends
    with tempfile.TemporaryDirectory() as name:
        made = town(Path(name), time.time())
        with shown(made) as url:
            print(url, token(made), flush=True)
            sys.stdin.read()
