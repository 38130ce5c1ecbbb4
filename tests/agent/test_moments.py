"""When updates are welcome: windows in local time, locks, power, and clocks that lie."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.messages import DAYS, Window
from edgepack_agent.adapters.clock import read_stamp
from edgepack_agent.adapters.lock import Locks
from edgepack_agent.adapters.power import read_power
from edgepack_agent.core.age import GAP_S, aged, elapsed, left
from edgepack_agent.core.deadlines import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    STEADY_S,
    backoff,
    restart_pause,
)
from edgepack_agent.core.deferral import MAX_LOCK_S, Lock, Moment, Power, Rules, hold, recheck_s
from edgepack_agent.core.state import Hold, Job, Stamp, State
from edgepack_agent.core.window import closing, opening

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
CLOCKS = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")
WINDOWS = st.builds(
    Window,
    days=st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True).map(tuple),
    start=CLOCKS,
    end=CLOCKS,
    zone=st.sampled_from(ZONES),
)
TIMES = st.floats(1.6e9, 2.2e9)
H = 3600


def at(text: str, zone: str = "UTC", fold: int = 0) -> float:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return local.timestamp()


def is_open(window: Window, now: float) -> bool:
    return opening([window], now) == now


@settings(max_examples=150, deadline=None)
@given(WINDOWS, TIMES)
def test_a_window_opens_when_it_says_and_not_before(window: Window, now: float) -> None:
    opens = opening([window], now)
    assert opens is not None
    assert now <= opens <= now + 15 * 86400
    assert is_open(window, opens)
    if opens > now:
        assert closing([window], now) is None
        assert not is_open(window, opens - 1)
        assert not is_open(window, (now + opens) / 2)
    else:
        closes = closing([window], now)
        assert closes is not None
        assert now < closes
        assert closes - now <= 25.5 * H


@settings(max_examples=80, deadline=None)
@given(WINDOWS, TIMES)
def test_a_window_keeps_its_hours_on_the_wall(window: Window, now: float) -> None:
    opens = opening([window], now + 2 * 86400)
    if opens is None or opens <= now + 2 * 86400:
        return
    local = datetime.fromtimestamp(opens, ZoneInfo(window.zone))
    assert DAYS[local.weekday()] in window.days
    wall = local.strftime("%H:%M")
    # Only in the hour that a spring leaves out does a window begin at another time.
    skipped = abs((local - timedelta(hours=3)).utcoffset() - local.utcoffset())  # type: ignore[operator]
    assert wall == window.start or skipped


@settings(max_examples=60, deadline=None)
@given(st.lists(WINDOWS, min_size=1, max_size=3), TIMES)
def test_several_windows_are_open_when_one_of_them_is(windows: list[Window], now: float) -> None:
    each = [opening([window], now) for window in windows]
    assert opening(windows, now) == min(found for found in each if found is not None)


def test_without_windows_it_is_always_time() -> None:
    assert opening([], 5.0) == 5.0


NIGHT = Window(days=("sat",), start="22:00", end="04:00", zone="Europe/Berlin")


@pytest.mark.parametrize(
    ("moment", "welcome"),
    [
        ("2026-06-06 21:59", False),
        ("2026-06-06 22:00", True),
        ("2026-06-07 03:59", True),  # Sunday, of the window that began on Saturday
        ("2026-06-07 04:00", False),
        ("2026-06-07 22:30", False),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_begins_on(moment: str, welcome: bool) -> None:
    assert is_open(NIGHT, at(moment, "Europe/Berlin")) == welcome


def test_windows_across_a_change_of_the_clocks() -> None:
    zone = "Europe/Berlin"  # 2026: forward on 29 March at 02:00, back on 25 October at 03:00
    left_out = Window(start="02:15", end="02:45", zone=zone)
    assert opening([left_out], at("2026-03-28 12:00", zone)) == at("2026-03-29 03:15", zone)
    over = Window(start="01:00", end="04:00", zone=zone)
    spring = opening([over], at("2026-03-28 12:00", zone))
    autumn = opening([over], at("2026-10-24 12:00", zone))
    assert spring
    assert autumn
    assert closing([over], spring) == spring + 2 * H
    assert closing([over], autumn) == autumn + 4 * H
    twice = Window(start="02:30", end="02:45", zone=zone)
    begin = opening([twice], at("2026-10-24 12:00", zone))
    assert begin == at("2026-10-25 02:30", zone, fold=0)
    assert closing([twice], begin) == at("2026-10-25 02:45", zone, fold=1)


def test_a_zone_that_is_not_known_here_is_said_so() -> None:
    for name in ("Europe/Atlantis", "../../etc/passwd", "\0"):
        with pytest.raises(UsageError) as found:
            opening([Window(start="01:00", end="02:00", zone=name)], 1.7e9)
        assert found.value.reason == "no_time_zone"
        assert "tzdata" in found.value.fix


@pytest.mark.parametrize("wrong", ["24:00", "1:00", "01:60", "01:00\n", "noon", ""])
def test_a_time_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"from": wrong, "to": "02:00"}, Window)


def test_a_clock_that_is_off_by_millennia_opens_no_window_and_breaks_nothing() -> None:
    for now in (-1e13, 1e13, 2.6e11):
        assert opening([Window(start="00:00", end="00:00")], now) in {None, now}


# -- clocks that lie

STAMPS = st.builds(Stamp, st.sampled_from(["b1", "b2"]), st.floats(0, 1e7), st.floats(0, 4e9))


@given(STAMPS, STAMPS)
def test_no_clock_makes_time_run_backwards_or_jump(earlier: Stamp, later: Stamp) -> None:
    passed = elapsed(earlier, later)
    assert passed >= 0
    if earlier.boot == later.boot:
        assert passed <= max(0.0, later.up - earlier.up)
    else:
        assert later.up <= passed <= later.up + GAP_S


JOB = Job("job-1", "digits@2", "p", total_s=1000.0, max_defer_s=500.0)


def test_a_job_ages_across_boots_whatever_the_wall_clock_says() -> None:
    begun = aged(State(), State(phase="offered", job=JOB), Stamp("b1", 100, 1.7e9))
    assert left(begun, Stamp("b1", 150, 0.0)) == 950, "the wall clock does not matter here"
    working = State(phase="downloading", job=JOB, stamp=begun.stamp)
    for boot, wall in enumerate((0.0, 4e9, 1.7e9), start=2):
        working = aged(working, working, Stamp(f"b{boot}", 30, wall), booted=True)
    assert 90 <= working.worked_s <= 90 + 3 * GAP_S
    stuck = State(phase="downloading", job=JOB, stamp=Stamp("b1", 0, 0.0))
    boots = 0
    while (rest := left(stuck, Stamp(f"c{boots}", 20, 0.0))) and rest > 0:
        stuck = aged(stuck, stuck, Stamp(f"c{boots}", 20, 0.0), booted=True)
        boots += 1
        assert boots < 60, "a box that restarts for ever without a clock must end it too"


def test_deferral_and_work_are_counted_apart() -> None:
    job = aged(State(), State(phase="deferred", job=JOB), Stamp("b", 0, 0))
    checking = aged(job, State(phase="checking", job=JOB, stamp=job.stamp), Stamp("b", 400, 0))
    assert (checking.worked_s, checking.deferred_s) == (0, 400)
    assert left(checking, Stamp("b", 500, 0)) == 900
    assert aged(checking, checking, Stamp("b", 9, 0)) is checking, "nothing to write"
    assert aged(checking, State(), Stamp("b", 500, 0)).stamp is None
    probation = State(phase="probation", job=JOB, stamp=Stamp("b", 0, 0))
    assert left(probation, Stamp("b", 1e6, 0)) is None, "who is judged is left to the judge"


def test_the_stamp_of_this_machine_goes_on() -> None:
    first, second = read_stamp(), read_stamp()
    assert first.boot == second.boot
    assert second.up >= first.up > 0


# -- locks, inhibitors, power

NOON = Stamp("b", 1000.0, 1.7e9)


def test_a_lock_ends_by_itself_and_nobody_locks_for_ever() -> None:
    lock = Lock(NOON, 7200, "exhibition")
    later = Stamp("b", 1000 + 7100, 0)
    assert hold(Moment(later, lock), Rules()) == Hold("lock", 100, "exhibition")
    assert hold(Moment(Stamp("b", 1000 + 7300, 0), lock), Rules()) is None
    for wall in (0.0, 1e11):
        assert hold(Moment(Stamp("next", MAX_LOCK_S + 1, wall), lock), Rules()) is None
    assert Lock(NOON, 1e12).left(NOON) == MAX_LOCK_S


def test_locks_are_kept_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    wall = [1.7e9]
    locks = Locks(tmp_path / "lock.json", tmp_path / "inhibit", lambda: wall[0])
    assert locks.lock() is None
    locks.set(Lock(NOON, 60, "why"))
    again = Locks(tmp_path / "lock.json", tmp_path / "inhibit", lambda: wall[0])
    assert again.lock() == Lock(NOON, 60, "why")
    (tmp_path / "lock.json").write_bytes(b"\xff{")
    assert again.lock() is None
    again.clear()
    again.clear()


def test_an_inhibitor_holds_while_its_file_is_there_for_a_day(tmp_path: Path) -> None:
    wall = [datetime.now(UTC).timestamp()]
    locks = Locks(tmp_path / "lock.json", tmp_path / "inhibit", lambda: wall[0])
    (tmp_path / "inhibit" / "surgery").touch()
    found = hold(Moment(NOON, inhibitors=locks.inhibitors()), Rules())
    assert found == Hold("lock", None, "inhibited by surgery")
    wall[0] += 86401
    assert locks.inhibitors() == ()
    wall[0] -= 86401
    (tmp_path / "inhibit" / "surgery").unlink()
    assert locks.inhibitors() == ()


def supply(root: Path, name: str, **facts: str) -> None:
    (root / name).mkdir()
    for fact, value in facts.items():
        (root / name / fact).write_text(value + "\n")


def test_power_is_read_as_the_kernel_tells_it(tmp_path: Path) -> None:
    assert read_power(tmp_path / "none") == Power(False)
    supply(tmp_path, "hid", type="Battery", scope="Device", capacity="3", status="Discharging")
    assert read_power(tmp_path) == Power(False), "a mouse feeds nobody"
    supply(tmp_path, "BAT0", type="Battery", capacity="17", status="Discharging")
    supply(tmp_path, "AC", type="Mains", online="0")
    assert read_power(tmp_path) == Power(True, 17.0)
    (tmp_path / "AC" / "online").write_text("1\n")
    assert read_power(tmp_path) == Power(False, 17.0)
    supply(tmp_path, "BAT1", type="Battery", capacity="odd", status="Discharging")
    assert read_power(tmp_path) == Power(False, 17.0)


def test_power_defers_only_on_battery_and_below_the_limit() -> None:
    rules = Rules(min_battery=20)
    assert hold(Moment(NOON, power=Power(True, 20)), rules) is None
    assert hold(Moment(NOON, power=Power(False, 5)), rules) is None
    found = hold(Moment(NOON, power=Power(True, 19)), rules)
    assert found
    assert found.reason == "power"


def test_both_the_owner_and_the_job_must_have_a_window_open() -> None:
    morning, evening = Window(start="06:00", end="12:00"), Window(start="18:00", end="22:00")
    seven = Stamp("b", 0, at("2026-06-01 07:00"))
    assert hold(Moment(seven), Rules((morning,))) is None
    found = hold(Moment(seven), Rules((morning,)), (evening,))
    assert found == Hold("window", at("2026-06-01 18:00"))
    assert hold(Moment(seven), Rules(), (evening,)) == found


@given(TIMES, st.sampled_from(["window", "lock", "metered", "power"]), st.none() | TIMES)
def test_looking_again_is_neither_hectic_nor_forgotten(
    wall: float, reason: str, until: float | None
) -> None:
    assert 1.0 <= recheck_s(Hold(reason, until), wall) <= 300.0


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_pauses_grow_to_a_limit_and_are_never_nothing(tries: int, luck: float) -> None:
    assert 0.1 <= backoff(tries, luck) <= LONGEST_PAUSE_S
    assert backoff(tries, 1.0) <= backoff(tries + 1, 1.0)


@given(st.lists(st.floats(0.0, 1e5), min_size=1, max_size=60))
def test_a_runner_that_lives_for_a_while_is_down_for_a_tenth_of_the_time_at_most(
    lives: list[float],
) -> None:
    pause = 0.0
    for lived in lives:
        before, pause = pause, restart_pause(pause, lived)
        assert FIRST_PAUSE_S <= pause <= LONGEST_PAUSE_S
        if lived >= min(10 * before, STEADY_S):
            assert pause == FIRST_PAUSE_S
        else:
            assert pause == min(2 * before, LONGEST_PAUSE_S), "a crash loop backs off"


def test_a_crash_loop_ends_at_the_longest_pause_and_twenty_kills_do_not() -> None:
    loop, kills = 0.0, 0.0
    for _ in range(20):
        loop, kills = restart_pause(loop, 1.0), restart_pause(kills, 6.0)
        assert kills == FIRST_PAUSE_S
    assert loop == LONGEST_PAUSE_S
