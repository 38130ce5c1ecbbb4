"""Where devices are tortured: a real fleet process, a real broker, agents under strace.

The fleet's database is read, and rollouts are made, through the fleet's own parts in this
process; everything that talks to devices runs in the process that may be killed.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from agent_rig import Device, Site
from crashstates.watched import Plug, Watched, python_path
from digits import accuracy, digits_data
from edgepack.chunks import CHUNK_SIZE
from edgepack_agent.adapters.control import call
from edgepack_agent.adapters.identity import load_identity
from edgepack_agent.adapters.partial import Partial
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.tables import EventRow, JobRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service, Settings
from fleet_rig import mosquitto, publisher
from netfaults import Proxy
from slots import Client

__all__ = ["Bench", "Patient", "bench"]

PADDING = 3 * CHUNK_SIZE + 12345
GOOD = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
BAD = {"2.0.0": "acceptance_below_limit", "4.0.0": "golden_mismatch"}


class Patient:
    """A device on the bench: its plug, its cable, and what the fleet knows of it."""

    def __init__(self, place: "Bench", device: Device, proxy: Proxy) -> None:
        self.bench, self.device, self.proxy = place, device, proxy
        found = load_identity(device.data / "identity")
        assert found is not None
        self.name, self.group = found.device, found.group
        log = device.home / "agent.log"
        log.touch()
        self.plug = Plug(device.name, device.data, device.config, log)
        self._socket = device.home / "run" / "control.sock"
        self.rss = 0.0
        place.watched.add(self.plug)

    def start(self) -> None:
        self.bench.watched.start(self.plug)

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):
            found = call(self._socket, "status", None, timeout_s=20)
            self._weigh()
            return found
        return {}

    def _weigh(self) -> None:
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{self.plug.pid}/statm").read_text().split()[1])
            self.rss = max(self.rss, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def answers(self, count: int = 4) -> float:
        """Return the share of COUNT digits that it gets right; 0 while it does not answer."""
        test = digits_data()[1].head(count)
        try:
            with Client(str(self.device.home / "run" / "infer.sock")) as client:
                outputs = [client.infer(image)[0][0] for image in test.inputs]
        except Exception:  # it is killed now and then
            return 0.0
        return accuracy(outputs, test.labels)

    def runners(self) -> list[int]:
        """Return the runner processes it may have, oldest first."""
        known = Path(f"{self.bench.runners}.pids")
        lines = known.read_text().splitlines() if known.exists() else []
        pids = [line.split()[0] for line in lines if str(self.device.data) in line]
        return [int(pid) for pid in pids if self._is_runner(pid)]

    def _is_runner(self, pid: str) -> bool:
        """Say whether PID still is a runner of this bench: numbers are soon used again."""
        with contextlib.suppress(OSError):
            return str(self.bench.runners).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    # -- what the fleet knows

    def roll_out(self, version: str, probation_s: int) -> str:
        rollouts = self.bench.site.service.rollouts
        policy = Policy(
            probation_s=probation_s, timeout_s=300.0, max_attempts=1, penalty_failures=0
        )
        return rollouts.create(f"digits@{version}", self.group, "100%", policy)

    def job(self, rollout: str) -> tuple[str, str]:
        """Return status and reason of the job of ROLLOUT; empty while there is none."""
        with self.bench.site.service.database.read() as session:
            row = session.scalars(select(JobRow).where(JobRow.rollout_id == rollout)).first()
            return (row.status, row.reason) if row else ("", "")

    def events(self, kind: str) -> list[str | None]:
        """Return the releases of its events of KIND, in the order they happened."""
        with self.bench.site.service.database.read() as session:
            rows = session.scalars(
                select(EventRow).where(EventRow.device_id == self.name, EventRow.type == kind)
            ).all()
            return [row.body["bundle"] for row in sorted(rows, key=lambda row: row.body["ts"])]

    # -- bytes

    def served(self) -> int:
        """Return the bytes of blobs that the fleet has sent to it, once that has settled."""
        last = -1
        while (now := self.bench.counted(self.name)) != last:
            last = now
            time.sleep(0.05)
        return now

    def kept(self) -> int:
        """Return the bytes of blobs that are on its disk and believed."""
        blobs = self.device.data / "blobs"
        kept = sum(p.stat().st_size for p in blobs.glob("[0-9a-f]*")) if blobs.exists() else 0
        with tempfile.TemporaryDirectory(dir=self.bench.root) as copy:
            place = Path(copy) / "parts"
            with contextlib.suppress(FileNotFoundError):
                shutil.copytree(self.device.data / "parts", place)
            for marks in sorted(place.glob("*.map")) if place.exists() else ():
                size = self.bench.sizes.get(marks.stem)
                if size is not None:
                    with Partial(place, marks.stem, size, ()) as part:
                        missing = sum(end - first for first, end in part.missing())
                    chunks = -(-size // CHUNK_SIZE)
                    kept += max(0, min(size, (chunks - missing) * CHUNK_SIZE))
        return kept

    def litter(self) -> list[str]:
        """Return the files in its data directory that should not be there when it is idle."""
        data = self.device.data
        names = [p.relative_to(data).as_posix() for p in data.rglob("*")]
        known = {"lock", "identity", "trust", "blobs", "parts", "slots", "results", "api-token"}
        found = []
        for name in names:
            top, _, rest = name.partition("/")
            last = name.rpartition("/")[2]
            # Of a model whose list of files is here.
            compiled = top == "compiled" and (data / "blobs" / rest.partition("/")[0]).exists()
            fine = (
                compiled
                or top in known
                or top.startswith(("journal.db", "outbox.db", "floors.json"))
            )
            if not fine or last.startswith((".", "tmp")) or (top == "parts" and rest):
                found.append(name)
        models = {_sha256(path) for path in (data / "slots").rglob("*") if path.is_file()}
        blobs = [path for path in (data / "blobs").iterdir() if path.name not in models]
        # Beside the files of two models: their lists and configurations, and the exam.
        if len(blobs) > 5:
            found += [f"blobs/{path.name}" for path in blobs]
        return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Bench:
    """Fleet, broker and patients."""

    def __init__(self, root: Path, site: Site, watched: Watched) -> None:
        self.root, self.site, self.watched = root, site, watched
        self.runners = root / "runners.sock"
        self.sizes: dict[str, int] = {}
        self.patients: list[Patient] = []
        self._fleet: subprocess.Popen[bytes] | None = None
        self._counts: dict[str, int] = {}
        self._read = 0
        self._lock = threading.Lock()

    def publish(self, *versions: str) -> None:
        for version in versions:
            self.site.publish(version, lie=version == "4.0.0", padding=PADDING)
        for path in (self.root / "fleet" / "blobs").rglob("*"):
            if path.is_file():
                self.sizes[path.name] = path.stat().st_size

    def start_fleet(self) -> None:
        address = self.site.broker.address
        words = [str(self.site.service.settings.data), address.host, str(address.port)]
        with (self.root / "fleet.log").open("ab") as log:
            self._fleet = subprocess.Popen(
                [sys.executable, "-m", "crashstates.fleet", *words, str(self.root / "counts")],
                env=os.environ | {"PYTHONPATH": python_path()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.kill()
            self._fleet.wait()

    def add(self, name: str) -> Patient:
        proxy = Proxy((self.site.broker.address.host, self.site.broker.address.port))
        device = self.site.device(
            name,
            group=name,
            listen=None,
            broker=f"127.0.0.1:{proxy.port}",
            telemetry={"level": "metrics", "interval_s": 5},
            log_level="info",
        )
        patient = Patient(self, device, proxy)
        self.patients.append(patient)
        return patient

    def counted(self, device: str) -> int:
        with self._lock, contextlib.suppress(FileNotFoundError):
            with (self.root / "counts").open("rb") as file:
                file.seek(self._read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode().splitlines():
                name, _, size = line.split()
                self._counts[name] = self._counts.get(name, 0) + int(size)
        return self._counts.get(device, 0)

    def harm(self, dice: random.Random) -> str:
        """Kill something beside the agents, and bring it back; return what."""
        what = dice.choice(("broker", "fleet", "runner", "network", "network"))
        if what == "broker":
            self.site.broker.kill()
            time.sleep(dice.uniform(0, 0.5))
            self.site.broker.start()
        elif what == "fleet":
            self.kill_fleet()
            time.sleep(dice.uniform(0, 0.5))
            self.start_fleet()
        elif what == "runner":
            alive = dice.choice(self.patients).runners()
            if alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(alive), signal.SIGKILL)
        else:
            dice.choice(self.patients).proxy.drop()
        return what


@contextlib.contextmanager
def bench(devices: int, *versions: str) -> Iterator[Bench]:
    """Yield a bench with DEVICES devices, none of them started, and VERSIONS published."""
    there = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="edgepack-soak-", dir=there))
    data = root / "fleet"
    publisher(data)
    try:
        with mosquitto(data) as broker, Watched(root) as watched:
            service = Service(Settings(data, Address(broker.address.host, broker.address.port)))
            place = Bench(root, Site(root, broker, service), watched)
            try:
                place.publish(*versions)
                place.start_fleet()
                for number in range(devices):
                    place.add(f"cam{number}")
                yield place
            finally:
                place.kill_fleet()
                for patient in place.patients:
                    patient.plug.kill()
                    patient.proxy.close()
                service.database.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)
