"""Files by a link: sealed, for one device and one model, for a while; bytes by Range."""

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.oci import CHUNKS, read_oci_manifest
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.https import Https, Links
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.core.pace import Limits
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.links import LINK_S
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.blobs import Span, read_range
from edgepack_fleet.web.devices import device_app
from fleet_rig import listening, publisher, talking_to


class Here:
    """A fleet with one published model, without a broker."""

    def __init__(self, data: Path) -> None:
        self.now = 1e9
        world = publisher(data)
        self.target = world.release("1.0.0")
        self.other = world.release("2.0.0")
        self.service = Service(Settings(data, Address("127.0.0.1", 1)), lambda: self.now)
        self.service.links.url = "https://fleet.example:8443"
        image = read_oci_manifest(self.service.content.read(self.target.sha256))
        self.blobs = image.blobs()
        layer = image.layer("model/model.onnx")
        assert layer is not None
        self.sha256, self.size = layer.sha256, layer.size
        assert image.layer(CHUNKS)

    def path(self, sha256: str | None = None, **changes: str) -> str:
        parts = urlsplit(self.service.links.link("cam", self.target.sha256))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()} | changes
        return f"/blobs/{sha256 or self.sha256}?{urlencode(query)}"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    found = Here(tmp_path_factory.mktemp("links") / "fleet")
    yield found
    found.service.database.close()


@pytest.fixture(scope="module")
def http(here: Here) -> Iterator[httpx.Client]:
    with talking_to(device_app(here.service)) as client:
        yield client


def test_every_file_of_the_model_and_nothing_else(here: Here, http: httpx.Client) -> None:
    for sha256 in (here.target.sha256, *here.blobs):
        answer = http.get(here.path(sha256))
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == sha256
    foreign = here.other.sha256
    assert here.service.content.has(foreign)
    for sha256 in (foreign, "0" * 64, "x", "..%2f..%2fsecret"):
        answer = http.get(here.path(sha256))
        assert answer.status_code in {401, 403, 404}, sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "other"},
        {"image": "0" * 64},
        {"until": "99999999999"},
        {"seal": "0" * 64},
        {"seal": ""},
        {"until": "-1"},
        {"until": "٣"},
        {"until": "9" * 5000},
        {"device": "\u0000"},
    ],
)
def test_a_link_that_was_changed_opens_nothing(
    here: Here, http: httpx.Client, changes: dict[str, str]
) -> None:
    answer = http.get(here.path(**changes))
    assert answer.status_code in {401, 403}
    assert answer.json()["reason"] == "bad_link"


def test_a_link_is_good_for_a_while(here: Here, http: httpx.Client) -> None:
    path = here.path()
    here.now += LINK_S - 1
    assert http.get(path).status_code == 200
    here.now += 1
    answer = http.get(path)
    assert (answer.status_code in {401, 403}, answer.json()["reason"]) == (True, "link_expired")


def test_without_a_link_there_is_nothing(here: Here, http: httpx.Client) -> None:
    assert http.get(f"/blobs/{here.sha256}").status_code in {401, 403}
    assert http.post(here.path()).status_code == 405


def test_parts_of_a_file(here: Here, http: httpx.Client) -> None:
    whole = http.get(here.path()).content
    for first, last in ((0, 0), (10, 99), (here.size - 1, here.size - 1), (5, here.size + 50)):
        answer = http.get(here.path(), headers={"Range": f"bytes={first}-{last}"})
        end = min(last, here.size - 1)
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {first}-{end}/{here.size}"
        assert answer.headers["etag"] == f'"{here.sha256}"'
        assert answer.content == whole[first : end + 1]
    open_ended = http.get(here.path(), headers={"Range": "bytes=100-"})
    assert open_ended.content == whole[100:]
    beyond = http.get(here.path(), headers={"Range": f"bytes={here.size}-{here.size + 5}"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{here.size}")


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d{0,20}-\d{0,20}", fullmatch=True))
def test_any_range_header_is_read_without_a_fault(header: str) -> None:
    span = read_range(header, 1000)
    assert span is None or 0 <= span.first < span.end <= 1000 == span.size


def test_a_header_that_is_no_single_range_asks_for_everything() -> None:
    for header in (None, "", "bytes=-5", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b"):
        assert read_range(header, 10) == Span(0, 10, 10)


def test_a_device_fetches_through_the_real_listener_and_renews_its_link(here: Here) -> None:
    """TLS, uvicorn and the agent's own client: every file of the model, in one piece or in runs."""
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        links.take(here.service.links.link("cam", here.target.sha256))

    before = here.service.links.url
    with listening(here.service) as port:
        here.service.links.url = f"https://127.0.0.1:{port}"
        links = Links(ask)
        ask()
        client = Https(links, lambda: ssl.create_default_context(cadata=here.service.pki.ca_pem))
        pacer = Pacer(Limits(0.0, 3600.0, 30.0), Cap(None))
        for sha256, size in here.blobs.items():
            blocks = client.blocks(sha256, size, 0, -(-size // BLOCK_SIZE), pacer)
            assert hashlib.sha256(b"".join(blocks)).hexdigest() == sha256
        here.now += LINK_S
        assert b"".join(client.blocks(here.sha256, here.size, 0, 1, pacer))
        assert len(asked) == 2, "the old link was over"
    here.service.links.url = before
