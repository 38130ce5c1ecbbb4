"""A whole site in a temporary directory: broker, fleet and agents as the real processes.

Everything is done through the commands a person would use; a test kills and restarts parts by
name. Bundles are built once per test session from the small ONNX digits classifier.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from digits import accuracy, calibration_npz, digits_data, digits_onnx, evaluation_npz, exam_npz

BIN = Path(sysconfig.get_path("scripts"))
INPUT = "image"
MODEL = "digits"


def wait(what: str, probe: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return the first true result of PROBE; fail after SECONDS."""
    deadline = time.monotonic() + seconds
    found = None
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}; last seen: {found!r}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def clean_env(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEPACK_F")}
    return kept | {"XDG_CONFIG_HOME": str(home / "config"), "NO_COLOR": "1"}


@dataclass
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


def run(
    command: str,
    *args: str | Path,
    env: dict[str, str],
    timeout: float = 180,
    bin_dir: Path = BIN,
) -> Done:
    words = [str(bin_dir / command), *map(str, args)]
    done = subprocess.run(
        words, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def build_release(folder: Path, version: str, *, wrong: float, env: dict[str, str]) -> list[Path]:
    """Build VERSION for onnx and openvino in int8, signed; return the bundles' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder.parent / "publisher.pem"
    if not key.exists():
        made = run("edgepack", "keys", "create", key, "--no-passphrase", env=env)
        assert made.code == 0, made.stderr
    model = digits_onnx(folder / "digits.onnx", wrong_labels=wrong)
    calibration = calibration_npz(folder / "calibration.npz")
    built = run(
        "edgepack", "build", model, "--target", "onnx", "--target", "openvino", "--precision",
        "int8", "--calibration", calibration, "--evaluate", evaluation_npz(folder / "eval.npz"),
        "--preprocess", json.dumps({"color": "gray", "scale": 255}), "--task", "classify",
        "--name", MODEL, "--version", version, "--key", key, "--out", folder / "dist", "--json",
        env=env,
    )  # fmt: skip
    assert built.code == 0, built.stderr
    return [Path(bundle["path"]) for bundle in built.document["bundles"]]


@dataclass
class Agent:
    """One device of the site."""

    name: str
    target: str
    port: int
    home: Path
    bin_dir: Path = BIN

    @property
    def config(self) -> Path:
        return self.home / "agent.yaml"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@dataclass
class Site:
    """A broker, a fleet and agents; processes are known by label."""

    root: Path
    env: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    broker_port: int = 0

    # -- processes

    def start(self, label: str, *command: str | Path, bin_dir: Path = BIN) -> None:
        words = [str(bin_dir / command[0]), *map(str, command[1:])]
        self.commands[label] = words
        self.restart(label)

    def restart(self, label: str) -> None:
        with (self.root / f"{label}.log").open("ab") as log:
            self.processes[label] = subprocess.Popen(
                self.commands[label],
                env=self._env_of(label),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _env_of(self, label: str) -> dict[str, str]:
        hidden = {"EDGEPACK_FLEET_TOKEN"} if label in {"broker", *self.agents} else set()
        return {k: v for k, v in self.env.items() if k not in hidden}

    def kill(self, label: str) -> None:
        """Kill LABEL the hard way."""
        self.processes[label].kill()
        self.processes[label].wait()

    def stop(self, label: str) -> int:
        """End LABEL politely and return its exit code."""
        process = self.processes.pop(label)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def close(self) -> None:
        for label in reversed(list(self.processes)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(label)

    def log(self, label: str) -> str:
        return (self.root / f"{label}.log").read_text(errors="replace")

    # -- commands

    def run(self, *args: str | Path) -> Done:
        return run("edgepack", *args, env=self.env)

    def edgepack(self, *args: str | Path) -> Any:
        done = self.run(*args, "--json")
        assert done.code == 0, f"edgepack {args}: {done.stderr}"
        return done.document

    def agent_command(self, name: str, *args: str | Path) -> Done:
        agent = self.agents[name]
        words = ("--config", agent.config, *args)
        return run("edgepack-agent", *words, env=self._env_of(name), bin_dir=agent.bin_dir)

    # -- fleet

    @property
    def data(self) -> Path:
        return self.root / "fleet"

    @property
    def publisher(self) -> Path:
        return self.root / "publisher"

    def start_fleet(self) -> None:
        self.broker_port = free_port()
        listen = f"127.0.0.1:{self.broker_port}"
        self.start("broker", "edgepack", "fleet", "broker", "--data", self.data, "--listen", listen)
        http, devices = free_port(), free_port()
        self.start(
            "fleet", "edgepack", "fleet", "serve", "--data", self.data, "--broker",
            f"mqtts://{listen}", "--listen", f"127.0.0.1:{http}", "--device-listen",
            f"127.0.0.1:{devices}",
        )  # fmt: skip
        self.env["EDGEPACK_FLEET_URL"] = f"http://127.0.0.1:{http}"
        self.wait_for_fleet()
        shown = self.edgepack("fleet", "tokens", "show", "--data", self.data, "--role", "admin")
        self.env["EDGEPACK_FLEET_TOKEN"] = shown["token"]

    def wait_for_fleet(self) -> None:
        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                url = self.env["EDGEPACK_FLEET_URL"] + "/api/v1/health"
                return httpx.get(url, timeout=2).status_code == 200
            return False

        wait("the fleet to answer", answers)

    def init_publisher(self) -> None:
        fleet = self.env["EDGEPACK_FLEET_URL"]
        self.edgepack("repo", "init", self.publisher, "--fleet", fleet, "--no-passphrase")

    def publish(self, bundles: list[Path], min_score: float = 0.9) -> None:
        exam = exam_npz(self.root / "exam.npz")
        self.edgepack(
            "repo", "publish", *bundles, "--repo", self.env["EDGEPACK_FLEET_URL"], "--home",
            self.publisher, "--exam", exam, "--min-score", str(min_score),
        )  # fmt: skip

    # -- devices

    def token(self, group: str) -> str:
        return str(self.edgepack("fleet", "tokens", "create", "--group", group)["token"])

    def add_agent(
        self, name: str, target: str, group: str = "lab", bin_dir: Path = BIN, **config: Any
    ) -> Agent:
        home = self.root / name
        home.mkdir()
        agent = Agent(name, target, free_port(), home, bin_dir)
        self.agents[name] = agent
        settings = {
            "data_dir": str(home / "data"),
            "run_dir": str(home / "run"),
            "listen": f"127.0.0.1:{agent.port}",
            "api": {"token": False},
            "runtimes": [target],
            "threads": 1,
            "poll_s": 2,
            "telemetry": {"level": "metrics", "interval_s": 1},
        } | config
        agent.config.write_text(json.dumps(settings))  # JSON is YAML
        root = self.publisher / "metadata" / "1.root.json"
        done = self.agent_command(name, "enroll", self.token(group), "--root", root, "--name", name)
        assert done.code == 0, done.stderr
        self.start(name, "edgepack-agent", "--config", agent.config, "run", bin_dir=bin_dir)
        wait(f"{name} online", lambda: self.asked("devices", name).get("online"))
        return agent

    def device(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.edgepack("fleet", "devices", "show", name)
        return shown

    def roll_out(self, release: str, group: str = "lab", **options: Any) -> str:
        flags = {"waves": "1,100%", "probation": 1, "max-failures": 1} | options
        words = [w for k, v in flags.items() for w in (f"--{k}", str(v))]
        made = self.edgepack("fleet", "rollouts", "create", release, "--group", group, *words)
        return str(made["id"])

    def rollout(self, rollout: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.edgepack("fleet", "rollouts", "show", rollout)
        return shown

    def ended(self, rollout: str, seconds: float = 90) -> dict[str, Any]:
        def over() -> bool:
            ends = {"completed", "paused", "cancelled"}
            return self.asked("rollouts", rollout).get("state") in ends

        wait(f"rollout {rollout} to end", over, seconds)
        return self.rollout(rollout)

    def asked(self, *path: str) -> dict[str, Any]:
        """Return what the fleet answers over HTTP now; nothing while it is not there.

        For waiting: a process for each look would take the processor from what is waited for.
        """
        url = "/".join((self.env["EDGEPACK_FLEET_URL"], "api/v1", *path))
        token = {"Authorization": f"Bearer {self.env['EDGEPACK_FLEET_TOKEN']}"}
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(url, headers=token, timeout=10)
            if answer.status_code == 200:
                return dict(answer.json())
        return {}

    # -- inference

    def infer(self, name: str, count: int = 20) -> float:
        """Ask agent NAME about COUNT test digits and return the accuracy."""
        test = digits_data()[1].head(count)
        rows = [self.infer_one(name, image) for image in test.inputs]
        return accuracy(np.stack(rows), test.labels)

    def infer_one(self, name: str, image: np.ndarray) -> np.ndarray:
        tensor = {
            "name": INPUT,
            "shape": [1, *image.shape],
            "datatype": "FP32",
            "data": image.ravel().tolist(),
        }
        url = self.agents[name].url(f"/v2/models/{MODEL}/infer")
        reply = httpx.post(url, json={"inputs": [tensor]}, timeout=20)
        assert reply.status_code == 200, reply.text
        return np.asarray(reply.json()["outputs"][0]["data"])

    def version(self, name: str) -> str:
        """Return the version of the model agent NAME serves; empty if it serves none."""
        with contextlib.suppress(httpx.HTTPError):
            reply = httpx.get(self.agents[name].url(f"/v2/models/{MODEL}"), timeout=5)
            if reply.status_code == 200:
                return str(reply.json()["versions"][0])
        return ""


@contextlib.contextmanager
def site(root: Path) -> Iterator[Site]:
    """Yield a site with a running fleet and an initialised publisher; stop it all at the end."""
    place = Site(root, clean_env(root))
    try:
        place.start_fleet()
        place.init_publisher()
        yield place
    finally:
        place.close()
