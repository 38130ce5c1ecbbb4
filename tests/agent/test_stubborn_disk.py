"""A real supervisor on a disk that refuses: it goes on, and finishes once it can."""

import json
import queue
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError, IntegrityError, UsageError
from edgepack.messages import Ack, JobReply, decode
from edgepack_agent.adapters.control import Asked
from edgepack_agent.adapters.identity import write_identity
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.config import Config
from edgepack_agent.console import Console
from edgepack_agent.core import deadlines
from edgepack_agent.core.state import Job, Model, Slot, State
from edgepack_agent.parts import Parts, assemble
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.supervisor import Supervisor
from fleet_rig import wait
from slots import digits_slot


def config(home: Path) -> Config:
    return Config(data_dir=home / "data", run_dir=home / "run", threads=1, runtimes=("onnx",))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    files = {"image-root.json": b"{}", "director-root.json": b"{}"}
    place = tmp_path / "data" / "identity"
    write_identity(place, device="cam", group="lab", broker=("127.0.0.1", 1), files=files)
    return assemble(config(tmp_path))


class Running:
    """A supervisor in a thread of its own."""

    def __init__(self, parts: Parts) -> None:
        self.supervisor = Supervisor(parts)
        self.thread = threading.Thread(target=self.supervisor.run)

    def __enter__(self) -> Supervisor:
        self.thread.start()
        return self.supervisor

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


def close(parts: Parts) -> None:
    with Running(parts):
        pass


def slot_a(parts: Parts, epoch: int = 0) -> Slot:
    directory = digits_slot(parts.config.data_dir / "slots" / "a")
    digest = open_slot(directory).digest.removeprefix("sha256:")
    model = Model("digits@1.0.0", "models/digits/1.0.0/onnx.json", digest, 1, epoch)
    return Slot("a", model)


def job(slot: Slot) -> Job:
    return Job("job-1", slot.model.release, slot.model.path, 0.0, 60.0)


def test_a_commit_is_tried_until_the_floor_can_be_written(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(deadlines._SECONDS, "committed", 0.1)
    slot = slot_a(parts, epoch=3)
    parts.journal.save(State(phase="committed", current=slot, job=job(slot)))
    tries: list[int] = []
    confirm = parts.floors.confirm

    def refusing(line: str, epoch: int) -> None:
        tries.append(epoch)
        if len(tries) < 4:
            raise OSError(28, "No space left on device")
        confirm(line, epoch)

    monkeypatch.setattr(parts.floors, "confirm", refusing)
    with Running(parts) as supervisor:
        wait("the commit", lambda: supervisor.state.phase == "idle")
    assert len(tries) == 4
    assert parts.floors.epoch("digits") == 3


def test_an_update_under_way_does_not_keep_the_agent_from_starting(parts: Parts) -> None:
    slot = slot_a(parts)
    candidate = replace(slot, name="b")
    parts.journal.save(State(phase="probation", current=slot, candidate=candidate, job=job(slot)))
    parts.journal.close()
    with Running(parts):
        wait("the current model", parts.serving.answering)


def test_a_mistake_of_ours_does_not_stop_inference(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.journal.save(State(current=slot_a(parts)))

    def mistake() -> None:
        raise ZeroDivisionError("nobody thought of this")

    with Running(parts) as supervisor:
        wait("the model", parts.serving.answering)
        pid = parts.serving.answering().runner.pid
        supervisor.post(mistake)
        heard: queue.SimpleQueue[bool] = queue.SimpleQueue()
        supervisor.post(lambda: heard.put(True))
        assert heard.get(timeout=20)
        assert parts.serving.answering().runner.pid == pid
    assert "nobody thought of this" in caplog.text


def test_a_command_that_cannot_be_noted_is_answered_once(parts: Parts) -> None:
    slot = slot_a(parts)
    parts.journal.save(State(phase="checking", job=job(slot)))
    supervisor = Supervisor(parts)
    console, asked = Console(parts, supervisor), Asked("rollback")
    parts.journal.close()
    console.asked(asked)
    assert asked.reply.result(0)["error"]["reason"] == "storage"
    console.phase_changed(State())
    close(parts)


def test_two_agents_never_share_their_data(parts: Parts, tmp_path: Path) -> None:
    elsewhere = Config(data_dir=parts.config.data_dir, run_dir=tmp_path / "other")
    with pytest.raises(UsageError) as refused:
        assemble(elsewhere)
    assert refused.value.reason == "already_running"
    close(parts)


def test_an_outbox_that_cannot_be_read_is_an_error_with_a_reason(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox.db")
    box.close()
    for use in (box.take, lambda: len(box), lambda: box.acknowledge(Ack(boot="b", upto=1))):
        with pytest.raises(EdgepackError) as failed:
            use()
        assert failed.value.reason == "storage"


def test_numbers_that_no_database_holds_end_nothing(parts: Parts) -> None:
    huge = 2**64
    ack = {"v": 1, "boot": parts.outbox.boot, "upto": huge}
    parts.reports.acknowledged(json.dumps(ack).encode())
    reply = {"token": "t", "job": {
        "job": "j", "version": 1, "status": "QUEUED", "release": "a@1", "target": "t",
        "timeout_s": 10**400,
    }}  # fmt: skip
    with pytest.raises(IntegrityError):
        decode(json.dumps(reply).encode(), JobReply)
    close(parts)


def test_what_a_cut_left_half_written_goes_at_the_next_start(parts: Parts) -> None:
    left = parts.config.data_dir / ".part-abc"
    left.write_bytes(b"half")
    close(parts)
    close(assemble(parts.config))
    assert not left.exists()
