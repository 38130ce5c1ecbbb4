"""Simulated devices against a real fleet; and the promise that a bad model stops in wave 1."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_rig import AGENT, Device, digits_release
from digits import digits_data, exam_npz
from edgepack_fleet.cli.client import Client
from edgepack_fleet.simulation.driver import Simulation, allow_files
from edgepack_fleet.simulation.hub import Endpoint
from edgepack_fleet.simulation.local import LocalFleet
from edgepack_fleet.simulation.rehearsal import OVER, joined
from edgepack_fleet.simulation.scenario import Faults, Model, Scenario
from fleet_rig import free_port, wait
from hammer import Beside
from slots import Client as Asker

GROUP = "lab"
GATE = "agreement>=0.95"


class Bright(Beside):
    """Bright pictures for real devices, which the bad model answers otherwise."""

    def __init__(self, *devices: Device) -> None:
        super().__init__([lambda device=device: self._ask(device) for device in devices])  # type: ignore[misc]
        self.failures: list[BaseException] = []

    def _ask(self, device: Device) -> None:
        images = digits_data()[1].head(10).inputs
        try:
            while not self._stop.is_set():
                for image in images:
                    with Asker(device.api[0]) as client:
                        client.infer(1 - image)
                    self._stop.wait(0.02)
        except (OSError, AssertionError) as error:
            self.failures.append(error)


class Place:
    """A fleet as processes, its operator's client, and real devices."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet, self.client = fleet, Client(None, None, fleet.data)
        self.devices: list[Device] = []
        self.client.post("groups", body={"id": GROUP})

    def token(self, uses: int = 1) -> str:
        body = {"group": GROUP, "ttl_s": 3600, "uses": uses}
        return str(self.client.post("tokens", body=body)["token"])

    def agent(self, name: str) -> Device:
        """Enrol a real device by its own command, and start it."""
        home = self.fleet.home / name
        home.mkdir()
        device = Device(name, home, free_port())
        self.devices.append(device)
        device.configure_new()
        root = self.fleet.publisher / "metadata" / "1.root.json"
        words = ["--config", device.config, "enroll", self.token(), "--root", root, "--name", name]
        subprocess.run([AGENT, *words], check=True, capture_output=True)
        device.start()
        wait(f"{name} to connect", lambda: device.status().get("connected"), 60)
        return device

    def roll_out(self, version: str, waves: str, **policy: Any) -> str:
        body = {"release": f"digits@{version}", "group": GROUP, "waves": waves} | policy
        return str(self.client.post("rollouts", body=body)["id"])

    def rollout(self, rollout: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("rollouts", rollout)
        return found

    def ended(self, rollout: str, seconds: float) -> str:
        return wait(
            f"rollout {rollout} to end",
            lambda: s if (s := self.rollout(rollout)["state"]) in OVER else None,
            seconds,
        )

    def sentences(self, rollout: str) -> list[str]:
        found = self.client.get("rollouts", rollout, "decisions")
        return [decision["sentence"] for decision in found["decisions"]]

    @contextmanager
    def simulated(self, scenario: Scenario) -> Iterator[Simulation]:
        """Yield connected simulated devices."""
        where = Endpoint(str(self.fleet.socket))
        with joined(scenario, self.token(scenario.devices), where) as simulation:
            turn(simulation, "all to connect", lambda: simulation.connected_s is not None)
            yield simulation


def turn(
    simulation: Simulation, what: str, probe: Callable[[], object], seconds: float = 120
) -> None:
    """Let SIMULATION go on until PROBE finds something."""
    end = simulation.hub.clock() + seconds
    simulation.run(lambda: bool(probe()) or simulation.hub.clock() > end)
    assert probe(), f"waited {seconds} s for {what}"


class Beyond:
    """The end of a rollout, waited for beside the simulation, which must go on meanwhile."""

    def __init__(self, wait_for: Callable[[], str]) -> None:
        self.state = ""
        self.error: BaseException | None = None
        self._wait_for = wait_for
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.state = self._wait_for()
        except BaseException as error:
            self.error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    allow_files(3000)
    with LocalFleet(tmp_path) as fleet:
        fleet.start()
        found = Place(fleet)
        try:
            yield found
        finally:
            for device in found.devices:
                device.close()


def worse_in_the_field(place: Place, scenario: Scenario, wave: int, *real: Device) -> None:
    """Roll 3.0.0 out, which devices disagree with, and see it stopped in the first wave."""
    with place.simulated(scenario) as simulation, Bright(*real) as bright:
        policy = {"gates": [GATE], "on_breach": "revert", "shadow_s": 2, "probation_s": 1}
        rollout = place.roll_out("3.0.0", f"{wave},50%,100%", **policy)
        end = Beyond(lambda: place.ended(rollout, 600))
        turn(simulation, "the rollout to end", lambda: end.over, 630)
        assert end.error is None
        assert end.state == "reverted"
        for device in real:
            device.comes_to_serve("digits@1.0.0")
        assert simulation.drain(60), "every report is acknowledged"
        assert {d.release for d in simulation.devices} == {"digits@1.0.0"}
        told = simulation.result().count
        assert told.told == told.made
    assert bright.failures == []
    given = {d["id"]: d["wave"] for d in place.rollout(rollout)["devices"] if d["wave"] is not None}
    assert given.keys() >= {device.name for device in real}, "they were in the first wave"
    assert set(given.values()) == {0}, "nobody else got it"
    assert len(given) == wave
    said = place.sentences(rollout)
    assert any("in wave 1 agreement is 0" in s and "wanted is >= 0.95" in s for s in said), said
    assert "reverting" not in said, "no person asked for it"


def publish(place: Place, **bad: Any) -> None:
    """Publish 1.0.0 with an exam, and 3.0.0."""
    home, exam = place.fleet.home / "models", str(exam_npz(place.fleet.home / "exam.npz"))
    place.fleet.publish([digits_release(home, "1.0.0")], "--exam", exam, "--min-score", "0.9")
    place.fleet.publish([digits_release(home, "3.0.0", **bad)])


BAD = {"digits@3.0.0": Model(agreement=0.6)}


@pytest.mark.scale
@pytest.mark.mosquitto
def test_a_model_that_is_worse_in_the_field_stops_in_the_first_wave(place: Place) -> None:
    publish(place)
    scenario = Scenario(
        devices=100, release="digits@1.0.0", install_s=(0.1, 0.5), checks=0.2, models=BAD
    )
    worse_in_the_field(place, scenario, 5)


@pytest.mark.mosquitto
@pytest.mark.scale
@pytest.mark.timeout(1500)
def test_of_two_thousand_devices_only_the_first_wave_sees_a_bad_model(place: Place) -> None:
    """Two of them are agents with real models, of which the new one passes all it is asked."""
    publish(place, dazzled=True)
    real = place.agent("cam-1"), place.agent("cam-2")
    old = place.roll_out("1.0.0", "100%", probation_s=0)
    assert place.ended(old, 120) == "completed"
    # Those that come later run it already; nobody is to be given it once more.
    place.client.post("rollouts", old, "cancel")
    scenario = Scenario(
        devices=2000, release="digits@1.0.0", install_s=(0.5, 2), checks=0.2, models=BAD,
        connects_per_s=300,
    )  # fmt: skip
    worse_in_the_field(place, scenario, 40, *real)


@pytest.mark.mosquitto
@pytest.mark.scale
def test_nothing_is_lost_or_counted_twice_over_bad_links(place: Place) -> None:
    faults = Faults(loss=0.1, disconnects_per_hour=600, reboots=0.5, away_s=(0.1, 0.5))
    scenario = Scenario(
        devices=20, release="digits@1.0.0", telemetry_s=0.5, inferences_per_s=20, faults=faults,
        resend_s=2, answer_s=2,
    )  # fmt: skip
    with place.simulated(scenario) as simulation:
        turn(
            simulation,
            "reboots and losses",
            lambda: simulation.tally.disconnects > 15 and simulation.tally.lost > 20,
        )
        assert simulation.drain(120)
        made = simulation.result().count
        counted = sum(d["inferences"] for d in place.client.items("devices", group=GROUP))
        result = simulation.result(counted)
    assert made.made > 0
    assert result.exact, result.count
    assert result.messages["sent_again"] > 0
