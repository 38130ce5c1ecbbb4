"""Models in an object store: the same promises as a directory, over three kinds of stores."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from obstore.store import LocalStore, MemoryStore

from edgepack.errors import IntegrityError, UnreachableError, UnsupportedError, UsageError
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.content import ContentStore
from edgepack_fleet.adapters.object_content import ObjectContent, open_content
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from fleet_rig import free_port, listens, talking_to, wait
from rest_rig import LISTENER, auth
from trust_rig import Clock, PublishRequest, PushedTo, World, publish

DATA = bytes(range(256)) * 40_000  # about 10 MB: more than two windows
SHA = hashlib.sha256(DATA).hexdigest()
KEYS = {
    "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1",
}  # fmt: skip


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a server that speaks as S3 does, with a bucket `models`."""
    # It brings boto3, which changes what other libraries load: it lives in a place of its own.
    command = shutil.which("moto_server")
    if command is None:
        pytest.skip("no moto_server on the path (pipx install 'moto[server,s3]')")
    port = free_port()
    words = [command, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait("the server of S3", lambda: listens(port), 60)
        assert httpx.put(f"http://127.0.0.1:{port}/models").status_code == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def url(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": s3}).items():
        monkeypatch.setenv(name, value)
    return f"s3://models/{tmp_path.name}"


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "s3":
        return open_content(request.getfixturevalue("url"), tmp_path, shared=True)
    kinds = {"memory": MemoryStore, "local": lambda: LocalStore(tmp_path / "s", mkdir=True)}
    return ObjectContent(kinds[request.param](), tmp_path / "arriving")


def test_what_goes_in_comes_out(store: ObjectContent) -> None:
    assert not store.has(SHA)
    with pytest.raises(FileNotFoundError):
        store.read(SHA)
    assert store.put(SHA, [DATA[:5], DATA[5:]]) == len(DATA)
    assert store.put(SHA, [DATA]) == len(DATA), "again is harmless"
    assert store.size(SHA) == len(DATA)
    assert store.read(SHA) == DATA
    assert store.read(SHA, len(DATA) - 3, 64) == DATA[-3:]
    assert store.read(SHA, len(DATA) + 5, 64) == b""
    pieces = list(store.pieces(SHA, 65536, len(DATA) - 7, 65536))
    assert b"".join(pieces) == DATA[65536:-7]
    assert {len(piece) for piece in pieces[:-1]} == {65536}
    store.drop(SHA)
    store.drop(SHA)
    assert not store.has(SHA)
    nothing = hashlib.sha256(b"").hexdigest()
    assert (store.put(nothing, [b""]), store.read(nothing)) == (0, b"")


def test_what_is_not_right_is_never_there(store: ObjectContent, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        store.put(SHA, [DATA[:-1]])
    with pytest.raises(IntegrityError):
        store.put(SHA, [DATA], limit=10)

    def torn() -> Iterator[bytes]:
        yield DATA[:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put(SHA, torn())
    with pytest.raises(UsageError):
        store.put("../secret", [DATA])
    assert not store.has(SHA)
    assert list((tmp_path / "arriving").iterdir()) == []


def test_a_fleet_publishes_into_it_and_serves_from_it(tmp_path: Path, url: str) -> None:
    settings = Settings(tmp_path / "fleet", Address("127.0.0.1", 1), content=url)
    service = Service(settings)
    world = World(tmp_path, Clock(datetime.now(UTC)))
    pushed = PushedTo(service.images, service.content, service.patches)
    with talking_to(main_app(service, LISTENER)) as app:
        bundle = PublishRequest((world.bundle("1.0.0"),))
        publish(world.home, pushed, bundle, world.clock(), lambda *_: None)
        (release,) = service.releases()
        variant = release.variants[0]
        where = f"/api/v1/repo/blobs/{variant.sha256}"
        whole = app.get(where, headers=auth(service))
        assert hashlib.sha256(whole.content).hexdigest() == variant.sha256
        part = app.get(where, headers=auth(service) | {"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, whole.content[2:6])
        assert app.get(f"/api/v1/repo/blobs/{SHA}", headers=auth(service)).status_code == 404
    assert not (tmp_path / "fleet" / "blobs" / "sha256" / variant.sha256).exists()
    service.database.close()


def test_what_cannot_be_used_is_said(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("martian://x/y", "memory:///", "https://example.com/x", "s3://"):
        with pytest.raises(UsageError):
            open_content(wrong, tmp_path, shared=False)
    for right in (None, str(tmp_path / "d"), f"file://{tmp_path / 'd'}"):
        assert isinstance(open_content(right, tmp_path, shared=False), ContentStore)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    with pytest.raises(UsageError, match="without TLS"):
        open_content(url, tmp_path, shared=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError) as caught:
        open_content(url, tmp_path, shared=False)
    assert caught.value.reason == "content"
    assert "tests" not in f"{caught.value} {caught.value.why}"
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UnsupportedError):
        open_content(url, tmp_path, shared=False)
