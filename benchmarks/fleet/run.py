"""A fleet with ever more devices: what enrolment, connecting, reports and a rollout cost.

    python benchmarks/fleet/run.py --devices 1000,3000,10000 --mtls 1000 --write-page

Everything is real but the devices: mosquitto, `edgepack fleet serve`, bundles, repositories. One
fleet for each number of devices, in a temporary directory; processor seconds and memory are read
from /proc, per process.
"""

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.bundle import write_bundle
from edgepack.manifest import (
    Agreement,
    Binding,
    Golden,
    Manifest,
    Provenance,
    Target,
    TensorSpec,
)
from edgepack_fleet.simulation.driver import Simulation
from edgepack_fleet.simulation.local import LocalFleet
from edgepack_fleet.simulation.rehearsal import GROUP, Rehearsal, counted
from edgepack_fleet.simulation.scenario import Scenario

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks-fleet.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"
TICKS = os.sysconf("SC_CLK_TCK")
KEY = ec.derive_private_key(20261126, ec.SECP256R1())
LONGEST_S = 3600
HEAD = ("devices", "stage", "seconds", "CPU s: fleet, broker, devices", "CPU ms a device: fleet",
        "RSS MiB: fleet, broker, devices", "database MiB")  # fmt: skip


def bundle(home: Path, version: str) -> Path:
    """Write a bundle of arbitrary bytes: no simulated device runs it."""
    home.mkdir(parents=True, exist_ok=True)
    contents = {
        "model/model.onnx": random.Random(version).randbytes(200_000),
        "golden/inputs.npz": b"what went in",
        "golden/outputs.npz": b"what came out",
    }
    files = {}
    for path, content in contents.items():
        files[path] = home / f"{version}-{path.replace('/', '-')}"
        files[path].write_bytes(content)
    spec = TensorSpec(
        name="x", shape=(1, 4), dtype="float32", binding=Binding(native_name="x", permutation=None)
    )
    manifest = Manifest(
        schema="edgepack.bundle/v1", name="bench", version=version, build_id="", task="classify",
        target=Target(runtime="onnx", min_runtime="1.23", precision="int8",
                      execution_precision="f32"),
        inputs=(spec,), outputs=(msgspec.structs.replace(spec, name="y"),),
        agreement=Agreement(rule="top1", output="y"),
        golden=Golden(inputs="golden/inputs.npz", outputs="golden/outputs.npz", samples=4),
        provenance=Provenance(source_sha256="0" * 64, source_format="onnx"),
        labels=("a", "b", "c", "d"), files=(),
    )  # fmt: skip
    return write_bundle(home / "dist", manifest, files, key=KEY).path


