"""Cap, window and minimum rate, against a clock that the test moves."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import EdgepackError, UnreachableError
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.core.pace import Bucket, Limits, Watch, Window

LIMITS = Limits(min_rate=1000, slow_s=60, stall_s=30)
counts = st.integers(1, 300_000)


@dataclass
class Time:
    """A clock that moves when somebody waits."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(
    st.floats(100, 1e8),
    st.lists(st.tuples(counts, st.floats(0, 20, allow_subnormal=False)), max_size=40),
)
def test_a_cap_is_never_exceeded_however_it_is_asked(
    rate: float, asked: list[tuple[int, float]]
) -> None:
    bucket, now, sent = Bucket.full(rate, 0.0), 0.0, 0
    for count, pause in asked:
        bucket, wait = bucket.take(count, now)
        now += wait
        sent += count
        assert sent <= rate * (now + 1) * (1 + 1e-9) + 1
        now += pause


@given(st.floats(100, 1e8), st.lists(counts, min_size=1, max_size=40))
def test_a_cap_holds_back_no_more_than_it_must(rate: float, asked: list[int]) -> None:
    bucket, now = Bucket.full(rate, 0.0), 0.0
    for count in asked:
        bucket, wait = bucket.take(count, now)
        now += wait
    assert now <= sum(asked) / rate + 1e-6


@given(st.integers(1, 64), st.lists(st.floats(0, 100), max_size=100))
def test_a_window_is_never_empty_and_never_too_large(size: int, took: list[float]) -> None:
    window = Window(size, 64)
    for seconds in took:
        window = window.after(seconds)
        assert 1 <= window.size <= 64


def test_a_window_opens_on_a_fast_link_and_closes_on_a_slow_one() -> None:
    window = Window(4, 32)
    for _ in range(28):
        window = window.after(0.01)
    assert window.size == 32
    assert window.after(1.0).size == 32
    for _ in range(5):
        window = window.after(3.0)
    assert window.size == 1


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 50_000)), max_size=60))
def test_a_download_is_too_slow_exactly_when_its_average_is(
    steps: list[tuple[float, int]],
) -> None:
    watch, since, count, now = Watch.begin(0.0), 0.0, 0, 0.0
    for seconds, came in steps:
        now += seconds
        count += came
        watch = watch.arrived(came, now)
        watch, trouble = watch.judge(LIMITS, now)
        if now - since < LIMITS.slow_s:
            assert trouble == ""
        elif count < LIMITS.min_rate * (now - since):
            assert trouble == "too_slow"
            return
        else:
            assert trouble == ""
            since, count = now, 0


def pacer(clock: Time, rate: float | None = None, **more: object) -> Pacer:
    return Pacer(LIMITS, Cap(rate, clock, clock.sleep), **more)  # type: ignore[arg-type]


def test_a_drip_is_too_slow_and_silence_is_a_stall() -> None:
    clock = Time()
    drip = pacer(clock)
    for _ in range(11):
        clock.sleep(5)
        drip.arrived(1)
        drip.look()
    clock.sleep(5)
    with pytest.raises(UnreachableError) as found:
        drip.look()
    assert (found.value.reason, clock.now) == ("too_slow", 160.0)
    silent = pacer(clock)
    clock.sleep(29)
    silent.look()
    clock.sleep(1)
    with pytest.raises(UnreachableError) as found:
        silent.look()
    assert found.value.reason == "stalled"
    silent.begin()


def test_waiting_for_ones_own_cap_is_not_slowness() -> None:
    clock = Time()
    capped = pacer(clock, rate=500.0)
    for _ in range(20):
        capped.ask(65536)
        capped.arrived(65536)
        capped.look()
    assert clock.now - 100.0 == pytest.approx(20 * 65536 / 500 - 1, rel=1e-6)


def test_two_downloads_share_a_cap() -> None:
    clock = Time()
    cap = Cap(1000.0, clock, clock.sleep)
    one, two = Pacer(LIMITS, cap), Pacer(LIMITS, cap)
    for _ in range(5):
        one.ask(1000)
        two.ask(1000)
    assert clock.now == pytest.approx(109.0)


def test_a_wait_for_the_cap_can_be_cancelled_and_sees_the_network_change() -> None:
    clock = Time()
    with pytest.raises(EdgepackError) as found:
        pacer(clock, 1.0, cancelled=lambda: clock.now > 110).ask(10**6)
    assert found.value.reason == "cancelled"
    assert clock.now < 111

    def metered() -> None:
        if clock.now > 120:
            raise EdgepackError("no", reason="metered")

    with pytest.raises(EdgepackError) as found:
        pacer(clock, 1.0, allowed=metered).ask(10**6)
    assert found.value.reason == "metered"
    assert clock.now < 126
