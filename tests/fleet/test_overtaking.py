"""Which rollouts are overtaken, and what people are offered to do with them."""

from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core.model import LIVE
from edgepack_fleet.core.overtaking import (
    AHEAD,
    OFFERED,
    Line,
    offered,
    overtaken_by,
    overtaken_said,
)

STATES = sorted({*LIVE, *OFFERED, "cancelled"})
LINES = st.lists(
    st.builds(Line, st.text("ab", min_size=1), st.sampled_from(["lab", "site"]),
              st.tuples(st.integers(0, 2), st.integers(1, 50)), st.sampled_from(STATES),
              st.just("a@1")),
    unique_by=lambda line: line.rank, max_size=8,
)  # fmt: skip


def line(number: int, state: str = "paused", group: str = "lab", priority: int = 0) -> Line:
    return Line(f"r{number}", group, (priority, number), state, f"digits@{number}.0.0")


def test_a_newer_rollout_that_serves_overtakes_and_one_that_ended_does_not() -> None:
    paused = line(2)
    for state in ("running", "completed", "paused"):
        assert overtaken_by(paused, [line(1, "completed"), paused, line(3, state)]) == line(
            3, state
        )
    for other in (line(3, "cancelled"), line(3, "draft"), line(3, "awaiting_approval"),
                  line(3, "reverting"), line(3, "reverted"),
                  line(3, "running", "site"), line(1, "running"),
                  line(3, "running", priority=-1)):  # fmt: skip
        assert overtaken_by(paused, [paused, other]) is None, other
    newest = overtaken_by(paused, [line(3, "completed"), line(5, "running"), line(4, "running")])
    assert newest is not None
    assert overtaken_said(newest) == (
        "Overtaken by digits@5.0.0 (r5), so it cannot be resumed; cancel it to put it away."
    )


@given(LINES)
def test_of_what_gives_out_in_a_group_one_is_not_overtaken(lines: list[Line]) -> None:
    for group in ("lab", "site"):
        live = [one for one in lines if one.group == group and one.state in AHEAD]
        assert sum(overtaken_by(one, lines) is None for one in live) == min(1, len(live))


def test_what_has_ended_offers_nothing_to_end_it_with() -> None:
    for overtaken in (False, True):
        assert offered("reverted", overtaken=overtaken) == ()
        assert offered("cancelled", overtaken=overtaken) == ()
    assert offered("completed", overtaken=False) == ("revert",)
    assert offered("completed", overtaken=True) == ("revert",)
    assert offered("paused", overtaken=False)[0] == "resume"
    assert offered("paused", overtaken=True) == ("cancel", "revert")
    assert offered("running", overtaken=True) == offered("running", overtaken=False)
