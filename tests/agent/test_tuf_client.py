"""`edgepack-agent tuf-client`, as a conformance suite calls it, over a real broker."""

import fcntl
import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from tuf_gateway import Bench, bench

pytestmark = pytest.mark.mosquitto
BIG = b"0123456789abcdef" * (3 * 65536 + 1)
"""Three chunks and a bit."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("bench")) as found:
        yield found


@dataclass
class Repository:
    """A TUF repository on a loopback HTTP server, and a client that reads it over MQTT."""

    home: Path
    bench: Bench
    url: str
    keys: dict[str, CryptoSigner] = field(default_factory=dict)
    targets: dict[str, TargetFile] = field(default_factory=dict)
    version: int = 0
    roots: int = 1

    def __post_init__(self) -> None:
        for role in (Root.type, Timestamp.type, Snapshot.type, Targets.type):
            self.keys[role] = CryptoSigner.generate_ed25519()

    @property
    def got(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.home / "got").glob("*")}

    @property
    def files(self) -> Path:
        return self.home / "web"

    def add(self, path: str, content: bytes, algorithm: str = "sha256") -> Path:
        """Add a target and return the file it is served from."""
        self.targets[path] = target = TargetFile.from_data(path, content, [algorithm])
        folder, _, name = path.rpartition("/")
        served = self.files / "targets" / folder / f"{target.hashes[algorithm]}.{name}"
        served.parent.mkdir(parents=True, exist_ok=True)
        served.write_bytes(content)
        return served

    def rotate(self, role: str) -> None:
        self.keys[role] = CryptoSigner.generate_ed25519()
        self.roots += 1

    def publish(self, targets_version: int | None = None) -> None:
        """Publish the next version of everything; the targets may get another one."""
        self.version += 1
        first = targets_version or self.version
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        root = Root(self.roots, expires=expires, consistent_snapshot=True)
        for role, key in self.keys.items():
            root.add_key(key.public_key, role)
        targets = Targets(first, expires=expires, targets=dict(self.targets))
        snapshot = Snapshot(self.version, expires=expires)
        snapshot.meta["targets.json"] = MetaFile(first)
        timestamp = Timestamp(self.version, expires=expires, snapshot_meta=MetaFile(self.version))
        metadata = self.files / "metadata"
        metadata.mkdir(parents=True, exist_ok=True)
        signed: Root | Targets | Snapshot | Timestamp
        for name, signed in (
            (f"{self.roots}.root", root),
            (f"{first}.targets", targets),
            (f"{self.version}.snapshot", snapshot),
            ("timestamp", timestamp),
        ):
            document = Metadata(signed)
            document.sign(self.keys[signed.type])
            document.to_file(str(metadata / f"{name}.json"))

    def call(self, *words: str | Path) -> int:
        trusted = ["--metadata-dir", self.home / "trusted"]
        command = [self.bench.entry, *trusted, "--metadata-url", f"{self.url}/metadata", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert "Traceback" not in done.stderr, done.stderr
        self.said = done.stderr
        return done.returncode

    def init(self) -> int:
        return self.call("init", self.files / "metadata" / "1.root.json")

    def download(self, *names: str) -> int:
        options = [word for name in names for word in ("--target-name", name)]
        urls = ["--target-base-url", f"{self.url}/targets/", "--target-dir", self.home / "got"]
        return self.call(*options, *urls, "download")


@pytest.fixture
def repository(tmp_path: Path, place: Bench) -> Iterator[Repository]:
    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=tmp_path / "web")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Repository(tmp_path, place, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_targets_come_over_the_broker_once(repository: Repository) -> None:
    repository.add("folder/big file.bin", BIG)
    repository.add("small", b"few bytes", "sha512")
    repository.publish()
    assert repository.init() == 0
    assert repository.download("folder/big file.bin", "small") == 0
    assert repository.got == {"folder%2Fbig%20file.bin": BIG, "small": b"few bytes"}
    asked = len(repository.bench.gateway.asked)
    assert repository.download("small", "folder/big file.bin") == 0
    again = repository.bench.gateway.asked[asked:]
    assert not [url for url in again if "/targets/" in url]


def test_what_is_not_as_signed_is_refused_and_not_kept(repository: Repository) -> None:
    served = repository.add("model", b"as it was signed")
    repository.publish()
    assert repository.init() == 0
    served.write_bytes(b"as it was forged")
    assert repository.download("model") == 1
    served.write_bytes(b"as it was")
    assert repository.download("model") == 1
    assert repository.got == {}
    assert repository.download("no such model") == 1
    served.write_bytes(b"as it was signed")
    assert repository.download("model") == 0


def test_the_floors_hold_when_the_cache_is_lost(repository: Repository) -> None:
    repository.publish()
    old = repository.home / "old"
    shutil.copytree(repository.files / "metadata", old)
    repository.publish()
    assert repository.init() == 0
    assert repository.call("refresh") == 0
    shutil.copytree(old, repository.files / "metadata", dirs_exist_ok=True)
    for name in ("timestamp", "snapshot", "targets"):
        (repository.home / "trusted" / f"{name}.json").unlink()
    assert repository.call("refresh") == 1
    assert "went back" in repository.said


def test_new_snapshot_keys_take_back_versions_that_a_thief_drove_too_high(
    repository: Repository,
) -> None:
    repository.publish(1000)
    assert repository.init() == 0
    assert repository.call("refresh") == 0
    repository.publish(5)
    assert repository.call("refresh") == 1
    repository.rotate(Snapshot.type)
    repository.publish(6)
    assert repository.call("refresh") == 0
    repository.publish(5)
    assert repository.call("refresh") == 1


def test_it_needs_a_root_and_a_device_to_itself(repository: Repository) -> None:
    repository.publish()
    assert repository.call("refresh") == 1
    assert "no root" in repository.said
    assert repository.init() == 0
    with (repository.bench.entry.parent / "agent" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert repository.call("refresh") == 1
    assert "running" in repository.said
    assert repository.call("refresh") == 0
