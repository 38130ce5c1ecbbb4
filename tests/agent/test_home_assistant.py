"""Home Assistant finds a device and its model over a real broker, in the form it asks for."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import paho.mqtt.client as mqtt
import pytest
from PIL import Image

from agent_rig import Site, site
from edgepack.errors import UsageError
from edgepack_agent.adapters.announcer import Announcer
from edgepack_agent.core.announcement import Names, Sights, discovery, messages
from edgepack_agent.settings import load_config
from fleet_rig import house, wait

TEXT = {"type": "string", "minLength": 1}
TOPIC = {"type": "string", "pattern": "^[^+#]+$"}
COMMON = {"p": TEXT, "name": TEXT, "unique_id": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
          "state_topic": TOPIC}  # fmt: skip
# https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
# https://www.home-assistant.io/integrations/update.mqtt/
# https://www.home-assistant.io/integrations/binary_sensor.mqtt/
# https://www.home-assistant.io/integrations/sensor.mqtt/
# https://www.home-assistant.io/integrations/event.mqtt/
# https://www.home-assistant.io/integrations/image.mqtt/
SCHEMA = {
    "type": "object",
    "required": ["dev", "o", "cmps"],
    "additionalProperties": False,
    "properties": {
        "dev": {
            "type": "object",
            "required": ["ids"],
            "additionalProperties": False,
            "properties": {
                "ids": {"type": "array", "items": TEXT, "minItems": 1},
                "name": TEXT, "mf": TEXT, "mdl": TEXT, "sw": TEXT,
            },
        },
        "o": {"type": "object", "required": ["name"], "properties": {"name": TEXT, "sw": TEXT}},
        "availability": {
            "type": "array", "items": {"type": "object", "required": ["topic"]}, "minItems": 1,
        },
        "cmps": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "oneOf": [
                    {
                        "required": ["p", "unique_id", "state_topic"],
                        "additionalProperties": False,
                        "properties": COMMON | {
                            "p": {"const": "update"}, "command_topic": TOPIC,
                            "payload_install": TEXT,
                        },
                    },
                    {
                        "required": ["p", "unique_id", "state_topic"],
                        "additionalProperties": False,
                        "properties": COMMON | {
                            "p": {"const": "binary_sensor"},
                            "device_class": {"enum": ["connectivity", "occupancy"]},
                            "payload_on": TEXT, "payload_off": TEXT, "value_template": TEXT,
                            "json_attributes_topic": TOPIC,
                        },
                    },
                    {
                        "required": ["p", "unique_id", "state_topic", "event_types"],
                        "additionalProperties": False,
                        "properties": COMMON | {
                            "p": {"const": "event"},
                            "event_types": {"type": "array", "items": TEXT, "minItems": 1},
                        },
                    },
                    {
                        "required": ["p", "unique_id", "image_topic"],
                        "additionalProperties": False,
                        "properties": {
                            "p": {"const": "image"}, "name": TEXT, "image_topic": TOPIC,
                            "unique_id": COMMON["unique_id"], "content_type": TEXT,
                        },
                    },
                    {
                        "required": ["p", "unique_id", "state_topic", "value_template"],
                        "additionalProperties": False,
                        "properties": COMMON | {
                            "p": {"const": "sensor"}, "value_template": TEXT,
                            "unit_of_measurement": TEXT, "state_class": {"const": "measurement"},
                            "entity_category": {"const": "diagnostic"},
                            "device_class": {"const": "data_size"},
                        },
                    },
                ]
            },
        },
    },
}  # fmt: skip
STATUS = {
    "bundle": "person@1.4.0", "digest": "sha256:ab", "phase": "idle", "rss_mb": 43.1, "job": None,
    "cameras": {"Front door": {"online": True, "fps": 4.9}, "yard": {"online": False, "fps": 0.0}},
    "drift": {"alarms": ["classes"]},
}  # fmt: skip


ODD = ("person", 'it\'s }} "odd" \\ {% x', "Löwe 🦁", "a b", "a_b")
"""Labels that a template must not stumble over."""


@pytest.mark.parametrize("sights", [Sights(), Sights(None), Sights(ODD, pictures=True)])
@pytest.mark.parametrize("device", ["cam-1", "Büro 7", "a.b"])
def test_the_discovery_message_is_what_home_assistant_asks_for(device: str, sights: Sights) -> None:
    names = Names(device)
    payload = discovery(names, "0.1.0", STATUS, sights)
    jsonschema.validate(payload, SCHEMA)
    parts = payload["cmps"].values()
    assert len({part["unique_id"] for part in parts}) == len(payload["cmps"])
    kinds = [part["p"] for part in parts]
    assert kinds.count("event") == (2 if sights.told else 0), "one for each camera"
    assert kinds.count("image") == 2 * sights.pictures
    assert kinds.count("binary_sensor") == 2 + 2 * sights.told + 2 * len(sights.labels or ())
    told = messages(names, STATUS, {} if sights.told else None)
    events = {names.camera(camera, "events") for camera in STATUS["cameras"]}
    topics = {part["state_topic"] for part in parts if part["p"] != "image"}
    assert topics <= told.keys() | events
    assert any("objects" in topic for topic in told) == sights.told


@pytest.mark.parametrize("label", ODD)
def test_a_template_says_whether_its_label_is_there(label: str) -> None:
    """Home Assistant's templates are Jinja; `value_json` is the message."""
    parts = discovery(Names("cam"), "0", STATUS, Sights((label,)))["cmps"]

    def state(part: str, objects: dict[str, int]) -> str:
        jinja = jinja2.Environment(autoescape=False)
        template = jinja.from_string(parts[part]["value_template"])
        return template.render(value_json=json.loads(json.dumps(objects)))

    (own,) = [key for key in parts if key.startswith("label_yard_")]
    other = {"other": 2}
    assert [state(own, found) for found in ({label: 1} | other, other, {})] == ["ON", "OFF", "OFF"]
    assert [state("seen_yard", found) for found in (other, {})] == ["ON", "OFF"]
    assert [state("objects_yard", found) for found in ({label: 1} | other, {})] == ["3", "0"]


