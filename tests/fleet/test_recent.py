"""What the overview says has happened: each state of a rollout beside the sentence on it."""

from pathlib import Path

from sqlalchemy import select

from edgepack_fleet.adapters.tables import ChangeRow
from edgepack_fleet.core.happenings import Happening, grouped
from edgepack_fleet.web import figures
from ui_rig import Town


def lab(home: Path, *devices: str) -> Town:
    """Return a fleet of DEVICES that run person@1.3.0, and have 1.4.0 to come."""
    made = Town(home, 1_790_000_000.0)
    made.publish("1.3.0", 0.931)
    made.publish("1.4.0", 0.944)
    made.group("lab")
    for device in devices:
        made.enrol(device, "lab")
        made.connect(device)
    made.rollout("person@1.3.0", "lab", "100%")
    made.tick()
    for device in devices:
        made.finish(device, "person@1.3.0")
        made.connect(device, "person@1.3.0")
    made.tick()
    return made


def states(made: Town) -> list[tuple[str, str]]:
    """Return the states that rollouts came into as they were told, each with its sentence."""
    query = select(ChangeRow).where(ChangeRow.type == "edgepack.rollout.state")
    with made.service.database.read() as session:
        return [(row.data["state"], row.data["reason"])
                for row in session.scalars(query.order_by(ChangeRow.id))]  # fmt: skip


def test_a_state_is_told_with_the_sentence_on_it(tmp_path: Path) -> None:
    made = lab(tmp_path, "a", "b")
    made.rollout("person@1.4.0", "lab", "1,100%", on_breach="revert")
    made.tick()
    made.finish("a", "person@1.4.0")
    made.connect("a", "person@1.4.0")
    made.tick()
    made.job("b", ("IN_PROGRESS", "self_test"), ("REJECTED", "golden_mismatch"))
    made.tick()
    made.tick()
    made.finish("a", "person@1.3.0")
    made.connect("a", "person@1.3.0")
    made.tick()
    told = states(made)
    assert [state for state, _ in told] == [
        "running", "completed", "running", "reverting", "reverted",
    ]  # fmt: skip
    said = dict(told)
    assert said["completed"] == "2 of 2 devices run person@1.3.0."
    assert "golden_mismatch" in said["reverting"]
    assert "back on the release before" in said["reverted"]
    with made.service.database.read() as session:
        recent = figures.recent(session)
    one = next(r for r in recent if r.text == "person@1.4.0 to lab is reverted")
    assert one.more == said["reverted"]
    created = next(r for r in recent if r.text == "person@1.4.0 to lab was created")
    assert not created.more, "it was no draft"
    made.service.database.close()


def test_what_failed_for_another_reason_is_another_line() -> None:
    a, b, c = (Happening(1.0, "update", "bad", "x@1: failed", more) for more in ("m", "n", "n"))
    lines = grouped([("devices/a", a), ("devices/b", b), ("devices/c", c)])
    assert [(line.text, line.more) for line in lines] == [
        ("a: x@1: failed", "m"), ("b and 1 more: x@1: failed", "n"),
    ]  # fmt: skip
