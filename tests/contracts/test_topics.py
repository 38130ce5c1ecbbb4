"""Topics are built and parsed in one place, and no name can leave its own branch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import topics

ids = st.from_regex(topics.DEVICE_ID, fullmatch=True)


@given(ids, st.sampled_from(["conn", "tele", "evt", "job/get", "job/update", "meta", "blob"]))
def test_an_uplink_is_parsed_to_what_it_was_built_from(device: str, kind: str) -> None:
    assert topics.parse_up(topics.up(device, kind)) == topics.Uplink(device, kind)


@given(ids, st.sampled_from(["meta", "blob"]), st.integers(0, 2**31))
def test_a_block_is_parsed_to_its_transfer_and_index(device: str, kind: str, index: int) -> None:
    topic = topics.down(device, f"{kind}/x1/{index}")
    assert topics.parse_block(topic) == (kind, "x1", str(index))


@given(st.text(max_size=80) | st.lists(st.text("ep1dgupndon+#/", max_size=6)).map("/".join))
def test_any_topic_is_parsed_or_none(topic: str) -> None:
    found = topics.parse_up(topic)
    assert found is None or topics.up(found.device, found.kind) == topic
    block = topics.parse_block(topic)
    assert block is None or topic.endswith("/".join(block))


@pytest.mark.parametrize(
    "name", ["", "+", "#", "a/b", "A", "a b", "-a", "a-", "a" * 65, "a\n", "\u0430", "a+", "../x"]
)
def test_what_is_no_id_gets_no_topic(name: str) -> None:
    for build in (
        lambda: topics.up(name, "tele"), lambda: topics.down(name, "ack"),
        lambda: topics.device_filter(name), lambda: topics.group_hint(name),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="not a device or group id"):
            build()


@pytest.mark.parametrize(
    "topic",
    [
        "ep/1/d/cam-1/dn/ack", "ep/2/d/cam-1/up/tele", "ep/1/d/CAM/up/tele", "ep/1/d/cam-1/up",
        "x/ep/1/d/cam-1/up/tele", "ep/1/d/+/up/tele", "ep/1/g/cam-1/up/tele", "",
    ],
)  # fmt: skip
def test_what_no_device_wrote_is_not_an_uplink(topic: str) -> None:
    assert topics.parse_up(topic) is None


def test_the_tree_is_the_documented_one() -> None:
    assert topics.up("cam-1", "job/get") == "ep/1/d/cam-1/up/job/get"
    assert topics.down("cam-1", "job/get/accepted") == "ep/1/d/cam-1/dn/job/get/accepted"
    assert topics.device_filter("cam-1") == "ep/1/d/cam-1/dn/#"
    assert topics.group_hint("eu") == "ep/1/g/eu/dn/hint"
