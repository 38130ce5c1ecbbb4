"""Publishing over HTTP, to the fleet's own REST interface on a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import msgspec
import pytest
import uvicorn

import bundles
from delta_rig import model, release
from edgepack.errors import BudgetError, EdgepackError, IntegrityError, UnreachableError, UsageError
from edgepack.metadata import MetadataDirectory
from edgepack.offers import offers_name, write_offers
from edgepack_fleet.access import bootstrap_token, fleet_secret
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from edgepack_packager.adapters.fleet_repository import FleetRepository
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.mirror import export
from edgepack_packager.repository import PublishRequest, init, public_keys, publish, revise
from edgepack_packager.rotation import Rotation, rotated
from edgepack_packager.standing import current_state
from trust_rig import no_passphrase

NOW = datetime.now(UTC)  # the fleet's routes go by the real clock


@dataclass
class Fleet:
    service: Service
    url: str

    def token(self, role: str = "operator") -> str:
        return bootstrap_token(fleet_secret(self.service.settings.data, create=False), role)  # type: ignore[arg-type]

    @cached_property
    def client(self) -> FleetRepository:
        return FleetRepository(self.url + "/", self.token())


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """The fleet's HTTP side; no broker is needed to publish."""
    service = Service(Settings(tmp_path / "fleet", Address("127.0.0.1", 1)))
    server = uvicorn.Server(uvicorn.Config(main_app(service), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        fleet = Fleet(service, f"http://127.0.0.1:{listener.getsockname()[1]}")
        with fleet.client:
            yield fleet
        server.should_exit = True
        thread.join()
    service.database.close()


@pytest.fixture
def home(fleet: Fleet, tmp_path: Path) -> PublisherHome:
    init(tmp_path / "home", None, NOW, fleet.client.online_keys())
    return PublisherHome(tmp_path / "home", no_passphrase)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "b", model_bytes=3 * 1024 * 1024).path


def error_of(home: PublisherHome, client: FleetRepository, path: Path) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        publish(home, client, PublishRequest([path]), NOW)
    assert caught.value.diagnostics()
    return caught.value


def test_a_bundle_arrives_whole(home: PublisherHome, fleet: Fleet, bundle: Path) -> None:
    client = fleet.client
    done = publish(home, client, PublishRequest([bundle]), NOW)
    (release,) = fleet.service.images.releases()
    assert release.variants == done.targets
    assert done.uploaded_bytes > 3 * 1024 * 1024
    again = publish(home, client, PublishRequest([bundle]), NOW)
    assert again.uploaded_bytes == 0
    assert again.targets == done.targets


def test_a_wrong_or_weak_token(home: PublisherHome, fleet: Fleet, bundle: Path) -> None:
    for token in ("guess", fleet.token("viewer")):
        with FleetRepository(fleet.url, token) as client:
            error = error_of(home, client, bundle)
        assert isinstance(error, UsageError)
        assert error.reason == "unauthorized"
        assert "guess" not in error.diagnostics()


def test_a_refusal_is_told_in_the_fleets_words(
    home: PublisherHome, fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    init(tmp_path / "other", None, NOW)  # with online keys of its own
    stranger = PublisherHome(tmp_path / "other", no_passphrase)
    error = error_of(stranger, fleet.client, bundle)
    assert (error.exit_code, error.reason) == (3, "bad_root")
    assert "key of this fleet" in error.what
    assert "--fleet" in error.fix
    assert MetadataDirectory(tmp_path / "other" / "metadata").versions("line-digits") == []


def test_a_blob_that_is_not_what_it_is_called(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"something else")
    with (tmp_path / "blob").open("rb") as file, pytest.raises(EdgepackError) as caught:
        fleet.client.put("a" * 64, 14, file)
    assert (caught.value.exit_code, caught.value.reason) == (3, "digest_mismatch")
    assert not fleet.client.has("a" * 64, 14)


def test_a_full_disk_at_the_fleet(
    home: PublisherHome, fleet: Fleet, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(sha256: str, stream: object, *, limit: int | None = None) -> int:
        raise BudgetError("no room for the blob", reason="disk_full")

    monkeypatch.setattr(fleet.service.content, "put", full)
    error = error_of(home, fleet.client, bundle)
    assert (error.exit_code, error.reason) == (6, "disk_full")


def test_a_fleet_that_breaks(
    home: PublisherHome, fleet: Fleet, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet.service.images, "publish", None)
    error = error_of(home, fleet.client, bundle)
    assert isinstance(error, UnreachableError)
    assert "500" in error.why
    monkeypatch.undo()
    publish(home, fleet.client, PublishRequest([bundle]), NOW)


def test_a_fleet_that_is_gone() -> None:
    for url in ("http://127.0.0.1:9", "http://"):
        with FleetRepository(url, "") as client, pytest.raises(UnreachableError):
            client.online_keys()


@pytest.mark.parametrize("answer", [b"", b"not http at all", b"HTTP/1.1 200 OK\r\n\r\n<html>"])
def test_something_else_that_listens_there(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(answer)

        thread = threading.Thread(target=talk)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with FleetRepository(url, "") as client, pytest.raises(UnreachableError):
            client.online_keys()
        thread.join()


def test_patches_are_offered_over_http(home: PublisherHome, fleet: Fleet, tmp_path: Path) -> None:
    client = fleet.client
    publish(home, client, PublishRequest([release(tmp_path, "1.0.0", model())]), NOW)
    new = release(tmp_path, "1.1.0", model(500))
    done = publish(home, client, PublishRequest([new], delta_from=("auto",)), NOW)
    (delta,) = done.deltas
    offers = client.offers(delta.pair.target, delta.pair.target_size)
    (offer,) = offers.offers
    assert (offer.base, offer.size) == (delta.pair.base, delta.size)
    served = fleet.service.transfer._image(offers_name(delta.pair.target))
    assert served == write_offers(offers)

    patch = tmp_path / "patch"
    client.fetch(offer.patch, offer.size, patch)
    assert patch.stat().st_size == offer.size
    with pytest.raises(IntegrityError):
        client.fetch(offer.patch, offer.size - 1, tmp_path / "short")
    with pytest.raises(EdgepackError, match="no blob"):
        client.fetch("0" * 64, 10, tmp_path / "none")
    wrong = msgspec.structs.replace(offer, codec="xdelta")
    with pytest.raises(IntegrityError, match="no codec xdelta") as caught:
        client.offer(delta.pair.target, delta.pair.target_size, [wrong])
    assert caught.value.reason == "bad_offers"
    assert client.offers("0" * 64, 10).offers == ()


def test_only_an_operator_may_offer_or_read_blobs(fleet: Fleet, tmp_path: Path) -> None:
    with FleetRepository(fleet.url, fleet.token("viewer")) as client:
        for refused in (
            lambda: client.offer("0" * 64, 10, []),
            lambda: client.offers("0" * 64, 10),
            lambda: client.fetch("0" * 64, 10, tmp_path / "x"),
        ):
            with pytest.raises(UsageError) as caught:
                refused()
            assert caught.value.reason == "unauthorized"


def test_online_keys_are_replaced_over_http(
    home: PublisherHome, fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    publish(home, fleet.client, PublishRequest([bundle]), NOW)
    before = fleet.client.online_keys()
    state = current_state(home, fleet.client)
    rotation = Rotation({"snapshot": "", "timestamp": "", "line-digits": ""})
    change = rotated(home, state, rotation, lambda: public_keys(fleet.client.next_online_keys()))
    revise(home, fleet.client, state, change, NOW)
    after = fleet.client.online_keys()
    assert {role: key["keyid"] for role, key in after.items()} != {
        role: key["keyid"] for role, key in before.items()
    }
    for role, key in after.items():
        assert key["keyid"] in home.root.roles[role].keyids
        assert before[role]["keyid"] not in home.root.roles[role].keyids
    life = timedelta(days=30)
    done = export(home, fleet.client, tmp_path / "stick", (), life, NOW)
    assert done.copied_bytes > 3 * 1024 * 1024
    again = export(home, fleet.client, tmp_path / "stick", (), life, NOW)
    assert again.copied_bytes == 0