class Meter:
    """Reads what the processes have used since the last look."""

    def __init__(self, fleet: LocalFleet, devices: int, began: tuple[float, float]) -> None:
        broker, served = fleet.pids()
        self._pids = {"fleet": served, "broker": broker, "devices": os.getpid()}
        self._data, self._count = fleet.data, devices
        self._at, mine = began
        self._cpu = {"fleet": 0.0, "broker": 0.0, "devices": mine}
        self.rows: list[dict[str, Any]] = []

    def stage(self, name: str, **more: Any) -> None:
        """Note what it took since the last stage."""
        now = {label: _cpu(pid) for label, pid in self._pids.items()}
        spent = {label: round(now[label] - self._cpu[label], 1) for label in now}
        seconds = time.monotonic() - self._at
        files = self._data.glob("fleet.db*")
        row = {
            "devices": self._count,
            "stage": name,
            "seconds": round(seconds, 1),
            "cpu_s": spent,
            "rss_mb": {label: round(_rss(pid)) for label, pid in self._pids.items()},
            "database_mb": round(sum(f.stat().st_size for f in files) / 2**20, 1),
        } | more
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        self._cpu, self._at = now, time.monotonic()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(devices: int, *, mtls: bool, minutes: float) -> list[dict[str, Any]]:
    """Return the stages of one fleet."""
    scenario = Scenario(
        devices=devices, release="bench@1.0.0", telemetry_s=30.0, install_s=(1, 3), checks=0.01,
        connects_per_s=500.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        home = Path(name)
        bundles = tuple(bundle(home / "bundles", version) for version in ("1.0.0", "2.0.0"))
        rehearsal = Rehearsal(scenario, home / "fleet", bundles, mtls, _say)
        began = time.monotonic(), _cpu(os.getpid())
        with rehearsal.running() as (fleet, client, simulation):
            meter = Meter(fleet, devices, began)
            label = " (mTLS)" if mtls else ""
            meter.stage(f"enrol{label}")
            simulation.run(lambda: simulation.connected_s is not None)
            meter.stage(f"connect{label}")
            simulation.run(lambda: simulation.waiting() == 0)
            _turn(simulation, 60 * minutes)
            meter.stage(f"telemetry, {minutes:g} min{label}", reports=simulation.tally.rows)
            body = {"release": "bench@2.0.0", "group": GROUP, "waves": "1,10%,100%",
                    "probation_s": 2}  # fmt: skip
            rollout = client.post("rollouts", body=body)["id"]
            state = _until_over(simulation, fleet, rollout)
            meter.stage(f"rollout{label}", state=state)
            exact = simulation.drain(300) and simulation.result(counted(client)).exact
            meter.stage(f"count{label}", exact=exact, ack_ms=simulation.result().ack_ms,
                        sent_again=simulation.tally.again)  # fmt: skip
    return meter.rows


def _turn(simulation: Simulation, seconds: float) -> None:
    end = time.monotonic() + seconds
    simulation.run(lambda: time.monotonic() >= end)


def _until_over(simulation: Simulation, fleet: LocalFleet, rollout: str) -> str:
    """Look at the state in the database: who asks over REST would be measured, too."""
    database = sqlite3.connect(f"file:{fleet.data}/fleet.db?mode=ro", uri=True)
    end, state, looked = time.monotonic() + LONGEST_S, "running", 0.0

    def over() -> bool:
        nonlocal state, looked
        if time.monotonic() - looked > 0.5:
            looked = time.monotonic()
            query = "SELECT state FROM rollouts WHERE id = ?"
            state = database.execute(query, (rollout,)).fetchone()[0]
        return state != "running" or looked > end

    simulation.run(over)
    database.close()
    return state


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Return ROWS as a table."""
    lines = [" | ".join(HEAD), "|".join("---" for _ in HEAD)]
    for row in rows:
        each = 1000 * row["cpu_s"]["fleet"] / row["devices"]
        cells = (row["devices"], row["stage"], row["seconds"], _three(row["cpu_s"]), f"{each:.1f}",
                 _three(row["rss_mb"]), row["database_mb"])  # fmt: skip
        lines.append(" | ".join(map(str, cells)))
    counts = [row for row in rows if "exact" in row]
    said = "; ".join(
        f"{row['devices']}: {'exact' if row['exact'] else 'NOT EXACT'}, acknowledged after "
        f"{row['ack_ms'].get('p50')} ms at the median, {row['ack_ms'].get('p95')} ms at 95 %, "
        f"{row['sent_again']} reports sent again"
        for row in counts
    )
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines) + (
        f"\n\nCounts of the devices against the fleet's: {said}.\n"
    )


def _three(values: dict[str, Any]) -> str:
    return ", ".join(str(values[name]) for name in ("fleet", "broker", "devices"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1000,3000,10000")
    parser.add_argument("--mtls", default="1000", help="numbers with certificates; empty: none")
    parser.add_argument("--minutes", type=float, default=3.0, help="of telemetry alone")
    parser.add_argument("--rows", type=Path, help="write the rows as JSON; add to what is there")
    parser.add_argument("--write-page", action="store_true")
    args = parser.parse_args()
    kept = json.loads(args.rows.read_text()) if args.rows and args.rows.exists() else []
    for numbers, mtls in ((args.devices, False), (args.mtls, True)):
        for number in filter(None, numbers.split(",")):
            kept += measure(int(number), mtls=mtls, minutes=args.minutes)
            if args.rows:
                args.rows.write_text(json.dumps(kept))
    print(table(kept))
    if args.write_page:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table(kept)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
