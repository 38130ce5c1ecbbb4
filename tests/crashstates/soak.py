"""The soak: real agents update over and over while the plug is pulled, over and over.

Every device goes through updates to good and bad models, cut a few times each: its agent is
killed after a random operation on its files, or at a random time, and in most cases the disk
then loses what was not durable (see `disk`). Beside that, broker, fleet and runners are killed
and connections reset. After every cut the device must answer with the model it had, or the new
one; at the end of every update its files, its events and its job must be right.

Nothing here depends on time alone: a case that fails is told with its seed and its moment, and
its disk is kept.
"""

import argparse
import random
import re
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from crashstates.bench import BAD, GOOD, Bench, Patient, bench
from crashstates.disk import Disk, materialise
from crashstates.trace import Op
from edgepack.chunks import CHUNK_SIZE
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.adapters.transfer import WINDOW

__all__ = ["Course", "Tally", "main"]

PATIENCE_S = 60.0
UPDATE_S = 240.0
LIMIT = WINDOW * BLOCK_SIZE + CHUNK_SIZE
"""What a cut may cost: the window that was on its way, and a chunk."""
_DOWNLOADING = frozenset({"checking", "downloading", "verifying"})


_KINDS = (r".*", r"journal\.db-wal", r"slots.*|floors.*|\.part.*|trust.*", r"blobs.*|parts.*")


def _moment(dice: random.Random) -> Callable[[int, Op], bool]:
    """Return when to kill: at a random operation from now on, or a random one of some kind."""
    kind = re.compile(dice.choice(_KINDS))
    left = dice.randrange(1, 300 if kind.pattern == ".*" else 25)

    def now(_count: int, op: Op) -> bool:
        nonlocal left
        left -= bool(kind.fullmatch(op.path))
        return left <= 0

    return now


@dataclass
class Tally:
    """What happened so far, on all devices."""

    cuts: int = 0
    torn: int = 0
    lost: int = 0
    """Cuts at which the record did not tell the last call: only kills, then."""
    survived: int = 0
    harms: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    """In which phase the cuts fell."""
    endings: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    double: int = 0
    costs: list[int] = field(default_factory=list)
    """Bytes that were fetched again, per cut."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the start of an agent after a cut to its first right answers."""
    rollbacks: list[float] = field(default_factory=list)
    rss: float = 0.0
    failures: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def table(self) -> str:
        """Return the summary, a table in Markdown."""
        rows = [
            ("cuts", self.cuts),
            ("of which with lost or torn writes", self.torn),
            ("kills whose last call nobody saw", self.lost),
            ("followed by a right answer", self.survived),
            ("devices without a working model", self.cuts - self.survived),
            ("updates ended", sum(self.endings.values())),
            ("commits", self.commits),
            ("double commits", self.double),
            ("cuts whose cost in bytes was counted", len(self.costs)),
            ("bytes fetched again per cut, mean", _rounded(self.costs, statistics.fmean)),
            ("bytes fetched again per cut, most", max(self.costs, default=0)),
            ("allowed: window + 1 chunk", LIMIT),
            ("back in service after a cut, s, median", _median(self.recoveries)),
            ("back in service after a cut, s, most", round(max(self.recoveries, default=0), 2)),
            ("rollback, s, median", _median(self.rollbacks)),
            ("rollback, s, most", round(max(self.rollbacks, default=0), 3)),
            ("supervisor's RSS, MB, most", round(self.rss, 1)),
            ("other kills and resets", _listed(self.harms)),
            ("phases in which cuts fell", _listed(self.moments)),
            ("endings", _listed(self.endings)),
        ]
        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return "\n".join(lines)


def _rounded(values: list[int], of: Callable[[list[int]], float]) -> int:
    return round(of(values)) if values else 0


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3) if values else 0.0


def _listed(counter: "Counter[str]") -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


