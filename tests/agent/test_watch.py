"""The model that serves is watched after its commit too: a hang ends its runner, a takeover not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack_agent.adapters.identity import write_identity
from edgepack_agent.config import Config
from edgepack_agent.core.state import Model, Slot
from edgepack_agent.parts import Parts, assemble
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.serving import Spoke
from edgepack_agent.supervisor import Supervisor
from edgepack_agent.watch import HUNG_S, Watch
from slots import digits_slot


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    files = {"image-root.json": b"{}", "director-root.json": b"{}"}
    place = tmp_path / "data" / "identity"
    write_identity(place, device="cam", group="lab", broker=("127.0.0.1", 1), files=files)
    settings = Config(
        data_dir=tmp_path / "data", run_dir=tmp_path / "run", threads=1, runtimes=("onnx",)
    )
    made = assemble(settings)
    yield made
    Supervisor(made)._close()


def hear(parts: Parts, name: str, watch: Watch | None = None) -> None:
    """Take the words of the runner until NAME; WATCH hears them too, serving always does."""
    while True:
        spoke = parts.queue.get(timeout=30)
        if not isinstance(spoke, Spoke):
            continue
        seat = parts.serving.seat_of(spoke.runner)
        if watch is not None:
            watch.spoke(spoke)
        elif seat is not None:
            parts.serving.note(seat, spoke.event, 0.0)
        if spoke.event["evt"] == name:
            return


def test_a_model_that_has_just_taken_over_is_given_its_time_and_one_that_hangs_is_ended(
    parts: Parts,
) -> None:
    directory = digits_slot(parts.config.data_dir / "slots" / "a")
    digest = open_slot(directory).digest.removeprefix("sha256:")
    slot = Slot("a", Model("digits@1.0.0", "models/digits/1.0.0/onnx.json", digest, 1))
    now = [10_000.0]
    watch = Watch(parts, Supervisor(parts), lambda: now[0])
    parts.serving.serve(slot, now[0])
    hear(parts, "accepting")  # as a candidate it was watched elsewhere

    watch.tick()
    hear(parts, "beat", watch)
    now[0] += HUNG_S - 1
    watch.tick()
    hear(parts, "beat", watch)
    assert parts.serving.answering() is not None
    before = len(parts.outbox)
    now[0] += HUNG_S + 1
    watch.tick()
    assert len(parts.outbox) == before + 1, "the fleet is told"
    hear(parts, "exited")
    seat = parts.serving.current
    assert seat is not None
    assert seat.trouble == "no_heartbeat"
