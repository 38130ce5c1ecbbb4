"""The chapters of the demo, in order. Every step is a real command on a real process.

Trains three versions of a small digit classifier, builds int8 bundles for three targets, starts
a broker and a fleet, enrols one device per target, rolls version 1 out, pulls the network cable
of one device, tries a bad version 2 (its own golden vectors pass, the exam on the device fails)
and rolls out version 3. Imports neither agent nor fleet: it knows them as commands and HTTP.
"""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError
from edgepack_packager.demo.cable import Cable
from edgepack_packager.demo.pictures import Tally, ask
from edgepack_packager.demo.processes import (
    Processes,
    call,
    mosquitto_is_here,
    program,
    wait_for,
)
from edgepack_packager.demo.training import train_digits

__all__ = ["Device", "Story"]

MODEL = "digits"
TARGETS = ("openvino", "tflite", "onnx")
GROUP_OF = {"openvino": "line-a", "tflite": "line-a", "onnx": "line-b"}
EXAM_LIMIT = 0.9
BAD_SHARE = 0.4
"""Share of wrong training labels of version 2: leaves about 60 % accuracy."""
ROLLOUT_S = 120.0
ENDED = {"completed", "paused", "cancelled", "reverted"}


@dataclass
class Device:
    """One enrolled device of the demo."""

    id: str
    target: str
    port: int
    tally: Tally = field(default_factory=Tally)
    last: Tally = field(default_factory=Tally)
    """What it answered in the last round only."""
    bundle: str | None = None

    @property
    def group(self) -> str:
        """The group it is enrolled in."""
        return GROUP_OF[self.target]


