"""What can be set from afar, and what never can."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import EdgepackError, UsageError
from edgepack.settings import KEYS, MAX_DOCUMENT, Settings, check_settings, read_settings


@pytest.mark.parametrize(
    "values",
    [
        {"telemetry.level": "health", "telemetry.max_kb_per_day": None},
        {"update.windows": [{"days": ["sat"], "from": "22:00", "to": "04:00"}]},
        {"transfer.max_kbps": 2000, "poll_s": 60, "log_level": "debug"},
        {},
    ],
)
def test_what_can_be_set(values: dict[str, Any]) -> None:
    check_settings(values)


@pytest.mark.parametrize(
    "values",
    [
        {"broker": "evil:1883"},
        {"events.broker": "mqtt://evil"},
        {"snapshots.publish": True},
        {"allow_local_install": True},
        {"remote.answers": ["doctor"]},
        {"transfer.metered": "allow"},
        {"telemetry": {"level": "metrics"}},
        {"telemetry.level": "everything"},
        {"telemetry.interval_s": 0},
        {"poll_s": "often"},
        {"update.windows": [{"from": "25:00", "to": "04:00"}]},
        {"update.windows": [{"from": "22:00", "to": "04:00", "zone": "x" * 64}] * 21},
    ],
)
def test_what_cannot(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        check_settings(values)
    assert caught.value.reason == "bad_settings"


def test_a_document_is_bounded() -> None:
    window = {"from": "22:00", "to": "04:00", "zone": "x" * 64}
    windows = [window | {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}] * 20
    check_settings({"update.windows": windows})
    assert len(msgspec.json.encode(windows)) < MAX_DOCUMENT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*KEYS]) | st.text(), JSON, max_size=4))
def test_any_values_are_taken_or_refused_with_the_reason(values: dict[str, Any]) -> None:
    found = refusal(lambda: check_settings(values))
    assert found in {"", "bad_settings"}
    assert found or values.keys() <= KEYS.keys()


@given(JSON)
def test_any_field_of_the_director_is_read_or_refused(raw: Any) -> None:
    assert refusal(lambda: read_settings(raw)) in {"", "bad_metadata"}


def refusal(action: Callable[[], Any]) -> str:
    """Return the reason for which ACTION is refused; empty: it is not."""
    try:
        action()
    except EdgepackError as error:
        return error.reason
    return ""


def test_a_key_that_only_a_newer_fleet_knows_is_read_and_left_to_whoever_checks() -> None:
    raw = {"version": 3, "values": {"new.key": 1}, "more": True}
    assert read_settings(raw) == Settings(version=3, values={"new.key": 1})
