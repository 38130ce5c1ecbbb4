"""Time a bundle on its way to a device against plain downloads, and weigh the agent meanwhile.

    [EDGEPACK_AGENT=device/bin/edgepack-agent] \\
        python benchmarks/transfer/run.py [--mb 200] [--rounds 3] [--write-page]

Real processes throughout: mosquitto with the fleet's own configuration (TLS both ways), `edgepack
fleet serve`, `edgepack-agent run` on a fresh device for every round. The time of an agent is that
of its phase `downloading`, by its own log: list of files, chunk list, every chunk checked, written
and made durable, every file named. Baselines move the same bytes between two Python processes and
check nothing. Sides take turns; medians of all rounds.
"""

import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from agent_rig import rss_mb  # noqa: E402
from bundles import KEY  # noqa: E402
from digits import INPUT, OUTPUT, digits_data, digits_onnx  # noqa: E402
from edgepack.bundle import write_bundle  # noqa: E402
from edgepack_fleet.adapters.broker import find_mosquitto  # noqa: E402
from edgepack_fleet.adapters.pki import Pki  # noqa: E402
from fleet_rig import Mosquitto, csr, free_port, listens, mosquitto, pem, publisher, wait  # noqa: E402
from slots import digits_manifest, raw  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "benchmarks-transfer.md"
BIN = Path(sys.executable).parent
AGENT = Path(os.environ.get("EDGEPACK_AGENT", BIN / "edgepack-agent"))
"""A device's memory is that of a device's environment: `pip install "edgepack[agent,onnx]"`."""
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""A device has compiled its modules when they were installed."""
PEER = Path(__file__).with_name("peers.py")
PHASE = re.compile(r"^(\S+ \S+) INFO \S+: \w+ -> (\w+)", re.MULTILINE)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Result:
    """The rounds of one side."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[tuple[float, ...]] = field(default_factory=list)
    """Seconds of processor time: receiver, sender, broker."""
    idle_mb: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


def bundle(home: Path, megabytes: int) -> Path:
    """Write a digits bundle with an asset of MEGABYTES that cannot be compressed."""
    model = digits_onnx(home / "model.onnx", 0.0, batch=1)
    inputs = digits_data()[1].head(8).inputs
    import numpy as np

    np.savez(home / "inputs.npz", **{INPUT: inputs})
    np.savez(home / "outputs.npz", **{OUTPUT: np.concatenate([raw(model, i) for i in inputs])})
    (home / "filler.bin").write_bytes(os.urandom(megabytes * 10**6))
    files = {
        "model/model.onnx": model,
        "golden/inputs.npz": home / "inputs.npz",
        "golden/outputs.npz": home / "outputs.npz",
        "assets/filler.bin": home / "filler.bin",
    }
    return write_bundle(home, digits_manifest("1.0.0"), files, key=KEY).path


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