class Course:
    """The updates of one device, one after the other.

    Args:
        patient: The device.
        seed: Of everything that is random about it.
        tally: Where it is counted.
        keep: Where the disks of cases that fail are kept.
        versions: What it may be updated to; one that is named twice is twice as likely.
    """

    def __init__(
        self,
        patient: Patient,
        seed: int,
        tally: Tally,
        keep: Path,
        versions: tuple[str, ...] = (*GOOD, *GOOD, *BAD),
    ) -> None:
        self._versions = versions
        self._patient, self._tally, self._keep = patient, tally, keep
        self._dice = random.Random(seed)
        self._seed = seed
        self.current = ""
        self._unproved = 0
        """Cuts after which the device has not answered yet."""
        self._last = "nothing"
        self._commits: list[str] = []
        self._pulls = 0

    def begin(self) -> None:
        """Install the first model, undisturbed."""
        self._patient.start()
        self.current = GOOD[0]
        self._update(GOOD[0], cuts=0)

    def update(self) -> None:
        """Go through one more update, with some cuts."""
        others = [version for version in self._versions if version != self.current]
        self._update(self._dice.choice(others), cuts=self._dice.choice((1, 1, 1, 2, 2, 3)))

    def expect(self, commits: list[str | None]) -> None:
        """Take COMMITS as those that the fleet has heard of so far."""
        self._commits = [name for name in commits if name]

    def settle(self) -> None:
        """Prove what is still to be proved."""
        if not self._patient.plug.on:
            self._patient.start()
        self._prove({self.current})

    # -- one update

    def _update(self, version: str, cuts: int) -> None:
        patient, dice = self._patient, self._dice
        harms = sum(self._tally.harms.values())
        start_served, start_kept = patient.served(), patient.kept()
        spent = 0
        rollout = patient.roll_out(version, probation_s=dice.choice((0, 0, 1)))
        deadline = time.monotonic() + UPDATE_S
        allowed = {self.current, version}
        while True:
            if not patient.plug.on:
                patient.start()
            if cuts == 0 or dice.random() < 0.7:
                self._prove(allowed)
            if cuts:
                if not self._cut(rollout):
                    continue
                cuts -= 1
                phase = self._phase()
                self._count(phase)
                if phase in _DOWNLOADING and harms == sum(self._tally.harms.values()):
                    wasted = patient.served() - start_served - (patient.kept() - start_kept)
                    self._cost(max(0, wasted - spent))
                    spent = max(spent, wasted)
                continue
            if self._is_over(rollout):
                break
            if time.monotonic() > deadline:
                self._fail(f"the update to {version} does not end: {patient.job(rollout)}")
                break
            time.sleep(0.2)
        self._ended(rollout, version)

    def _cut(self, rollout: str) -> bool:
        """Wait for a random moment and cut there; say whether the agent was killed."""
        patient, dice = self._patient, self._dice
        timed = dice.random() < 0.15
        patient.plug.kill_when((lambda _count, _op: False) if timed else _moment(dice))
        latest = time.monotonic() + (dice.uniform(0, 2.5) if timed else 20)
        while not patient.plug.ended.wait(0.3):
            assert not patient.bench.watched.broken, patient.bench.watched.broken
            if time.monotonic() > latest or self._is_over(rollout):
                patient.plug.kill()
                patient.plug.ended.wait(10)
        followed = patient.plug.follows()
        if not followed:
            patient.plug.disk = Disk.read(patient.device.data)
        torn = followed and dice.random() < 0.7
        if torn:
            self._pulls += 1
            seed = dice.randrange(4, 1 << 30) if dice.random() < 0.7 else dice.randrange(4)
            ordered = dice.random() < 0.5
            self._last = (
                f"{'ordered' if ordered else 'posix'} cut, seed {seed}, after operation "
                f"{patient.plug.ops} ({patient.plug.last})"
            )
            patient.plug.pull(seed, ordered=ordered)
        else:
            self._last = f"kill after operation {patient.plug.ops} ({patient.plug.last})"
        with self._tally.lock:
            self._tally.cuts += 1
            self._tally.torn += torn
            self._tally.lost += not followed
        self._unproved += 1
        return True

    def _prove(self, allowed: set[str]) -> None:
        """Wait until the device answers, and right, with one of the models ALLOWED."""
        patient, begun = self._patient, time.monotonic()
        while time.monotonic() < begun + PATIENCE_S:
            if not patient.plug.on:
                patient.start()  # it gave up by itself; the service manager starts it again
            serving = (patient.status().get("serving") or "").partition("@")[2]
            if serving and patient.answers() >= 0.5:
                break
            time.sleep(0.03)
        else:
            self._fail(f"no answer for {PATIENCE_S} s")
            return
        if serving not in allowed:
            self._fail(f"{serving} answers, not one of {sorted(allowed)}")
            return
        with self._tally.lock:
            self._tally.survived += self._unproved
            if self._unproved:
                self._tally.recoveries.append(time.monotonic() - begun)
        self._unproved = 0

    def _is_over(self, rollout: str) -> bool:
        status, _ = self._patient.job(rollout)
        found = self._patient.status()
        return (
            status not in {"", "QUEUED", "IN_PROGRESS"}
            and found.get("phase") == "idle"
            and not found.get("unreported")
        )

    def _ended(self, rollout: str, version: str) -> None:
        status, reason = self._patient.job(rollout)
        kind = "good" if version in GOOD else "bad"
        with self._tally.lock:
            self._tally.endings[f"{kind} {status} {reason}".strip()] += 1
            self._tally.rss = max(self._tally.rss, self._patient.rss)
        if status == "SUCCEEDED":
            self.current = version
            if reason != "already_active":
                self._commits.append(f"digits@{version}")
                with self._tally.lock:
                    self._tally.commits += 1
        expected = {"good": ("SUCCEEDED", ""), "bad": ("REJECTED", BAD.get(version, ""))}[kind]
        # A candidate that sees too many restarts, or whose runner was killed twice, is given up.
        excused = {"restart_loop", "runner_exited", "already_active"}
        if (status, reason) != expected and reason not in excused:
            self._fail(f"the update to {version} ended as {status} {reason}")
        self._prove({self.current})
        self._check_events()
        if litter := self._litter():
            self._fail(f"left behind: {litter}")

    def _check_events(self) -> None:
        """Compare what the fleet heard about commits with the commits there were."""
        deadline = time.monotonic() + 30
        while len(found := self._patient.events("activated")) < len(self._commits):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        extra = max(0, len(found) - len(self._commits))
        with self._tally.lock:
            self._tally.double += extra
        if found != self._commits:
            self._fail(f"committed {self._commits[-4:]}, the fleet heard of {found[-4:]}")
            self._commits = [name for name in found if name]

    def _litter(self) -> list[str]:
        deadline = time.monotonic() + 5
        while (found := self._patient.litter()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    # -- counting

    def _phase(self) -> str:
        """Return the phase in which the disk says that the device is."""
        image = self._patient.plug.disk.seen()
        place = self._keep / f"journal-{self._patient.name}-{self._dice.random()}"
        names = ("journal.db", "journal.db-wal", "journal.db-journal")
        materialise({name: image[name] for name in names if name in image}, place)
        journal = Journal(place / "journal.db")
        journal.close()
        shutil.rmtree(place)
        return "lost" if journal.lost else journal.state.phase

    def _count(self, phase: str) -> None:
        with self._tally.lock:
            self._tally.moments[phase] += 1
        if phase == "lost":
            self._fail("the journal is lost")

    def _cost(self, cost: int) -> None:
        with self._tally.lock:
            self._tally.costs.append(cost)
        if cost > LIMIT:
            self._fail(f"the cut cost {cost} bytes, {LIMIT} are allowed")

    def _fail(self, what: str) -> None:
        patient = self._patient
        kept = self._keep / f"{patient.name}-{self._pulls}-{len(self._tally.failures)}"
        shutil.copytree(patient.device.data, kept, symlinks=True, ignore_dangling_symlinks=True)
        shutil.copy(patient.plug.log, kept / "agent.log")
        words = f"{patient.name} (seed {self._seed}): {what}; last {self._last}; see {kept}"
        with self._tally.lock:
            self._tally.failures.append(words)
        print(f"FAILED {words}", flush=True)


def run(
    cuts: int, seed: int, minutes: float, devices: int, keep: Path, harm_s: float = 15.0
) -> Tally:
    """Soak until CUTS cuts were made, or for MINUTES; return what happened."""
    tally, stop = Tally(), threading.Event()
    latest = time.monotonic() + minutes * 60
    with bench(devices, *GOOD, *BAD) as place:
        courses = [
            Course(patient, seed * 1000 + number, tally, keep)
            for number, patient in enumerate(place.patients)
        ]
        errors: list[BaseException] = []

        def follow(course: Course) -> None:
            try:
                course.begin()
                while tally.cuts < cuts and not errors and time.monotonic() < latest:
                    course.update()
                course.settle()
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=follow, args=(course,)) for course in courses]
        harmer = threading.Thread(target=_harm, args=(place, tally, stop, seed, harm_s))
        for thread in threads:
            thread.start()
        harmer.start()
        while any(thread.is_alive() for thread in threads):
            threads[0].join(30) if threads[0].is_alive() else time.sleep(1)
            print(f"{tally.cuts} cuts, {tally.torn} torn, {tally.survived} survived, "
                  f"{len(tally.failures)} failures", flush=True)  # fmt: skip
        stop.set()
        harmer.join()
        for patient in place.patients:
            tally.rollbacks += rollbacks(patient.plug.log.read_text(errors="replace"))
        if errors:
            raise errors[0]
    return tally