def test_the_model_is_an_update_that_waits_while_there_is_a_job() -> None:
    names = Names("cam-1")
    topic = "edgepack/cam-1/update/state"
    idle = json.loads(messages(names, STATUS)[topic])
    assert (idle["installed_version"], idle["latest_version"]) == ("1.4.0", "1.4.0")
    offered = STATUS | {"job": {"id": "j", "release": "person@1.5.0"}}
    found = json.loads(messages(names, offered)[topic])
    assert (found["installed_version"], found["latest_version"]) == ("1.4.0", "1.5.0")
    assert found["title"] == "person"
    none = json.loads(messages(names, {})[topic])
    assert none["installed_version"] is None


@pytest.mark.parametrize(
    ("address", "login"),
    [("http://127.0.0.1", False), ("mqtt://", False), ("mqtt://10.0.0.7", True)],
)
def test_a_broker_that_must_not_be_told_is_refused(
    tmp_path: Path, address: str, login: bool
) -> None:
    (tmp_path / "password").write_text("a-secret-of-somebody\n")
    user = ("me", tmp_path / "password") if login else None
    with pytest.raises(UsageError) as refused:
        Announcer(address, Names("cam"), "0", user, lambda: None)
    assert refused.value.reason == "bad_events"
    assert "a-secret" not in refused.value.diagnostics()


def test_half_a_login_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("events: {broker: 'mqtt://127.0.0.1', username: me}\n")
    with pytest.raises(UsageError, match="events"):
        load_config(path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


@pytest.mark.mosquitto
def test_a_device_is_found_told_of_and_asked_over_a_real_broker(
    place: Site, tmp_path: Path
) -> None:
    with house(tmp_path) as (port, heard, client):
        device = place.running_1(
            events={"broker": f"mqtt://127.0.0.1:{port}"},
            sources=[{"name": "door", "source": "test:pattern"}],
            sightings={"frames": [1, 3]},
            snapshots={"keep": 2, "publish": True},
            poll_s=3600,
        )
        seen: dict[str, Any] = {}
        events: list[dict[str, Any]] = []

        def latest(topic: str) -> Any:
            while not heard.empty():
                message = heard.get()
                seen[message.topic] = message.payload
                if message.topic == "edgepack/cam/camera/door/events":
                    events.append(json.loads(message.payload))
            return seen.get(topic)

        def objects() -> Any:
            payload = latest("edgepack/cam/camera/door/objects")
            return json.loads(payload) if payload else None

        def update() -> Any:
            payload = latest("edgepack/cam/update/state")
            return json.loads(payload)["installed_version"] if payload else None

        wait("the model", lambda: update() == "1.0.0", 40)
        jsonschema.validate(json.loads(latest("homeassistant/device/cam/config")), SCHEMA)
        wait("the camera", lambda: latest("edgepack/cam/camera/door/status") == b"online", 30)
        assert latest("edgepack/cam/available") == b"online"
        wait("what it sees", objects)
        picture = wait("a picture", lambda: latest("edgepack/cam/camera/door/snapshot"))
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "JPEG"
        old = {event["digest"] for event in events}
        assert len(old) == 1
        # Home Assistant starts: everything is told again.
        seen.clear()
        client.publish("homeassistant/status", "online", qos=1)
        wait("it again", lambda: latest("homeassistant/device/cam/config"), 30)
        # The button of the update: the device looks for a job at once, which it would in an hour.
        place.publish("1.1.0")
        rollout = place.roll_out("1.1.0", probation_s=0)
        client.publish("edgepack/cam/update/set", "install", qos=1)
        assert place.ended(rollout) == "completed"
        wait("the new model", lambda: update() == "1.1.0", 30)
        wait("the new model's eyes", lambda: objects() and events[-1]["digest"] not in old)
        assert device.stop() == 0
        wait("goodbye", lambda: latest("edgepack/cam/available") == b"offline")
        assert objects() == {}
        # Whatever the models saw began once and ended once, also over the update and the end.
        told = [(event["id"], event["event_type"]) for event in events]
        begun = [name for name, kind in told if kind == "new"]
        assert len(set(begun)) == len(begun)
        assert {name for name, kind in told if kind == "end"} == set(begun)
        assert len(told) == 2 * len(begun)
        assert {event["camera"] for event in events} == {"door"}
        assert all(event["snapshot"] for event in events)
        assert 1 <= len(list((device.data / "snapshots" / "door").iterdir())) <= 2
        # Who comes later finds no picture and no event that is over.
        kept: list[str] = []
        late = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        late.on_message = lambda _c, _d, message: kept.append(message.topic)
        late.connect("127.0.0.1", port)
        late.subscribe("#", qos=1)
        late.loop_start()
        wait("what is kept", lambda: "edgepack/cam/camera/door/objects" in kept)
        late.publish("last", "word", qos=1)
        wait("all of it", lambda: "last" in kept)
        late.disconnect()
        late.loop_stop()
        assert not [topic for topic in kept if topic.endswith(("snapshot", "events"))]
        assert all(event["end_time"] for event in events if event["event_type"] == "end")