class Story:
    """The state of one telling.

    Args:
        home: Directory for everything the demo writes.
        processes: Where the long-running processes go.
        env: Environment of every command.
        tell: Called with a line about each step.
    """

    def __init__(
        self, home: Path, processes: Processes, env: dict[str, str], tell: Callable[[str], None]
    ) -> None:
        self.home, self.processes, self.env, self.tell = home, processes, env, tell
        self.devices = [Device(f"cam-{t}", t, _free_port()) for t in TARGETS]
        self.rollouts: list[dict[str, Any]] = []
        self.offline = 0
        self.url = ""
        self._cable: Cable | None = None

    def run(self) -> None:
        """Tell the whole story.

        Raises:
            EdgepackError: a step did not do what it must.
        """
        self.start_fleet()
        self.enrol_devices()
        self.release("1.0.0", wrong=0.0, seed=1)
        self.roll_out("1.0.0", expect="completed")
        self.infer_everywhere()
        self.infer_offline()
        self.release("2.0.0", wrong=BAD_SHARE, seed=2)
        self.roll_out("2.0.0", expect="paused", groups=["line-a"])
        self.infer_everywhere()
        self.release("3.0.0", wrong=0.0, seed=3)
        self.roll_out("3.0.0", expect="completed")
        self.infer_everywhere()

    def close(self) -> None:
        """Give back what is not a process."""
        if self._cable:
            self._cable.close()

    def settle(self) -> None:
        """Connect the last device directly, so that it stays connected when the demo ends."""
        self.close()
        self._cable = None
        last = self.devices[-1]
        self.processes.stop_one(last.id)
        (self.home / last.id / "agent.yaml").write_text(self._config(last))
        self._run_agent(last)
        wait_for(f"{last.id} to connect directly", lambda: self._online(last), 60)

    # -- fleet and devices

    def start_fleet(self) -> None:
        """Start a broker and the fleet service."""
        data = self.home / "fleet"
        serve: list[str | Path] = [program("edgepack"), "fleet", "serve", "--data", data]
        serve += ["--listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0"]
        if mosquitto_is_here():
            port = _free_port()
            self.tell(f"starting mosquitto (TLS, access list) on 127.0.0.1:{port} and the fleet")
            self.processes.start(
                "broker", program("edgepack"), "fleet", "broker", "--data", data,
                "--listen", f"127.0.0.1:{port}",
            )  # fmt: skip
            serve += ["--broker", f"mqtts://127.0.0.1:{port}"]
        else:
            self.tell("mosquitto is not installed: starting the fleet with the embedded broker")
            serve += ["--embedded-broker"]
        self.processes.start("fleet", *serve)
        endpoints = wait_for("the fleet to listen", lambda: _read_json(data / "endpoints.json"), 60)
        self.url = endpoints["http"]
        self.env["EDGEPACK_FLEET_URL"] = self.url
        shown = self.edgepack("fleet", "tokens", "show", "--data", data, "--role", "admin")
        self.env["EDGEPACK_FLEET_TOKEN"] = shown["token"]
        self._cable = Cable(_host_port(endpoints["broker"]))
        self.edgepack("keys", "create", self.home / "publisher.pem", "--no-passphrase")
        self.edgepack("repo", "init", self.publisher, "--fleet", self.url, "--no-passphrase")

    @property
    def publisher(self) -> Path:
        """The publisher's offline keys and metadata."""
        return self.home / "publisher"

    def enrol_devices(self) -> None:
        """Create the groups, enrol a device per target and start its agent."""
        for group in sorted(set(GROUP_OF.values())):
            self.edgepack("fleet", "groups", "create", group)
        for device in self.devices:
            self.tell(f"enrolling {device.id} into {device.group}")
            self._start_agent(device)
        wait_for("every device to come online", self._all_online, 60)

    def _start_agent(self, device: Device) -> None:
        config = self.home / device.id / "agent.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(self._config(device))
        token = self.edgepack("fleet", "tokens", "create", "--group", device.group)["token"]
        root = self.publisher / "metadata" / "1.root.json"
        call(
            "edgepack-agent", "--config", config, "enroll", token, "--root", root,
            "--name", device.id, env=self.env,
        )  # fmt: skip
        self._run_agent(device)

    def _run_agent(self, device: Device) -> None:
        config = self.home / device.id / "agent.yaml"
        self.processes.start(device.id, program("edgepack-agent"), "--config", config, "run")

    def _config(self, device: Device) -> str:
        lines = [
            f"data_dir: {self.home / device.id / 'data'}",
            f"run_dir: {self.home / device.id / 'run'}",
            f"listen: 127.0.0.1:{device.port}",
            f"runtimes: [{device.target}]",
            "threads: 1",
            "poll_s: 5",
            "telemetry: {level: metrics, interval_s: 2}",
        ]
        if device is self.devices[-1] and self._cable:
            lines.append(f"broker: 127.0.0.1:{self._cable.port}")
        return "\n".join(lines) + "\n"

    def _all_online(self) -> bool:
        known = self.edgepack("fleet", "devices", "list")["devices"]
        return len(known) == len(self.devices) and all(d["online"] for d in known)

    # -- releases and rollouts

    def release(self, version: str, *, wrong: float, seed: int) -> None:
        """Train VERSION, build an int8 bundle for each target and publish them."""
        folder = self.home / "models" / version
        told = f" on labels of which {wrong:.0%} are wrong" if wrong else ""
        self.tell(f"training {MODEL} {version}{told}")
        train_digits(folder, wrong_share=wrong, seed=seed)
        self.tell(f"building int8 bundles of {version} for {', '.join(TARGETS)}")
        built = self.edgepack(
            "build", folder / "model.keras", *_each("--target", TARGETS), "--precision", "int8",
            "--name", MODEL, "--version", version, "--key", self.home / "publisher.pem",
            "--calibration", folder / "calibration.npz", "--evaluate", folder / "evaluate.npz",
            "--max-drop", "0.01", "--preprocess", '{"color": "gray"}', "--out", self.home / "dist",
        )  # fmt: skip
        for bundle in built["bundles"]:
            self.tell(receipt(bundle))
        exam = self.home / "models" / "1.0.0" / "exam.npz"
        self.edgepack(
            "repo", "publish", *(b["path"] for b in built["bundles"]), "--repo", self.url,
            "--home", self.publisher, "--exam", exam, "--min-score", str(EXAM_LIMIT),
        )  # fmt: skip

    def roll_out(self, version: str, *, expect: str, groups: list[str] | None = None) -> None:
        """Roll VERSION out to GROUPS (default all) and check that the rollouts end as EXPECTed."""
        release = f"{MODEL}@{version}"
        for group in groups or sorted(set(GROUP_OF.values())):
            self.tell(f"rolling {release} out to {group}")
            made = self.edgepack(
                "fleet", "rollouts", "create", release, "--group", group, "--waves", "1,100%",
                "--max-failures", "1", "--probation", "2",
            )  # fmt: skip
            ended = wait_for(f"{release} in {group}", partial(self._ended, made["id"]), ROLLOUT_S)
            self.tell(f"  {ended['state']}: {ended['reason'].removeprefix('Paused: ')}")
            self.rollouts.append({k: ended[k] for k in ("release", "state", "reason")})
            if ended["state"] != expect:
                raise EdgepackError(
                    f"the rollout of {release} to {group} ended {ended['state']}, not {expect}",
                    why=str(ended["reason"]), fix=f"look at the logs in {self.home / 'logs'}",
                )  # fmt: skip

    def _ended(self, rollout: str) -> dict[str, Any] | None:
        shown: dict[str, Any] = self.edgepack("fleet", "rollouts", "show", rollout)
        return shown if shown["state"] in ENDED else None

    # -- inference

    def infer_everywhere(self) -> None:
        """Let every device answer the held-out pictures over its local API."""
        for device in self.devices:
            self._infer(device)
            self.tell(f"  {device.id} runs {device.bundle}: {device.last}")

    def infer_offline(self) -> None:
        """Pull the network cable of the last device; it must keep answering."""
        device = self.devices[-1]
        if self._cable is None:
            raise EdgepackError("there is no cable to pull")
        self.tell(f"pulling the network cable of {device.id}")
        self._cable.pull()
        wait_for(f"the fleet to see {device.id} offline", lambda: not self._online(device), 60)
        self._infer(device)
        self.offline += device.last.asked
        self.tell(f"  {device.id} offline: {device.last}")
        self._cable.plug()
        wait_for(f"{device.id} to come back", lambda: self._online(device), 90)

    def _online(self, device: Device) -> bool:
        return bool(self.edgepack("fleet", "devices", "show", device.id)["online"])

    def _infer(self, device: Device) -> None:
        token = (self.home / device.id / "data" / "api-token").read_text().strip()
        pictures = self.home / "models/1.0.0/heldout"
        answers = ask(f"http://127.0.0.1:{device.port}", token, MODEL, pictures)
        device.last, device.bundle = answers.tally, answers.bundle
        device.tally += answers.tally

    # -- the end

    def document(self) -> dict[str, Any]:
        """Return what happened, schema `edgepack.demo/v1`."""
        return {
            "schema": "edgepack.demo/v1",
            "devices": [
                {
                    "id": d.id,
                    "target": d.target,
                    "bundle": d.bundle,
                    "inferences": d.tally.asked,
                    "accuracy": round(d.last.share, 4),
                }
                for d in self.devices
            ],
            "rollouts": self.rollouts,
            "offline_inferences": self.offline,
        }

    def edgepack(self, *args: str | Path) -> Any:
        """Run `edgepack ARGS --json` and return its document."""
        return call("edgepack", *args, "--json", env=self.env)


def receipt(bundle: dict[str, Any]) -> str:
    """Return one line about a built BUNDLE: size, accuracy, latency, parity."""
    metrics, latency = bundle["metrics"], bundle["latency_ms"]
    return (
        f"  {bundle['target']:<9} {bundle['precision']} {bundle['model_bytes'] / 1000:6.1f} kB  "
        f"top1 {metrics['reference']:.3f} -> {metrics['this']:.3f}  "
        f"p50 {latency['p50']:.3f} ms  cosine {bundle['parity']['cosine']:.5f}"
    )


def _each(flag: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _host_port(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("://")[2].rpartition(":")
    return host, int(port)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def environment(home: Path) -> dict[str, str]:
    """Return the environment of the demo's commands: nothing of the user's keys or config."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEPACK_")}
    tool = {k: v for k, v in os.environ.items() if k.startswith("EDGEPACK_T")}
    return kept | tool | {"XDG_CONFIG_HOME": str(home / "config"), "NO_COLOR": "1"}
