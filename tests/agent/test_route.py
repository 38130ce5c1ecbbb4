"""Which way bytes come: over which interface, and what happens when one way fails."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.test_chunks import CHUNKS, CONTENT, SHA256, SIZE
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.download import Downloads
from edgepack_agent.adapters.https import Links
from edgepack_agent.adapters.network import Metering, interface_to
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.adapters.route import Route, Via
from edgepack_agent.config import TransferConfig
from edgepack_agent.core.pace import Limits
from edgepack_agent.parts import _metering

LIMITS = Limits(0.0, 3600.0, 3600.0)
FREE = Metering(list, (), wait=False)


class Way:
    """A way for bytes to come, which `trouble` may end before any block."""

    def __init__(self, trouble: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.trouble, self.sent = trouble, 0
        self.flip: set[int] = set()

    def blocks(
        self, sha256: str, size: int, start: int, count: int, pacer: Pacer
    ) -> Iterator[bytes]:
        pacer.begin()
        for index in range(start, start + count):
            if error := self.trouble(index):
                raise error
            block = CONTENT[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            self.sent += len(block)
            yield bytes([block[0] ^ 1]) + block[1:] if index in self.flip else block


def fetch(
    directory: Path,
    https: Way,
    mqtt: Way,
    via: Via = "auto",
    metering: Metering = FREE,
    ready: bool = True,
) -> Downloads:
    ways = {"https": https, "mqtt": mqtt}
    route = Route(ways, via, lambda: ready, metering, LIMITS, Cap(None))
    store = Downloads(directory / "blobs", directory / "parts")
    store.fetch(SHA256, SIZE, route.open(lambda: False), chunks=CHUNKS)
    assert store.path(SHA256).read_bytes() == CONTENT
    return store


def broken(error: Exception, at: int) -> Way:
    return Way(lambda index: error if index >= at else None)


def test_https_goes_first_where_there_is_a_link_and_mqtt_where_there_is_none(
    tmp_path: Path,
) -> None:
    https, mqtt = Way(), Way()
    fetch(tmp_path / "1", https, mqtt)
    assert (https.sent, mqtt.sent) == (SIZE, 0)
    fetch(tmp_path / "2", https, mqtt, ready=False)
    assert mqtt.sent == SIZE
    fetch(tmp_path / "3", https, mqtt, via="mqtt")
    assert (https.sent, mqtt.sent) == (SIZE, 2 * SIZE)


@pytest.mark.parametrize(
    "error", [UnreachableError("reset"), IntegrityError("404", reason="blob_missing")]
)
def test_a_way_that_fails_is_gone_on_with_by_the_other_from_the_very_block(
    tmp_path: Path, error: Exception
) -> None:
    https, mqtt = broken(error, 21), Way()
    fetch(tmp_path, https, mqtt)
    assert https.sent == 21 * BLOCK_SIZE
    assert https.sent + mqtt.sent == SIZE, "not a byte twice"


def test_both_ways_down_is_the_last_error_and_keeps_what_came(tmp_path: Path) -> None:
    https = broken(UnreachableError("reset"), 40)
    mqtt = broken(UnreachableError("no link"), 60)
    with pytest.raises(UnreachableError, match="no link"):
        fetch(tmp_path, https, mqtt)
    assert https.sent + mqtt.sent == 60 * BLOCK_SIZE
    again = Way()
    fetch(tmp_path, again, Way())
    assert again.sent == SIZE - 3 * 16 * BLOCK_SIZE


def test_a_way_that_lies_is_left_for_the_other(tmp_path: Path) -> None:
    https, mqtt = Way(), Way()
    https.flip = {17}
    fetch(tmp_path, https, mqtt)
    assert https.sent == SIZE
    assert mqtt.sent == 16 * BLOCK_SIZE, "only the chunk that was wrong"


def test_one_way_alone_is_not_left(tmp_path: Path) -> None:
    https, mqtt = broken(UnreachableError("reset"), 3), Way()
    with pytest.raises(UnreachableError, match="reset"):
        fetch(tmp_path, https, mqtt, via="https")
    assert mqtt.sent == 0


# -- metered links


def test_nothing_is_fetched_over_a_metered_link(tmp_path: Path) -> None:
    https, mqtt = Way(), Way()
    metered = Metering(lambda: ["127.0.0.1"], ["wwan*", "l?"], wait=True)
    with pytest.raises(EdgepackError) as found:
        fetch(tmp_path, https, mqtt, metering=metered)
    assert (found.value.reason, https.sent, mqtt.sent) == ("metered", 0, 0)
    assert not isinstance(found.value, UnreachableError), "it is not tried again all the time"
    allowed = Metering(lambda: ["127.0.0.1"], ["lo"], wait=False)
    fetch(tmp_path, https, mqtt, metering=allowed)
    fetch(tmp_path, https, mqtt, metering=metered)
    assert https.sent == SIZE, "what is here needs no link"


def test_a_link_that_becomes_metered_ends_a_download_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack_agent.adapters.pacing.CHECK_S", 0.0)
    hosts: list[str] = []
    metering = Metering(lambda: hosts, ["lo"], wait=True)

    class Roaming(Way):
        def blocks(self, *words: Any) -> Iterator[bytes]:
            for index, block in enumerate(super().blocks(*words)):
                if index == 40:
                    hosts.append("127.0.0.1")
                words[-1].look()
                yield block

    roaming = Roaming()
    with pytest.raises(EdgepackError) as found:
        fetch(tmp_path, roaming, Way(), metering=metering)
    assert found.value.reason == "metered"
    assert roaming.sent == 41 * BLOCK_SIZE


def test_what_the_system_says_of_an_interface_counts_and_is_asked_once() -> None:
    asked: list[str] = []

    def flag(name: str) -> bool | None:
        asked.append(name)
        return name == "lo" or None

    metering = Metering(lambda: ["127.0.0.1", "127.0.0.1"], [], wait=True, flag=flag)
    for _ in range(3):
        with pytest.raises(EdgepackError, match="money"):
            metering.check()
    assert asked == ["lo"]
    metering.begin()
    with pytest.raises(EdgepackError):
        metering.check()
    assert asked == ["lo", "lo"]


def test_the_interface_of_a_route_is_found() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("127.4.5.6") == "lo"
    assert interface_to("no.such.host.invalid") is None
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            assert interface_to("::1") == "lo"


ROAM = """
from edgepack.errors import EdgepackError
from edgepack_agent.adapters.network import Metering, interface_to
try:
    Metering(lambda: ["127.0.0.1"], ["wwan*"], wait=True).check()
except EdgepackError as error:
    print(interface_to("127.0.0.1"), error.reason)
"""


def test_an_interface_with_a_modems_name_is_metered() -> None:
    """In a network of its own, whose only interface is called like a modem."""
    words = 'ip link set lo name wwan0 && ip link set wwan0 up && exec "$@"'
    shell = ["unshare", "-rn", "sh", "-c", words, "sh", sys.executable, "-c", ROAM]
    said = subprocess.run(shell, capture_output=True, text=True, check=False)
    if "unshare" in said.stderr:
        pytest.skip("a network namespace cannot be made here")
    assert said.stdout == "wwan0 metered\n", said.stderr


def test_the_host_of_the_link_is_looked_at_too() -> None:
    """Messages over one interface, files over another one that costs."""
    links = Links(lambda: None)
    config = TransferConfig(metered="wait", metered_interfaces=("lo",))
    metering = _metering(config, "192.0.2.1", links)
    metering.check()
    links.take("https://127.0.0.1:1/{sha256}")
    with pytest.raises(EdgepackError) as caught:
        metering.check()
    assert caught.value.reason == "metered"