class Fleet:
    """A fleet's processes, and devices one after the other."""

    def __init__(self, root: Path, broker: Mosquitto) -> None:
        self.root, self.data, self.broker = root, root / "fleet", broker
        address = broker.address
        words = ["--broker", f"mqtts://{address}", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [BIN / "edgepack", "fleet", "serve", "--data", self.data, *words,
             "--device-listen", "127.0.0.1:0"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait("the fleet", (self.data / "endpoints.json").exists, 60)
        self.count = 0

    def tell(self, *words: str) -> Any:
        """Run `edgepack fleet WORDS --json` and return what it says."""
        command = [BIN / "edgepack", "fleet", *words, "--data", self.data, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def measure(self, via: str, result: Result) -> None:
        """Let a fresh device fetch the bundle by VIA."""
        self.count += 1
        home, group = self.root / f"device-{self.count}", f"g{self.count}"
        home.mkdir()
        config = home / "agent.yaml"
        config.write_text(json.dumps({
            "data_dir": str(home / "data"), "run_dir": str(home / "run"), "runtimes": ["onnx"],
            "threads": 1, "transfer": {"via": via, "metered": "allow"},
        }))  # fmt: skip
        self.tell("groups", "create", group)
        token = self.tell("tokens", "create", "--group", group)["token"]
        root = self.root / "home" / "metadata" / "1.root.json"
        agent = [AGENT, "--config", config]
        subprocess.run([*agent, "enroll", token, "--root", root], check=True, capture_output=True)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen([*agent, "run"], stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            self._watch(process.pid, home, group, result)
        finally:
            process.terminate()
            process.wait(30)

    def _watch(self, pid: int, home: Path, group: str, result: Result) -> None:
        def log() -> str:
            return (home / "log").read_text(errors="replace")

        wait("the agent to connect", lambda: "the link is up" in log(), 60)
        time.sleep(3)
        result.idle_mb.append(rss_mb(pid))
        pids = (pid, self.process.pid, self.broker.process.pid if self.broker.process else pid)
        before = [cpu_s(each) for each in pids]
        stop, peak = threading.Event(), [0.0]

        def weigh() -> None:
            while not stop.wait(0.02):
                peak[0] = max(peak[0], rss_mb(pid))

        thread = threading.Thread(target=weigh)
        thread.start()
        self.tell("rollouts", "create", "digits@1.0.0", "--group", group)
        wait("the download", lambda: "downloading -> verifying" in log(), 300)
        stop.set()
        thread.join()
        result.cpu.append(tuple(cpu_s(p) - b for p, b in zip(pids, before, strict=True)))
        result.peak_mb.append(peak[0])
        times = {
            to: datetime.fromisoformat(at.replace(",", ".")) for at, to in PHASE.findall(log())
        }
        result.seconds.append((times["verifying"] - times["downloading"]).total_seconds())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def plain_http(file: Path, target: Path) -> float:
    """Time `python -m http.server` and a loop that reads and writes."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", file.parent],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait("the server", lambda: listens(port))
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", f"/{file.name}")
        response = connection.getresponse()
        with target.open("wb") as out:
            while piece := response.read(1 << 16):
                out.write(piece)
        return time.perf_counter() - start
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def plain_broker(root: Path) -> Iterator[int]:
    """Yield the port of a mosquitto without TLS."""
    port = free_port()
    config = root / "plain.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        "max_inflight_messages 1000\nmax_queued_messages 100000\n"
    )
    process = subprocess.Popen([find_mosquitto(), "-c", config], stderr=subprocess.DEVNULL)
    try:
        wait("mosquitto", lambda: listens(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def raw_paho(port: int, qos: int, megabytes: int, pki: Path | None) -> float:
    """Time 64 KiB messages from a bare publisher to a bare subscriber, first to last."""
    words = [str(port), str(qos), str(megabytes), str(pki or "-")]
    listener = subprocess.Popen(
        [sys.executable, PEER, "hear", *words], stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    subprocess.run([sys.executable, PEER, "say", *words], check=True)
    seconds = float(listener.stdout.readline())
    listener.wait(30)
    return seconds


def bare_device(pki: Path) -> None:
    """Write certificate and key of the bare subscriber into the fleet's folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = Pki(pki).issue(csr(key), "bench-device", datetime.now(UTC))
    (pki / "bench-device.pem").write_text(issued.pem)
    (pki / "bench-device.key").write_bytes(pem(key))


def measure(megabytes: int, rounds: int) -> dict[str, Result]:
    """Return what every side needed."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        root = Path(name)
        made = bundle(root, megabytes)
        publisher(root / "fleet").publish(made)
        broker = stack.enter_context(mosquitto(root / "fleet"))
        plain = stack.enter_context(plain_broker(root))
        fleet = Fleet(root, broker)
        stack.callback(fleet.close)
        # A broker of their own: a second client with the fleet's certificate evicts the fleet.
        bare = stack.enter_context(mosquitto(root / "bare"))
        pki, port = root / "bare" / "pki", bare.address.port
        bare_device(pki)
        sides: dict[str, Callable[[Result], object]] = {
            "agent, MQTT (TLS)": lambda r: fleet.measure("mqtt", r),
            "agent, HTTPS range": lambda r: fleet.measure("https", r),
            "http.server, plain": lambda r: r.seconds.append(
                plain_http(root / "filler.bin", root / "copy.bin")
            ),
        }
        for qos in (0, 1):
            sides[f"paho, TLS, QoS {qos}"] = lambda r, q=qos: r.seconds.append(  # type: ignore[misc]
                raw_paho(port, q, megabytes, pki)
            )
            sides[f"paho, plain, QoS {qos}"] = lambda r, q=qos: r.seconds.append(  # type: ignore[misc]
                raw_paho(plain, q, megabytes, None)
            )
        results = {side: Result() for side in sides}
        for number in range(rounds):
            for side, run in sides.items():
                click.echo(f"round {number + 1}: {side}", err=True)
                run(results[side])
    return results


def table(results: dict[str, Result], megabytes: int) -> str:
    """Return RESULTS as a Markdown table."""
    base = statistics.median(results["http.server, plain"].seconds)
    lines = [
        "| side | MB/s | range | time to http.server | CPU s: agent, fleet, broker | RSS MiB |",
        "|---|---|---|---|---|---|",
    ]
    for side, result in results.items():
        middle = statistics.median(result.seconds)
        spread = sorted(megabytes / s for s in result.seconds)
        cpu = [f"{statistics.median(c):.2f}" for c in zip(*result.cpu, strict=True)]
        rss = (
            f"idle {max(result.idle_mb):.1f}, peak {max(result.peak_mb):.1f}"
            if result.peak_mb
            else ""
        )
        lines.append(
            f"| {side} | {megabytes / middle:.0f} | {spread[0]:.0f}-{spread[-1]:.0f} "
            f"| {middle / base:.2f} | {', '.join(cpu)} | {rss} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--mb", default=200, show_default=True, help="Megabytes in the bundle.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--write-page", is_flag=True, help=f"Put the table into {PAGE.name}.")
def main(mb: int, rounds: int, write_page: bool) -> None:
    """Measure and print a table."""
    found = table(measure(mb, rounds), mb)
    click.echo(found)
    if write_page:
        text = PAGE.read_text()
        head, _, rest = text.partition("<!-- table -->\n")
        tail = rest.partition("<!-- end -->\n")[2]
        said = f"{mb} MB, {rounds} rounds, {os.cpu_count()} CPUs:\n\n{found}\n\n"
        PAGE.write_text(f"{head}<!-- table -->\n{said}<!-- end -->\n{tail}")


if __name__ == "__main__":
    main()
