"""Several agents on one box, a line of models each: listed, and each one's business its own."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from agent_rig import AGENT, Site, digits_release, runners, site
from digits import exam_npz
from edgepack.errors import UsageError
from edgepack_agent.adapters.instances import check_name, find_instances, instance_config
from edgepack_agent.adapters.inventory import host_id
from edgepack_agent.core.announcement import Names, discovery
from edgepack_agent.core.sharing import thread_share
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.web import lists, queries
from fleet_rig import publisher, wait
from hammer import Hammer

LINES = {"door": "letters", "plates": "digits"}
"""The instances of the box and what each serves."""


def command(box: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the device's command line with the configurations in BOX."""
    return subprocess.run(
        [AGENT, "--config", box / "agent.yaml", *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def document(box: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = command(box, *words, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Box:
    """A box with two agents, `threads` left to them."""

    def __init__(self, place: Site) -> None:
        self.place, self.root = place, place.root
        self.agents = {name: place.device(name, group=name, threads=None) for name in LINES}
        for line in LINES.values():
            self.publish(line, "1.0.0")
        for name, agent in self.agents.items():
            agent.start = lambda name=name: self.start(name)  # type: ignore[method-assign]
            agent.start()
        for name in LINES:
            self.roll_out(name, "1.0.0")

    def start(self, name: str) -> None:
        """Start the agent NAME by the name of the instance, as its unit does."""
        agent = self.agents[name]
        with (agent.home / "agent.log").open("ab") as log:
            agent.process = subprocess.Popen(
                [AGENT, "--config", self.root / "agent.yaml", "--instance", name, "run"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def publish(self, line: str, version: str) -> None:
        bundle = digits_release(self.root / "models", version, line=line)
        exam = exam_npz(self.root / "exam.npz")
        publisher(self.place.service.settings.data).publish(bundle, exam=exam, min_score=0.9)

    def roll_out(self, name: str, version: str) -> None:
        agent = self.agents[name]
        wait("the agent to connect", lambda: agent.status().get("connected"), 30)
        policy = Policy(probation_s=0, max_attempts=1, penalty_failures=0)
        release = f"{LINES[name]}@{version}"
        rollout = self.place.service.rollouts.create(release, name, "100%", policy)
        assert self.place.ended(rollout) == "completed"
        agent.comes_to_serve(release)

    def at(self, name: str) -> list[Any]:
        return [("127.0.0.1", self.agents[name].port)]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with site(tmp_path_factory.mktemp("box")) as place:
        yield Box(place)


@pytest.mark.mosquitto
def test_one_is_updated_while_the_other_answers_every_request(box: Box) -> None:
    door, plates = box.agents["door"], box.agents["plates"]
    before = runners(plates)
    with Hammer(box.at("plates")) as hammer:
        hammer.wait_for(20)
        box.publish("letters", "1.1.0")
        box.roll_out("door", "1.1.0")
        hammer.forget()
        answered = hammer.wait_for(20)
    assert hammer.failures == []
    assert set(answered) == {plates.status()["digest"]}
    assert runners(plates) == before
    assert door.serving() == "letters@1.1.0"


@pytest.mark.mosquitto
def test_the_box_lists_its_agents_and_their_models(box: Box) -> None:
    for agent in box.agents.values():
        wait("a model", lambda agent=agent: agent.serving(), 60)  # type: ignore[misc]
    found = {row["name"]: row for row in document(box.root, "status", "--all")["instances"]}
    assert set(found) == set(LINES)
    for name, row in found.items():
        assert row["status"]["device"] == name
        assert row["status"]["serving"].startswith(LINES[name])
        assert row["config"] == str(box.root / name / "agent.yaml")
    models = {row["name"]: row["model"] for row in document(box.root, "models")["instances"]}
    assert {name: model["name"] for name, model in models.items()} == LINES
    assert all(model["state"] == "READY" for model in models.values())
    assert models["door"]["listen"] == f"127.0.0.1:{box.agents['door'].port}"
    table = command(box.root, "models").stdout.splitlines()
    assert [line.split()[0] for line in table] == list(LINES)
    one = document(box.root, "--instance", "plates", "status")
    assert one["device"] == "plates"


@pytest.mark.mosquitto
def test_they_share_the_processor(box: Box) -> None:
    share = thread_share(len(os.sched_getaffinity(0)), 2)
    for agent in box.agents.values():
        (pid,) = wait("a runner", lambda agent=agent: runners(agent), 60)  # type: ignore[misc]
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert f'"threads":{share}' in line.replace(" ", ""), line


@pytest.mark.mosquitto
@pytest.mark.skipif(not host_id(), reason="this system has no machine id")
def test_the_fleet_knows_that_they_share_a_box(box: Box) -> None:
    def hosts() -> set[str] | None:
        with box.place.service.database.read() as session:
            rows = session.scalars(select(DeviceRow)).all()
            found = {row.inventory.get("host", "") for row in rows}
            return None if "" in found else found

    assert wait("both inventories", hosts) == {host_id()}
    with box.place.service.database.read() as session:
        for asked, expected in ((host_id(), sorted(LINES)), ("another", [])):
            items = lists.devices(session, queries.DeviceQuery(host=asked)).items  # type: ignore[call-arg]
            assert [device.id for device in items] == expected


@pytest.mark.mosquitto
def test_one_that_is_down_is_said_to_be(box: Box) -> None:
    plates = box.agents["plates"]
    assert plates.stop() == 0
    try:
        rows = {r["name"]: r for r in document(box.root, "status", "--all", code=8)["instances"]}
        assert rows["plates"]["error"]["reason"] == "agent_unreachable"
        assert rows["door"]["status"]["serving"]
    finally:
        plates.start()
        plates.comes_to_serve("digits@1.0.0")


@pytest.mark.mosquitto
def test_one_that_crashes_again_and_again_is_not_noticed_by_the_other(box: Box) -> None:
    door, plates = box.agents["door"], box.agents["plates"]
    before = runners(plates)
    with Hammer(box.at("plates")) as hammer:
        for _ in range(3):
            (pid,) = wait("a runner", lambda: runners(door), 60)
            os.kill(pid, signal.SIGKILL)
            wait("its end", lambda pid=pid: pid not in runners(door))  # type: ignore[misc]
        hammer.forget()
        hammer.wait_for(20)
    assert hammer.failures == []
    assert runners(plates) == before
    assert plates.status()["phase"] == "idle"


def test_names_of_instances_are_files_and_units_and_nothing_else(tmp_path: Path) -> None:
    for good in ("a", "plates", "door-2", "x_y", "0" * 32):
        assert instance_config(good, tmp_path).parent.parent == tmp_path
    for bad in ("", "-a", "a-", "A", "conf.d", "a/b", "..", "a b", "a@b", "é", "0" * 33, "a\n"):
        with pytest.raises(UsageError) as refused:
            check_name(bad)
        assert refused.value.reason == "bad_instance"


def test_an_instance_that_is_not_there_is_an_error_that_names_those_that_are(
    tmp_path: Path,
) -> None:
    (tmp_path / "door").mkdir()
    (tmp_path / "door" / "agent.yaml").write_text("{}")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "agent.yaml").write_text("{}")
    assert [each.name for each in find_instances(tmp_path)] == ["door"]
    (tmp_path / "agent.yaml").write_text("{}")
    assert [each.name for each in find_instances(tmp_path)] == ["", "door"]
    done = command(tmp_path, "--instance", "plate", "status")
    assert done.returncode == 2
    assert "no instance plate" in done.stderr
    assert "instances here: door" in done.stderr
    assert "--instance plate service install" in done.stderr


@given(st.integers(1, 256), st.integers(1, 64))
def test_shares_are_never_more_than_there_is(cores: int, agents: int) -> None:
    share = thread_share(cores, agents)
    if agents == 1:
        assert share is None, "one alone is left to its runtime"
    else:
        assert share is not None
        assert share >= 1
        assert share == 1 or share * agents <= cores


def test_entities_of_two_agents_of_a_box_do_not_clash() -> None:
    status = {"cameras": {"yard": {"online": True}}}
    found = [discovery(Names(device), "1", status) for device in LINES]
    ids = [{part["unique_id"] for part in each["cmps"].values()} for each in found]
    assert not ids[0] & ids[1]
    assert found[0]["dev"]["ids"] != found[1]["dev"]["ids"]
    topics = [{p["state_topic"] for p in each["cmps"].values()} for each in found]
    assert not topics[0] & topics[1]


def test_the_host_id_tells_boxes_apart_and_nothing_of_them(tmp_path: Path) -> None:
    ids = [tmp_path / "a", tmp_path / "b", tmp_path / "first-boot"]
    for path, text in zip(ids, ("0" * 32, "1" * 32, "uninitialized"), strict=True):
        path.write_text(f"{text}\n")
    a, b, early = map(host_id, ids)
    assert len(a) == len(b) == 32
    assert a != b
    assert "0" * 8 not in a
    assert early == host_id(tmp_path / "nothing") == ""
