"""Runs a simulation: makes the devices, turns the hub, and says how it went."""

import contextlib
import random
import resource
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgepack.errors import UnsupportedError
from edgepack_fleet.simulation.behaviour import traits
from edgepack_fleet.simulation.checking import Checks
from edgepack_fleet.simulation.device import Device, Identity
from edgepack_fleet.simulation.hub import Endpoint, Hub
from edgepack_fleet.simulation.scenario import Scenario
from edgepack_fleet.simulation.tally import Count, Result, Tally

__all__ = ["Simulation", "allow_files"]

SPARE_FILES = 200


@dataclass(slots=True)
class Simulation:
    """Devices of a scenario against one broker.

    Args:
        scenario: What is simulated.
        identities: A device each.
        endpoint: The broker.
        image_root: First root of the image repository, for the checks.
    """

    scenario: Scenario
    identities: Sequence[Identity]
    endpoint: Endpoint
    image_root: bytes = b""
    tally: Tally = field(default_factory=Tally)
    hub: Hub = field(init=False)
    devices: list[Device] = field(init=False)
    connected_s: float | None = None
    _checks: Checks = field(init=False)
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self.hub = Hub(self.endpoint)
        self._checks = Checks(self.image_root)
        self._began = self.hub.clock()
        self.devices = [self._device(n, i) for n, i in enumerate(self.identities)]

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.hub.clock() - self._began

    def start(self) -> None:
        """Let the devices connect, at the pace of the scenario."""
        self._began = self.hub.clock()
        coming = [d for d in self.devices if not d.traits.offline]
        for index, device in enumerate(coming):
            self.hub.after(index / self.scenario.connects_per_s, device.start)

    def run(self, over: Callable[[], bool]) -> None:
        """Turn until OVER, which is asked often and must not wait."""
        while not over():
            self.hub.turn()
            if self.connected_s is None and self._all_here():
                self.connected_s = self.seconds

    def run_for(self, seconds: float | None) -> None:
        """Turn for SECONDS; None: until the keyboard interrupts."""
        end = None if seconds is None else self.hub.clock() + seconds
        with contextlib.suppress(KeyboardInterrupt):
            self.run(lambda: end is not None and self.hub.clock() >= end)

    def drain(self, seconds: float) -> bool:
        """Let devices tell a last report and wait for acknowledgements, for SECONDS at most.

        Returns:
            Whether everything that was made is acknowledged.
        """
        for device in self.devices:
            device.last_report()
        end = self.hub.clock() + seconds
        self.run(lambda: self.hub.clock() > end or not self.waiting())
        return not self.waiting()

    def waiting(self) -> int:
        """Return how many reports are not acknowledged yet."""
        return self.tally.rows - self.tally.released

    def close(self) -> None:
        """Let all devices leave."""
        self._checks.close()
        for device in self.devices:
            device.stop()
        self.hub.close()

    def result(self, counted: int | None = None) -> Result:
        """Return how it went; COUNTED is what the fleet says was inferred."""
        tally = self.tally
        told = sum(d.told for d in self.devices)
        count = Count(made=sum(d.inferences for d in self.devices), told=told, counted=counted)
        return Result(
            devices=len(self.devices),
            seconds=round(self.seconds, 1),
            connected_s=None if self.connected_s is None else round(self.connected_s, 1),
            states=dict(Counter(self._state(d) for d in self.devices)),
            releases=dict(Counter(d.release or "none" for d in self.devices)),
            jobs=dict(tally.jobs),
            messages={
                "sent": dict(tally.sent),
                "heard": dict(tally.heard),
                "lost": tally.lost,
                "reports": tally.rows,
                "acknowledged": tally.released,
                "sent_again": tally.again,
                "refused": dict(tally.refused),
                "connects": tally.connects,
                "disconnects": tally.disconnects,
            },
            checks=dict(tally.checks),
            fetched_bytes=tally.fetched_bytes,
            ack_ms=_quantiles(tally.ack_s),
            count=count,
            exact=None if counted is None else count.exact,
        )

    def _device(self, number: int, identity: Identity) -> Device:
        return Device(
            number,
            identity,
            self.scenario,
            traits(self.scenario, number),
            self.hub,
            self.tally,
            self._checks.check,
            random.Random(f"{self.scenario.seed}/{number}"),  # noqa: S311
        )

    def _all_here(self) -> bool:
        coming = [d for d in self.devices if not d.traits.offline]
        return self.tally.connects >= len(coming) and all(d.ever for d in coming)

    def _state(self, device: Device) -> str:
        if device.state in {"off", "silent"}:
            return device.state
        return device.state if device.online else "away"


def allow_files(wanted: int) -> None:
    """Let this process and its children open WANTED files and some more.

    Raises:
        UnsupportedError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UnsupportedError(
            f"{wanted} devices need {needed} open files",
            why=f"this process may have {hard}",
            fix="raise the limit (`ulimit -Hn`), or simulate fewer",
            reason="files",
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{p}": round(1000 * cuts[p - 1], 1) for p in (50, 95, 99)}
