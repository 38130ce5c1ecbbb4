"""What `privacy` says is what is sent: held against what a real fleet receives at each level."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from agent_rig import Device, Site, site
from edgepack.messages import Telemetry
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.adapters.reports import Reports
from edgepack_agent.core.privacy import example, leaves
from edgepack_agent.core.state import Publish
from edgepack_agent.core.telemetry import Level
from edgepack_fleet.adapters.tables import TelemetryRow
from fleet_rig import wait

AGENT = Path(sys.executable).with_name("edgepack-agent")
NOTHING = msgspec.to_builtins(Telemetry(boot="b", seq=0, start=0, end=0))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def told(row: dict[str, Any]) -> set[str]:
    """Return the fields of ROW that say something."""
    return {name for name, value in row.items() if value != NOTHING.get(name)}


def said(device: Device) -> dict[str, Any]:
    words = [AGENT, "--config", device.config, "privacy", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    "level", ["off", pytest.param("health", marks=pytest.mark.soak), "metrics"]
)
def test_no_more_is_sent_than_is_said(place: Site, level: Level) -> None:
    device = place.running_1(telemetry={"level": level, "interval_s": 0.5})
    device.accuracy(30)
    found = said(device)
    assert found["level"] == level
    assert found["to"] == f"{place.broker.address.host}:{place.broker.address.port}"

    def rows() -> list[dict[str, Any]]:
        with place.service.database.read() as session:
            return [row.body for row in session.scalars(select(TelemetryRow))]

    if level == "off":
        wait("another look", lambda: device.ask("sync")["connected"])
        assert rows() == []
        assert found["example"] is None
        assert "up/tele" not in found["leaves"]
        return
    wait("telemetry", lambda: sum(row["inferences"] for row in rows()) >= 30)
    allowed = told(found["example"]) | {"seq", "boot", "start", "end", "lost", "supersedes"}
    for row in rows():
        assert told(row) <= allowed
    if level == "metrics":
        assert any(row["classes"] for row in rows())


def test_each_level_says_more_than_the_one_before() -> None:
    assert example("off") is None
    health, metrics = example("health"), example("metrics")
    assert health
    assert metrics
    assert told(health) < told(metrics)
    assert leaves("off").keys() < leaves("health").keys()
    assert "drift" not in leaves("off")["up/evt"]
    assert "drift" in leaves("health")["up/evt"]


@pytest.mark.parametrize(("level", "told"), [("off", 0), ("health", 1), ("metrics", 1)])
def test_what_is_learnt_by_watching_stays_here_if_nothing_may_be_told(
    tmp_path: Path, level: Level, told: int
) -> None:
    box = Outbox(tmp_path / "outbox.db")
    reports = Reports(box, level, lambda _kind, _payload: True)
    reports.noticed(Publish("drift", "m@1.0.0", "d", "confidence", {"psi": 0.5}))
    assert len(box) == told
    reports.event(Publish("activated", "m@1.0.0", "d", "", {}))
    assert len(box) == told + 1
    box.close()
