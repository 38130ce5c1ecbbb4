"""What `privacy` says is what is sent: held against all messages of a real agent, at each level."""

import json
import queue
import subprocess
import sys
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from agent_rig import Device, Site, site
from edgepack import topics
from edgepack.dsse import contents, is_envelope
from edgepack.messages import Telemetry
from edgepack.signed import REPORT
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.adapters.reports import Reports
from edgepack_agent.core.announcement import Names
from edgepack_agent.core.effects import Publish
from edgepack_agent.core.privacy import example, fleet
from edgepack_agent.core.privacy import site as told_to_site
from edgepack_agent.core.telemetry import Level
from fleet_rig import Device as Played
from fleet_rig import enrol, house, wait

AGENT = Path(sys.executable).with_name("edgepack-agent")
SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "agent.privacy.schema.json"
NOTHING = msgspec.to_builtins(Telemetry(boot="b", seq=0, start=0, end=0))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def told(row: dict[str, Any]) -> set[str]:
    """Return the fields of ROW that say something."""
    return {name for name, value in row.items() if value != NOTHING.get(name)}


def said(device: Device, *more: str) -> str:
    words = [AGENT, "--config", device.config, "privacy", *more]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Ear:
    """Hears everything that devices say to their fleet, beside the fleet."""

    def __init__(self, place: Site) -> None:
        place.broker.kill()
        acl = place.broker.config.with_name("acl")
        acl.write_text(acl.read_text() + f"\nuser ear\ntopic read {topics.UPLINK_FILTER}\n")
        place.broker.start()
        self.played = Played(enrol(place.service, "ear", "ears"), place.broker.address)
        self.played.connect()
        ready: queue.Queue[int] = queue.Queue()
        self.played.client.on_subscribe = lambda *_: ready.put(1)
        self.played.client.subscribe(topics.UPLINK_FILTER, 1)
        ready.get(timeout=10)
        self.messages: list[tuple[str, bytes]] = []

    def heard(self, device: str) -> list[tuple[str, bytes]]:
        """Return what DEVICE has said so far, by kind."""
        while not self.played.heard.empty():
            self.messages.append(self.played.heard.get())
        prefix = topics.up(device, "")
        return [
            (f"up/{topic.removeprefix(prefix)}", payload)
            for topic, payload in self.messages
            if topic.startswith(prefix)
        ]


def opened(payload: bytes) -> tuple[set[str], Any]:
    """Return the keys around the message in PAYLOAD, and the message."""
    if not is_envelope(payload):
        return set(), msgspec.json.decode(payload)
    report = msgspec.json.decode(zlib.decompress(contents(REPORT, payload)))
    return set(report), report["body"]


def leaves_of(message: Any, before: str = "") -> set[str]:
    """Return the paths of MESSAGE to something that is said."""
    if isinstance(message, dict):
        parts = {f"{before}.{k}" if before else k: v for k, v in message.items()}
        return {path for name, value in parts.items() for path in leaves_of(value, name)}
    if isinstance(message, list) and message:
        return {path for value in message for path in leaves_of(value, before)}
    return set() if message is None or message == [] else {before}


def is_said(path: str, keys: list[str]) -> bool:
    before = path.rpartition(".")[0]
    return path in keys or (f"{before}.*" if before else "*") in keys


def unsaid(found: dict[str, Any], kind: str, payload: bytes) -> set[str]:
    """Return the paths of a message that `privacy`, which says FOUND, does not name."""
    if kind not in found["keys"]:
        return {kind}
    around, message = opened(payload)
    paths = leaves_of(message)
    return {p for p in paths if not is_said(p, found["keys"][kind])} | (around - {*found["signed"]})


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    "level",
    [
        pytest.param("off", marks=pytest.mark.soak),
        pytest.param("health", marks=pytest.mark.soak),
        "metrics",
    ],
)
def test_nothing_is_sent_that_is_not_said(place: Site, tmp_path: Path, level: Level) -> None:
    ear = Ear(place)
    with house(tmp_path) as (port, heard, _):
        device = place.running_1(
            telemetry={"level": level, "interval_s": 0.5, "max_kb_per_day": 9000},
            events={"broker": f"mqtt://127.0.0.1:{port}"},
            sources=[{"name": "Front door", "source": "test:pattern"}],
        )
        device.accuracy(30)
        place.publish("2.0.0")  # a model that is refused by its exam
        assert place.ended(place.roll_out("2.0.0")) == "paused"
        found = json.loads(said(device, "--json"))
        wait("the outbox to be empty", lambda: device.status()["outbox"]["rows"] == 0)
        messages = collected(heard, found["events"]["keys"])
        assert device.stop() == 0
        # The last word: what was said before it has been heard by then.
        wait("goodbye", lambda: b'"online":false' in ear.heard("cam")[-1][1])
        kinds = {kind for kind, _ in ear.heard("cam")}
        assert {"up/conn", "up/evt", "up/job/get", "up/job/update", "up/meta"} <= kinds
        assert ("up/tele" in kinds) == (level != "off")
        rest = {(kind, path) for kind, p in ear.heard("cam") for path in unsaid(found, kind, p)}
        assert rest == set()
        check_site(found["events"], messages)
    check_document(found, device, place, level)
    assert found["events"]["to"] == f"mqtt://127.0.0.1:{port}"
    rows = [row for kind, p in ear.heard("cam") if kind == "up/tele" for row in opened(p)[1]]
    if level == "metrics":
        assert sum(row["inferences"] for row in rows) >= 30
        assert any(row["classes"] for row in rows)
    ear.played.client.disconnect()
    ear.played.client.loop_stop()


