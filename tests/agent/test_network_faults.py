"""A real agent, a real broker, and a network between them that fails at a byte of our choice."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from agent_rig import Device, Site, site
from edgepack.chunks import CHUNK_SIZE
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.transfer import WINDOW
from fleet_rig import still, wait
from netfaults import KINDS, Fault, Kind, Proxy

pytestmark = pytest.mark.mosquitto

PADDING = 8_000_000
OTHERS = 800_000
"""More than everything else that an update brings to the device."""
WHERE = {"control": 60, "metadata": 4_000, "bulk": 6_000_000}
"""Bytes to the device after which the network fails: in the job, its metadata, its model."""
DEFAULT = {("reset", "bulk"), ("corrupt", "metadata"), ("half_close", "control")}
LOSSY = {"reset", "black_hole", "corrupt", "duplicate", "half_close"}
"""After these, a connection made with TLS cannot go on."""


@dataclass
class Place:
    """A device that reaches its broker through a proxy, and updates that differ."""

    site: Site
    proxy: Proxy
    device: Device
    versions: Iterator[int]

    def footprint(self) -> dict[str, int]:
        """Return what the agent's process holds, now that nothing is to be done."""
        process = self.device.process
        assert process is not None
        proc = Path(f"/proc/{process.pid}")
        return {name: len(list((proc / name).iterdir())) for name in ("task", "fd")}

    def downs(self) -> int:
        return self.device.log.count("the link is down")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with site(tmp_path_factory.mktemp("network")) as found:
        proxy = Proxy((found.broker.address.host, found.broker.address.port))
        try:
            device = found.running_1(broker=f"127.0.0.1:{proxy.port}", poll_s=60)
            yield Place(found, proxy, device, count(1))
        finally:
            proxy.close()


def cases() -> Iterator[object]:
    for kind in KINDS:
        for where in WHERE:
            marks = () if (kind, where) in DEFAULT else pytest.mark.soak
            yield pytest.param(kind, where, marks=marks, id=f"{kind} during {where}")


@pytest.mark.parametrize(("kind", "where"), list(cases()))
def test_an_update_gets_over_a_fault_of_the_network(place: Place, kind: Kind, where: str) -> None:
    version = f"1.{next(place.versions)}.0"
    place.site.publish(version, padding=PADDING)
    before = still("the agent", place.footprint)
    downs, carried = place.downs(), place.proxy.carried
    place.proxy.arm(fault := Fault(kind, WHERE[where]))
    rollout = place.site.roll_out(version, probation_s=0)
    assert place.site.ended(rollout, 200) == "completed"
    assert place.proxy.struck[-1] is fault
    assert place.device.status()["serving"] == f"digits@{version}"
    assert place.site.job(rollout).status == "SUCCEEDED"
    assert place.downs() == downs + (kind in LOSSY)
    again = place.proxy.carried - carried - PADDING - OTHERS
    assert again < WINDOW * BLOCK_SIZE + CHUNK_SIZE, "what had come was asked for again"
    assert "Traceback" not in place.device.log
    place.proxy.release()
    wait("nothing to be left", lambda: place.footprint() == before, 30)
