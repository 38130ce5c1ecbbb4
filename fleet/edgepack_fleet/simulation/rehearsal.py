"""A whole rehearsal: a fleet of its own, simulated devices, and a rollout if one is wanted."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgepack.errors import UnreachableError
from edgepack_fleet.cli.client import Client
from edgepack_fleet.simulation.device import inventory
from edgepack_fleet.simulation.driver import Simulation, allow_files
from edgepack_fleet.simulation.enrolment import enrol_all, read_token
from edgepack_fleet.simulation.hub import Endpoint
from edgepack_fleet.simulation.local import LocalFleet
from edgepack_fleet.simulation.scenario import Scenario
from edgepack_fleet.simulation.tally import Result

__all__ = ["GROUP", "Rehearsal", "Watcher", "joined"]

GROUP = "simulated"
TOKEN_S = 4 * 3600
DRAIN_S = 120.0
OVER = frozenset({"completed", "reverted", "cancelled", "paused"})
"""States in which nothing more comes of a rollout by itself."""
Say = Callable[[str], None]


@dataclass(slots=True)
class Watcher:
    """Looks at a rollout from a thread of its own: the fleet may take its time to answer."""

    ask: Callable[[], Mapping[str, Any]]
    pause_s: float = 1.0
    seen: Mapping[str, Any] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._look, name="watcher", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self.seen.get("state") in OVER

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(self.pause_s):
            try:
                self.seen = self.ask()
            except UnreachableError:
                continue


@dataclass(slots=True)
class Rehearsal:
    """Rehearses on a fleet of its own.

    Args:
        scenario: What is simulated.
        home: Where that fleet lives.
        bundles: What is published first.
        mtls: Whether devices connect with certificates, as real ones do.
        say: Told what happens.
    """

    scenario: Scenario
    home: Path
    bundles: tuple[Path, ...] = ()
    mtls: bool = False
    say: Say = lambda _: None

    @contextmanager
    def running(self) -> Iterator[tuple[LocalFleet, Client, Simulation]]:
        """Yield fleet, client and connecting devices; all end with it."""
        # A socket for the broker, one here; connections to the fleet on top.
        allow_files(self.scenario.devices + 500)
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with LocalFleet(self.home) as fleet:
            self.say("starting broker and fleet")
            fleet.start()
            client = Client(None, None, fleet.data)
            client.post("groups", body={"id": GROUP})
            if self.bundles:
                self.say(f"publishing {len(self.bundles)} bundle(s)")
                fleet.publish(self.bundles)
            made = client.post(
                "tokens",
                body={"group": GROUP, "ttl_s": TOKEN_S, "uses": self.scenario.devices},
            )
            self.say(f"enrolling {self.scenario.devices} devices")
            where = None if self.mtls else Endpoint(str(fleet.socket))
            with joined(self.scenario, made["token"], where) as simulation:
                yield fleet, client, simulation

    def run(self, seconds: float | None) -> Result:
        """Return how it went: until the rollout has ended, for SECONDS at most if given."""
        with self.running() as (fleet, client, simulation):
            self.say(f"fleet: {fleet.endpoints()['http']}  (data: {fleet.data})")
            deadline = None if seconds is None else time.monotonic() + seconds
            late = _past(deadline)
            simulation.run(lambda: simulation.connected_s is not None or late())
            after = simulation.connected_s
            self.say("not all connect" if after is None else f"connected after {after:.1f} s")
            rollout = self._rolled_out(client, simulation, late)
            self.say("waiting for the last reports")
            simulation.drain(DRAIN_S)
            result = simulation.result(counted(client))
            return msgspec.structs.replace(result, rollout=rollout, fleet=fleet.endpoints())

    def _rolled_out(
        self, client: Client, simulation: Simulation, late: Callable[[], bool]
    ) -> dict[str, Any] | None:
        wanted = self.scenario.rollout
        if wanted is None:
            simulation.run(late)
            return None
        made = client.post("rollouts", body=wanted | {"group": GROUP})
        self.say(f"rollout {made['id']} of {made['release']}")
        watcher = Watcher(lambda: client.get("rollouts", made["id"]))
        began = simulation.seconds
        watcher.start()
        try:
            simulation.run(lambda: watcher.over or late())
        finally:
            watcher.stop()
        last = watcher.seen or made
        told = {name: last[name] for name in ("id", "release", "state", "reason", "waves")}
        return told | {"seconds": round(simulation.seconds - began, 1)}


@contextmanager
def joined(scenario: Scenario, token: str, where: Endpoint | None) -> Iterator[Simulation]:
    """Yield devices of SCENARIO that enrol with TOKEN and begin to connect; they leave at the end.

    Args:
        scenario: What is simulated.
        token: An enrolment token for as many devices.
        where: A broker that asks for no certificates; None: the one that the fleet names.
    """
    names = [f"{scenario.prefix}-{number:05}" for number in range(scenario.devices)]
    enrolled = enrol_all(read_token(token), names, inventory(scenario), tls=where is None)
    endpoint = where or Endpoint(*enrolled.broker)
    simulation = Simulation(scenario, enrolled.identities, endpoint, enrolled.image_root)
    try:
        simulation.start()
        yield simulation
    finally:
        simulation.close()


def counted(client: Client) -> int:
    """Return how many inferences the fleet has counted of the simulated devices."""
    return sum(int(device["inferences"]) for device in client.items("devices", group=GROUP))


def _past(deadline: float | None) -> Callable[[], bool]:
    return lambda: deadline is not None and time.monotonic() >= deadline