def collected(heard: "queue.Queue[Any]", awaited: Collection[str]) -> list[Any]:
    """Return what the site has heard, once there is something on each topic that is AWAITED."""
    messages: list[Any] = []

    def all_there() -> bool:
        messages.extend(heard.get() for _ in range(heard.qsize()))
        return {message.topic for message in messages} >= {*awaited}

    wait(f"something on {awaited}", all_there, 30)
    return messages


def check_site(said: dict[str, Any], messages: list[Any]) -> None:
    assert {message.topic for message in messages} == said["keys"].keys() == said["leaves"].keys()
    for message in messages:
        payload = bytes(message.payload)
        paths = leaves_of(json.loads(payload)) if payload[:1] == b"{" else set()
        keys = said["keys"][message.topic]
        assert [path for path in paths if not is_said(path, keys)] == [], message.topic


def check_document(found: dict[str, Any], device: Device, place: Site, level: Level) -> None:
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["level"] == level
    assert found["to"] == f"{place.broker.address.host}:{place.broker.address.port}"
    assert (found["example"] is None) == ("up/tele" not in found["leaves"]) == (level == "off")
    assert found["leaves"].keys() - found["keys"].keys() == {"https"}
    words = said(device)
    topics_said = {**found["leaves"], **found["events"]["leaves"]}
    assert [topic for topic in topics_said if topic not in words] == []


def test_a_site_without_a_broker_is_told_nothing_and_no_password_is_shown(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    data = f"data_dir: {tmp_path}\n"
    device = Device("cam", tmp_path, 0)
    config.write_text(data)
    found = json.loads(said(device, "--json"))
    assert (found["to"], found["events"]) == (None, {"to": None, "leaves": {}, "keys": {}})
    assert "none is told" in said(device)
    config.write_text(f"{data}events: {{broker: 'mqtts://me:a-secret@house:8884'}}\n")
    assert json.loads(said(device, "--json"))["events"]["to"] == "mqtts://house:8884"
    assert "a-secret" not in said(device)


def test_cameras_are_named_by_the_topics_they_have() -> None:
    names = Names("cam")
    found = told_to_site(names, ["Front door"], "mqtt://house")
    assert f"{names.base}/camera/Front_door/status" in found.leaves
    assert "fps_Front_door" in found.keys[f"{names.base}/stats"]


def test_each_level_says_more_than_the_one_before() -> None:
    assert example("off") is None
    health, metrics = example("health"), example("metrics")
    assert health
    assert metrics
    assert told(health) < told(metrics)
    off, some = fleet("off", None), fleet("health", None)
    assert off.leaves.keys() < some.leaves.keys()
    assert "drift" not in off.leaves["up/evt"]
    assert "drift" in some.leaves["up/evt"]
    assert "detail.psi" not in off.keys["up/evt"]
    assert "classes" not in some.keys["up/tele"]


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


@pytest.mark.parametrize(
    ("more", "topics"),
    [
        ("events: {broker: 'mqtt://127.0.0.1'}", {"objects", "events"}),
        ("{events: {broker: 'mqtt://127.0.0.1'}, sightings: {labels: []}}", set()),
        (
            "{events: {broker: 'mqtt://127.0.0.1'}, snapshots: {keep: 5, publish: true}}",
            {"objects", "events", "snapshot"},
        ),
        ("snapshots: {keep: 5}", set()),
    ],
)
def test_what_cameras_see_is_named(tmp_path: Path, more: str, topics: set[str]) -> None:
    config = tmp_path / "agent.yaml"
    settings = yaml.safe_load(more) | {"sources": [{"name": "door", "source": "test:pattern"}]}
    config.write_text(yaml.safe_dump(settings | {"data_dir": str(tmp_path)}))
    words = [AGENT, "--config", config, "privacy", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)["events"]["leaves"]
    found = {topic.rpartition("/")[2] for topic in told if "/camera/" in topic} - {"status"}
    assert found == topics


def test_what_a_comparison_of_models_tells_is_named() -> None:
    keys = fleet("off", None).keys["up/job/update"]
    told = {key.rpartition(".")[2] for key in keys if key.startswith("detail.shadow.")}
    assert told == {"samples", "agreement", "p95_ratio", "dropped", "reason"}
