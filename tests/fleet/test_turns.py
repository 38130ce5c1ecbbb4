"""Who is answered next: nobody waits behind another's flood."""

from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core.turns import Turn, Turns

devices = st.sampled_from("abcd")


def taken(turns: Turns[int]) -> list[Turn[int]]:
    found = []
    while (turn := turns.take()) is not None:
        found.append(turn)
    return found


@given(st.lists(st.tuples(devices, st.booleans()), max_size=60))
def test_everything_that_waits_comes_out_once_and_each_line_in_its_order(
    asked: list[tuple[str, bool]],
) -> None:
    turns: Turns[int] = Turns(100, 1000)
    for number, (device, small) in enumerate(asked):
        assert turns.put(device, number, small=small) == []
    assert len(turns) == len(asked)
    out = taken(turns)
    assert sorted(turn.item for turn in out) == list(range(len(asked)))
    for device in "abcd":
        for small in (True, False):
            mine = [t.item for t in out if (t.device, t.small) == (device, small)]
            assert mine == sorted(mine)
    assert len(turns) == 0


@given(st.dictionaries(devices, st.integers(1, 20), min_size=1), st.integers(0, 20))
def test_between_two_turns_of_a_device_each_other_one_has_one(
    waiting: dict[str, int], more: int
) -> None:
    turns: Turns[int] = Turns(100, 1000)
    for device, count in waiting.items():
        for number in range(count):
            turns.put(device, number, small=False)
    for number in range(more):
        turns.put("flood", number, small=False)
    out = [turn.device for turn in taken(turns)]
    for device, count in waiting.items():
        last = max(i for i, name in enumerate(out) if name == device)
        for other in set(out) - {device}:
            assert out[: last + 1].count(other) <= count, "no more turns than it had itself"


def test_small_requests_go_first_but_a_flood_of_them_lets_the_large_through() -> None:
    turns: Turns[int] = Turns(1000, 1000)
    for number in range(100):
        turns.put("flood", number, small=True)
    turns.put("cam", 0, small=False)
    turns.put("cam", 1, small=False)
    turns.put("door", 0, small=True)
    kinds = [(turn.device, turn.small) for turn in taken(turns)[:6]]
    assert kinds.index(("door", True)) <= 3
    assert kinds.count(("cam", False)) == 2


def test_what_is_left_of_a_request_goes_on_in_its_devices_next_turn() -> None:
    turns: Turns[int] = Turns(10, 100)
    for device in "ab":
        turns.put(device, 1, small=False)
        turns.put(device, 2, small=False)
    first = turns.take()
    assert first == Turn("a", 1, False)
    turns.back(first)
    assert [(t.device, t.item) for t in taken(turns)] == [
        ("b", 1), ("a", 1), ("b", 2), ("a", 2),
    ]  # fmt: skip


def test_where_there_is_no_room_the_longest_line_gives_way() -> None:
    turns: Turns[str] = Turns(8, 10)
    for number in range(8):
        assert turns.put("flood", f"f{number}", small=False) == []
    assert turns.put("flood", "f8", small=False) == ["f8"], "its own line is full"
    assert turns.put("other", "o0", small=False) == []
    assert turns.put("other", "o1", small=False) == []
    assert turns.put("late", "l0", small=True) == ["f7"]
    assert turns.put("late", "l1", small=False) == ["f6"]
    assert turns.put("flood", "f9", small=False) == ["f9"]
    assert len(turns) == 10
    assert {"l0", "l1", "o0", "o1"} < {turn.item for turn in _all(turns)}


def _all(turns: Turns[str]) -> list[Turn[str]]:
    found = []
    while (turn := turns.take()) is not None:
        found.append(turn)
    return found
