"""The running fleet on a real broker: devices over TLS, jobs, telemetry, content, sudden ends."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from edgepack import messages, topics
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, OutboxRow, TelemetryRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service
from edgepack_fleet.web import views
from fleet_rig import Device, Mosquitto, enrol, mosquitto, publisher, running, wait

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "fleet"


@pytest.fixture
def broker(data: Path) -> Iterator[Mosquitto]:
    with mosquitto(data) as found:
        yield found


@pytest.fixture
def fleet(data: Path, broker: Mosquitto) -> Iterator[Service]:
    publisher(data).release()
    with running(data, broker.address) as service:
        yield service


@pytest.fixture
def cam(fleet: Service, broker: Mosquitto) -> Iterator[Device]:
    device = Device(enrol(fleet, "cam"), broker.address)
    device.connect()
    yield device
    device.leave()


def online(fleet: Service, name: str) -> bool:
    with fleet.database.read() as session:
        return bool(session.get_one(DeviceRow, name).online)


def state(fleet: Service, rollout: str) -> str:
    with fleet.database.read() as session:
        found = views.rollout(session, rollout)
    assert found is not None
    return found.state


def test_a_device_gets_its_job_and_the_rollout_completes(fleet: Service, cam: Device) -> None:
    wait("the birth to arrive", lambda: online(fleet, "cam"))
    assert cam.job() is None
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    cam.hears("job/notify")
    job = cam.waits_for_job()
    assert (job.release, job.target) == ("digits@1.0.0", "models/digits/1.0.0/onnx-int8.json")
    assert fleet.director.metadata("cam", "timestamp.json") is not None
    job = cam.update(job, "IN_PROGRESS", state="downloading", progress=0.3)
    cam.update(job, "SUCCEEDED")
    wait("the rollout to complete", lambda: state(fleet, rollout) == "completed")
    with fleet.database.read() as session:
        shown = views.device(session, "cam")
    assert shown is not None
    assert (shown.bundle, shown.desired, shown.target) == ("digits@1.0.0", "digits@1.0.0", "onnx")


def test_telemetry_is_acknowledged_after_it_is_saved_and_counted_once(
    fleet: Service, cam: Device
) -> None:
    def row(seq: int) -> messages.Telemetry:
        return messages.Telemetry(boot="b", seq=seq, start=0.0, end=1.0, inferences=5)

    cam.say("tele", messages.encode_batch([row(0), row(1), row(4)]))
    first = messages.decode(cam.hears("ack")[1], messages.Ack)
    assert (first.boot, first.upto, first.missing) == ("b", 4, (2, 3))
    cam.say("tele", messages.encode_batch([row(1), row(2), row(3)]))
    second = messages.decode(cam.hears("ack")[1], messages.Ack)
    assert (second.upto, second.missing) == (4, ())
    with fleet.database.read() as session:
        assert session.scalar(select(func.count()).select_from(TelemetryRow)) == 5
        assert session.get_one(DeviceRow, "cam").inferences == 25


def test_metadata_and_content_come_in_blocks(fleet: Service, cam: Device) -> None:
    cam.say("meta", messages.MetaRequest(xfer="m1", repo="image", name="timestamp.json"))
    head = messages.decode(cam.hears("meta/m1/head")[1], messages.Head)
    kind, block = cam.hears("meta/m1/")
    assert (head.status, head.size, kind) == (200, len(block), "meta/m1/0")
    assert block == fleet.images.metadata("timestamp.json")

    cam.say("meta", messages.MetaRequest(xfer="m2", repo="director", name="9.root.json"))
    assert messages.decode(cam.hears("meta/m2/head")[1], messages.Head).status == 404

    content = bytes(range(256)) * 600
    import hashlib

    sha256 = hashlib.sha256(content).hexdigest()
    fleet.content.put(sha256, [content])
    request = messages.BlobRequest(xfer="b1", sha256=sha256, size=len(content), start=1, n=8)
    cam.say("blob", request)
    got = dict(cam.hears("blob/b1/") for _ in range(2))
    assert got == {"blob/b1/1": content[65536:131072], "blob/b1/2": content[131072:]}

    refusals = {
        "b2": (messages.BlobRequest(xfer="b2", sha256="0" * 64, size=1, start=0, n=1), 404),
        "b3": (messages.BlobRequest(xfer="b3", sha256=sha256, size=1, start=0, n=1), 416),
        "b4": (
            messages.BlobRequest(xfer="b4", sha256=sha256, size=len(content), start=3, n=1),
            416,
        ),
    }
    for xfer, (wanted, status) in refusals.items():
        cam.say("blob", wanted)
        head = messages.decode(cam.hears(f"blob/{xfer}/head")[1], messages.Head)
        assert head.status == status


def test_what_cannot_be_read_is_counted_and_refused_where_it_has_a_token(
    fleet: Service, cam: Device
) -> None:
    cam.say("tele", b"\xff\x00")
    cam.say("job/get", b'{"token": 5}')
    cam.say("job/update", b'{"token": "t9", "job": 7}')
    cam.say("meta", messages.MetaRequest(xfer="../+/#", repo="image", name="timestamp.json"))
    cam.say("nonsense", b"{}")
    kind, payload = cam.hears("job/update")
    refusal = messages.decode(payload, messages.Rejected)
    assert (kind, refusal.token, refusal.code) == ("job/update/rejected", "t9", "bad_message")
    wait("everything to be counted", lambda: sum(fleet.uplink.refused.values()) >= 4)
    wait("the transfer to be counted", lambda: fleet.transfer.refused["bad_message"] == 1)
    assert cam.job() is None, "the fleet still answers"


def test_one_device_cannot_speak_as_another_nor_hear_it(
    fleet: Service, broker: Mosquitto, cam: Device
) -> None:
    thief = Device(enrol(fleet, "thief"), broker.address)
    thief.connect(client_id="cam")  # the certificate's name counts, not this one
    try:
        thief.client.subscribe([("ep/1/d/cam/dn/#", 1), ("ep/1/d/+/dn/#", 1), ("#", 1)])
        forged = messages.Telemetry(boot="x", seq=0, start=0.0, end=0.0, inferences=10**6)
        thief.client.publish(topics.up("cam", "tele"), messages.encode_batch([forged]), 1)
        thief.client.publish(topics.down("cam", "job/notify"), b"{}", 1)
        thief.say("tele", messages.encode_batch([forged]))
        thief.hears("ack")
        cam.say("tele", messages.encode_batch([forged]))
        heard = [cam.hears("")[0]]
        assert heard == ["ack"], "nothing but its own acknowledgement"
        with fleet.database.read() as session:
            rows = session.scalars(select(TelemetryRow.device_id)).all()
        assert sorted(rows) == ["cam", "thief"]
        assert thief.heard.empty(), "it heard nothing of the other's"
        assert cam.client.is_connected(), "it was not put out by its own name"
    finally:
        thief.leave()


def test_a_stranger_without_a_certificate_does_not_get_in(broker: Mosquitto, data: Path) -> None:
    import ssl

    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.tls_set_context(ssl.create_default_context(cafile=str(data / "pki" / "ca.pem")))
    answers: list[object] = []
    client.on_connect = lambda *args: answers.append(args[3])
    client.on_disconnect = lambda *args: answers.append("closed")
    client.connect(broker.address.host, broker.address.port)
    deadline = time.monotonic() + 5
    while not answers and time.monotonic() < deadline:
        client.loop(0.1)
    assert answers in (["closed"], []) or str(answers[0]) != "Success"


def test_presence_follows_the_connection_that_was_born_last(
    fleet: Service, broker: Mosquitto, cam: Device
) -> None:
    wait("the device to be online", lambda: online(fleet, "cam"))
    cam.say("conn", messages.Conn(online=False, conn="an earlier one"))
    cam.job()  # what it said before has been read by now
    assert online(fleet, "cam"), "an old will is old news"
    cam.forget()
    wait("the will to be told", lambda: not online(fleet, "cam"))
    cam.connect(conn="c2")
    wait("the device to be back", lambda: online(fleet, "cam"))


def test_the_broker_is_killed_in_the_middle(fleet: Service, broker: Mosquitto, cam: Device) -> None:
    wait("the device to be online", lambda: online(fleet, "cam"))
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    job = cam.update(cam.waits_for_job(), "IN_PROGRESS")
    broker.kill()
    cam.forget()
    wait("the fleet to notice", lambda: not fleet.link.connected)
    broker.start()
    wait("the fleet to come back", lambda: fleet.link.connected)
    cam.connect(conn="c2")
    assert cam.waits_for_job() == job
    cam.update(job, "SUCCEEDED")
    wait("the rollout to complete", lambda: state(fleet, rollout) == "completed")


def test_what_devices_say_while_the_fleet_is_away_is_not_lost(
    data: Path, broker: Mosquitto
) -> None:
    publisher(data).release()
    with running(data, broker.address) as first:
        cam = Device(enrol(first, "cam"), broker.address)
        cam.connect()
        wait("the device to be online", lambda: online(first, "cam"))
        rollout = first.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
        job = cam.update(cam.waits_for_job(), "IN_PROGRESS")
    update = messages.JobUpdate(token="late", job=job.job, version=job.version, status="SUCCEEDED")
    cam.say("job/update", update)
    with running(data, broker.address) as second:
        # The broker may bring again what the first one had saved, so other answers may come before.
        while (heard := cam.hears("job/update"))[1].find(b"late") < 0:
            assert heard[0] == "job/update/accepted"
        assert heard[0] == "job/update/accepted"
        wait("the rollout to complete", lambda: state(second, rollout) == "completed")
    cam.leave()


def test_a_hint_that_was_saved_but_not_sent_goes_out_after_a_restart(
    data: Path, broker: Mosquitto
) -> None:
    with running(data, broker.address) as first:
        cam = Device(enrol(first, "cam"), broker.address)
        cam.connect()
    from edgepack_fleet import store
    from edgepack_fleet.adapters.database import Database

    database = Database.in_directory(data)
    with database.write() as session:
        session.add(store.hint("cam", time.time()))
    database.close()
    with running(data, broker.address) as second:
        cam.hears("job/notify")
        wait("the outbox to be empty", lambda: not _outbox(second))
    cam.leave()


def _outbox(fleet: Service) -> int:
    with fleet.database.read() as session:
        return session.scalar(select(func.count()).select_from(OutboxRow)) or 0


def test_a_device_that_accepts_and_goes_silent_times_out_and_pauses_the_rollout(
    fleet: Service, cam: Device
) -> None:
    wait("the device to be online", lambda: online(fleet, "cam"))
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy(timeout_s=0.5))
    cam.update(cam.waits_for_job(), "IN_PROGRESS")
    wait("the rollout to pause", lambda: state(fleet, rollout) == "paused")
    with fleet.database.read() as session:
        assert session.scalars(select(JobRow.status)).all() == ["TIMED_OUT"]
        found = views.rollout(session, rollout)
    assert found is not None
    assert "timed_out" in found.reason
