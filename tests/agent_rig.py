"""Real agent processes against a real fleet service, repositories and broker.

A site is a fleet with a publisher; its devices are `edgepack-agent run` processes that a test
may kill at any time. Models are the small digits classifiers.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import helper, numpy_helper
from sqlalchemy import select

from bundles import KEY
from digits import INPUT, OUTPUT, accuracy, digits_data, digits_onnx, exam_npz
from edgepack import messages
from edgepack.bundle import write_bundle
from edgepack.signed import public_pem
from edgepack_agent.adapters.control import call
from edgepack_agent.adapters.identity import write_identity
from edgepack_fleet.adapters.rollup_tables import EVER, GroupRollup
from edgepack_fleet.adapters.tables import EventRow, GroupRow, JobRow, RolloutRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service
from fleet_rig import Mosquitto, csr, free_port, mosquitto, pem, publisher, running, wait
from slots import Client, digits_manifest, raw

AGENT = Path(sys.executable).with_name("edgepack-agent")
ENDED = {"completed", "paused", "cancelled", "reverted"}
WRONG = {"2.0.0": 0.42}
"""Share of wrong labels of the versions that are bad."""


@cache
def _trained(home: Path, wrong: float) -> Path:
    return digits_onnx(home / f"model-{wrong}.onnx", wrong, batch=1)


@cache
def _padded(home: Path, version: str, wrong: float, padding: int) -> Path:
    model = onnx.load(_trained(home, wrong))
    model.doc_string = random.Random(version).randbytes(padding // 2).hex()
    path = home / f"padded-{version}-{wrong}.onnx"
    onnx.save(model, path)
    return path


def digits_release(
    home: Path,
    version: str,
    *,
    line: str = "digits",
    lie: bool = False,
    slow: bool = False,
    broken: bool = False,
    dazzled: bool = False,
    ram_mb: int = 0,
    padding: int = 0,
    drift: dict[str, Any] | None = None,
) -> Path:
    """Write a signed digits bundle of VERSION below HOME.

    Args:
        home: Directory.
        version: Of the release; see `WRONG`.
        line: The model's name.
        lie: Its golden vectors are wrong.
        slow: It computes the same, with a detour.
        broken: Its model is no model.
        dazzled: It says 0 to every bright picture; golden vectors and exam hold none.
        ram_mb: What its manifest says it needs.
        drift: Baseline of its manifest.
        padding: Bytes that make its model longer, and another one than that of other versions.
    """
    home.mkdir(parents=True, exist_ok=True)
    wrong = WRONG.get(version, 0.0)
    model = _padded(home, version, wrong, padding) if padding else _trained(home, wrong)
    inputs = digits_data()[1].head(8).inputs
    outputs = np.concatenate([raw(model, i) for i in inputs])
    if slow:
        model = _with_a_detour(model)
    if dazzled:
        model = _dazzled(model)
    if broken:
        model = home / "broken.onnx"
        model.write_bytes(b"\x08\x09" + b"no model" * 99)
    np.savez(home / "inputs.npz", **{INPUT: inputs})
    np.savez(home / "outputs.npz", **{OUTPUT: -outputs if lie else outputs})
    files = {
        "model/model.onnx": model,
        "golden/inputs.npz": home / "inputs.npz",
        "golden/outputs.npz": home / "outputs.npz",
    }
    manifest = digits_manifest(version)
    target = msgspec.structs.replace(manifest.target, ram_mb=ram_mb)
    manifest = msgspec.structs.replace(manifest, name=line, target=target, drift=drift)
    return write_bundle(home / "dist", manifest, files, key=KEY).path


def _dazzled(model: Path) -> Path:
    """Return MODEL with another answer to pictures whose mean is above 0.5: always 0."""
    changed, found = model.with_name("dazzled.onnx"), onnx.load(model)
    shift = np.array([[1000.0, *[0.0] * 9]], np.float32)
    constants = {"bright": np.array(0.5, np.float32), "only_0": shift}
    found.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    (last,) = [node for node in found.graph.node if OUTPUT in node.output]
    last.output[0] = "before"
    found.graph.node.extend([
        helper.make_node("ReduceMean", [INPUT], ["light"], keepdims=0),
        helper.make_node("Greater", ["light", "bright"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["dazzle"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["only_0", "dazzle"], ["added"]),
        helper.make_node("Add", ["before", "added"], [OUTPUT]),
    ])  # fmt: skip
    onnx.save(found, changed)
    return changed


def _with_a_detour(model: Path, rounds: int = 200, side: int = 768) -> Path:
    """Return MODEL with work beside it that changes no answer: ROUNDS products with a matrix."""
    slow, found = model.with_name("slow.onnx"), onnx.load(model)
    graph = found.graph
    matrix = np.eye(side, dtype=np.float32)
    flat = np.full((1, side), 1e-30, np.float32)
    constants = {"detour_eye": matrix, "detour_flat": flat}
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    (last,) = [node for node in graph.node if OUTPUT in node.output]
    last.output[0] = "detour_logits"
    mean = helper.make_node("ReduceMean", ["detour_logits"], ["detour_mean"], keepdims=0)
    nodes = [mean, helper.make_node("Mul", ["detour_flat", "detour_mean"], ["detour_0"])]
    nodes += [
        helper.make_node("MatMul", [f"detour_{n}", "detour_eye"], [f"detour_{n + 1}"])
        for n in range(rounds)
    ]
    nodes.append(helper.make_node("ReduceMean", [f"detour_{rounds}"], ["detour_end"], keepdims=0))
    nodes.append(helper.make_node("Add", ["detour_logits", "detour_end"], [OUTPUT]))
    graph.node.extend(nodes)
    onnx.save(found, slow)
    return slow


@dataclass
class Device:
    """An agent's process, its files and its ports."""

    name: str
    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    under: list[str] = field(default_factory=list)
    """Words before the agent's command, of a program that watches it."""

    @property
    def config(self) -> Path:
        return self.home / "agent.yaml"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def log(self) -> str:
        return (self.home / "agent.log").read_text(errors="replace")

    def start(self) -> None:
        with (self.home / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.under, AGENT, "--config", self.config, "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()

    def configure_new(self, **changes: Any) -> None:
        """Write its first configuration."""
        settings = {
            "data_dir": str(self.data),
            "run_dir": str(self.home / "run"),
            "listen": f"127.0.0.1:{self.port}",
            "api": {"token": False},
            "runtimes": ["onnx"],
            "threads": 1,
            "poll_s": 1,
            "telemetry": {"level": "metrics", "interval_s": 0.5},
            "log_level": "debug",
        }
        self.config.write_text(json.dumps(settings | changes))

    def configure(self, **changes: Any) -> None:
        settings = json.loads(self.config.read_text()) | changes
        self.config.write_text(json.dumps(settings))  # JSON is YAML

    def ask(self, command: str, file: int | None = None) -> dict[str, Any]:
        return call(self.run / "control.sock", command, file, timeout_s=60)

    def status(self) -> dict[str, Any]:
        """Return the status; empty while the agent is not up."""
        with contextlib.suppress(Exception):
            return self.ask("status")
        return {}

    @property
    def api(self) -> list[Any]:
        """Where the device's local API listens."""
        return [("127.0.0.1", self.port), str(self.run / "infer.sock")]

    def serving(self) -> str | None:
        """Return what answers requests; None while nothing does."""
        found: str | None = self.status().get("serving")
        return found

    def comes_to_serve(self, release: str) -> None:
        """Return as soon as RELEASE answers: after a way back its runner has to say so first."""
        wait(f"{release} to be served", lambda: self.serving() == release)

    def accuracy(self, count: int = 20) -> float:
        """Ask about COUNT test digits over the local API."""
        test = digits_data()[1].head(count)
        with Client(("127.0.0.1", self.port)) as client:
            return accuracy(
                np.concatenate([client.infer(image)[0] for image in test.inputs]), test.labels
            )


@dataclass
class Site:
    """A fleet, its broker and its devices."""

    root: Path
    broker: Mosquitto
    service: Service
    devices: list[Device] = field(default_factory=list)

    def publish(self, version: str, *, exam: bool = True, **facts: Any) -> Path:
        bundle = digits_release(self.root / "models", version, **facts)
        path = exam_npz(self.root / "exam.npz") if exam else None
        publisher(self.service.settings.data).publish(bundle, exam=path, min_score=0.9)
        return bundle

    def device(self, name: str = "cam", *, group: str = "lab", **changes: Any) -> Device:
        """Enrol a device past HTTP and write its configuration."""
        home = self.root / name
        home.mkdir()
        device = Device(name, home, free_port())
        device.configure_new(**changes)
        self._enrol(device, group)
        self.devices.append(device)
        return device

    def _enrol(self, device: Device, group: str) -> None:
        service, key = self.service, ec.generate_private_key(ec.SECP256R1())
        with service.database.write() as session:
            if session.get(GroupRow, group) is None:
                session.add(GroupRow(id=group, created=0.0))
        token = service.enrolment.create_token(group, 60, 1)
        report_key = ec.generate_private_key(ec.SECP256R1())
        request = messages.EnrollRequest(
            secret=token.secret,
            csr=csr(key),
            name=device.name,
            report_key=public_pem(report_key.public_key()),
        )
        reply = service.enrolment.enroll(request)
        image_root = self.root / "home" / "metadata" / "1.root.json"
        write_identity(
            device.data / "identity",
            device=reply.device,
            group=reply.group,
            broker=(reply.broker_host, reply.broker_port),
            files={
                "key.pem": pem(key),
                "certificate.pem": reply.certificate.encode(),
                "report-key.pem": pem(report_key),
                "ca.pem": reply.ca.encode(),
                "image-root.json": image_root.read_bytes(),
                "director-root.json": reply.director_root.encode(),
            },
        )

    def roll_out(self, version: str, probation_s: int = 1, **policy_of: Any) -> str:
        # One attempt: what a device could do better another time is a failure here.
        limits = {"max_attempts": 1, "penalty_failures": 0} | policy_of
        policy = Policy(probation_s=probation_s, **limits)
        return self.service.rollouts.create(f"digits@{version}", "lab", "100%", policy)

    def state(self, rollout: str) -> str:
        with self.service.database.read() as session:
            found = session.get(RolloutRow, rollout)
            assert found is not None
            return found.state

    def running_1(self, **config: Any) -> Device:
        """Return a device that runs 1.0.0."""
        self.publish("1.0.0")
        device = self.device(**config)
        device.start()
        wait("the device to connect", lambda: device.status().get("connected"))
        assert self.ended(self.roll_out("1.0.0", probation_s=0)) == "completed"
        return device

    def ended(self, rollout: str, seconds: float = 60) -> str:
        def probe() -> str | None:
            found = self.state(rollout)
            return found if found in ENDED else None

        return wait(f"rollout {rollout} to end", probe, seconds)

    def job(self, rollout: str) -> JobRow:
        """Return the newest job of ROLLOUT."""
        with self.service.database.read() as session:
            found = session.scalars(select(JobRow).where(JobRow.rollout_id == rollout)).all()
            session.expunge_all()
        return found[-1]

    def told(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the events of KIND once the fleet has COUNT of them.

        A device tells them beside what becomes of its job, so the end of one says nothing of them.
        """

        def probe() -> list[dict[str, Any]] | None:
            found = self.events(kind)
            return found if len(found) >= count else None

        return wait(f"the fleet to be told of {count} {kind}", probe)

    def declined(self, rollout: str, reason: str) -> None:
        """Wait until the device has declined ROLLOUT for REASON, which is no failure; end it."""

        def probe() -> JobRow | None:
            with self.service.database.read() as session:
                query = select(JobRow).where(JobRow.rollout_id == rollout, JobRow.reason == reason)
                return session.scalars(query).first()

        wait(f"the device to decline: {reason}", probe, 60)
        assert self.state(rollout) == "running"
        self.service.rollouts.cancel(rollout)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of KIND that have arrived, in the order they happened."""
        with self.service.database.read() as session:
            rows = session.scalars(select(EventRow).where(EventRow.type == kind)).all()
            return [dict(row.body) for row in sorted(rows, key=lambda row: row.body["ts"])]

    def inferences(self) -> int:
        with self.service.database.read() as session:
            query = select(GroupRollup.inferences).where(GroupRollup.span == EVER)
            return sum(session.scalars(query))


@contextlib.contextmanager
def site(root: Path) -> Iterator[Site]:
    """Yield a running fleet with a publisher; all devices end with it."""
    data = root / "fleet"
    publisher(data)
    with mosquitto(data) as broker, running(data, broker.address) as service:
        place = Site(root, broker, service)
        try:
            yield place
        finally:
            for device in place.devices:
                device.close()


def runners(device: Device) -> list[int]:
    """Return the runner processes of DEVICE, oldest first."""
    assert device.process is not None
    found = []
    for task in Path(f"/proc/{device.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                found += [int(pid)] if b"edgepack_agent.runner" in line else []
    return sorted(found)


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