def _harm(place: Bench, tally: Tally, stop: threading.Event, seed: int, pause_s: float) -> None:
    dice = random.Random(seed)
    while pause_s and not stop.wait(dice.uniform(0.5, 1.5) * pause_s):
        done = place.harm(dice)
        with tally.lock:
            tally.harms[done] += 1


_MOVE = re.compile(r"^(\S+ \S+) INFO \S+: (\w+) -> (\w+)", re.MULTILINE)


def rollbacks(log: str) -> list[float]:
    """Return the seconds that each way back took, from the LOG of an agent."""
    found, begun = [], None
    for when, old, new in _MOVE.findall(log):
        moment = datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007
        if new == "rolling_back":
            begun = moment
        elif old == "rolling_back" and begun is not None:
            found.append((moment - begun).total_seconds())
            begun = None
    return found


def main() -> int:
    """Run the soak and print its table."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n")[0])
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rss-mb", type=float, default=60.0, help="ceiling of a supervisor")
    parser.add_argument("--keep", type=Path, default=Path("soak-failures"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    print(f"seed {args.seed}", flush=True)
    tally = run(args.cuts, args.seed, args.minutes, args.devices, args.keep.absolute())
    print(tally.table())
    for failure in tally.failures:
        print(f"FAILED {failure}")
    if tally.rss > args.rss_mb:
        print(f"FAILED a supervisor had {tally.rss:.1f} MB, the ceiling is {args.rss_mb}")
    return int(bool(tally.failures) or tally.rss > args.rss_mb)


if __name__ == "__main__":
    sys.exit(main())
