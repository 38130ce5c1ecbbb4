"""A publisher, a fleet's two repositories and devices in one process, with real files and keys.

Only the wire is missing: devices read the fleet's objects directly. Time is a field.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Targets

import bundles
from edgepack.bundle import open_bundle
from edgepack.keys import load_private
from edgepack.metadata import MetadataDirectory, parse, sign, signer_of
from edgepack.offers import Offer, Offers
from edgepack.trust import DeviceFacts, OnRevoked, TargetInfo, model_target
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.trust import TrustClient
from edgepack_fleet.adapters.content import Content, ContentStore
from edgepack_fleet.adapters.director import Director
from edgepack_fleet.adapters.image_repo import ImageRepo
from edgepack_fleet.adapters.patches import Patches
from edgepack_packager.adapters.patch_workshop import Progress
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.draft import Change
from edgepack_packager.core.roles import LineChange
from edgepack_packager.mirror import Exported, export
from edgepack_packager.repository import (
    Publication,
    PublishRequest,
    Revision,
    init,
    public_keys,
    publish,
    revise,
)
from edgepack_packager.rotation import Rotation, rotated
from edgepack_packager.standing import Doubt, current_state

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
FACTS = DeviceFacts({"onnx": "1.23.2"}, "x86_64", frozenset({"avx2"}))


def no_passphrase() -> bytes:
    raise AssertionError("nobody should be asked for a passphrase")


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class PushedTo:
    """What `edgepack repo publish --repo URL` does, without HTTP in between."""

    def __init__(self, image: ImageRepo, content: Content, patches: Patches) -> None:
        self.image, self.content, self.patches = image, content, patches

    def metadata(self, name: str) -> bytes | None:
        return self.image.metadata(name)

    def has(self, sha256: str, size: int) -> bool:
        return self.content.size(sha256) == size

    def put(self, sha256: str, size: int, file: BinaryIO) -> None:
        self.content.put(sha256, file, limit=size)

    def fetch(self, sha256: str, size: int, path: Path) -> None:
        path.write_bytes(self.content.read(sha256))

    def offers(self, target: str, size: int) -> Offers:
        return self.patches.offers(target, size)

    def offer(self, target: str, size: int, more: Sequence[Offer]) -> None:
        self.patches.add(target, size, more)

    def commit(self, files: Mapping[str, bytes], roles: Mapping[str, bytes]) -> int:
        return self.image.publish(files).snapshot


@dataclass
class World:
    """A fleet with a publisher. `tamper` sees every answer to a device and may replace it."""

    path: Path
    clock: Clock = field(default_factory=Clock)
    tamper: Callable[[str, str, bytes | None], bytes | None] = lambda repo, name, data: data

    def __post_init__(self) -> None:
        self.content = ContentStore(self.path / "fleet" / "blobs")
        self.image = ImageRepo(self.path / "fleet" / "image", self.content, self.clock)
        self.director = Director(self.path / "fleet" / "director", self.clock)
        self.asked: list[str] = []
        if not (self.path / "home").exists():
            init(self.path / "home", None, self.clock(), self.image.online_keys())
        self.home = PublisherHome(self.path / "home", no_passphrase)

    def bundle(self, version: str = "1.0.0", **fields: object) -> Path:
        directory = self.path / "bundles" / f"{version}-{len(fields)}"
        return bundles.write(directory, model_bytes=2000, version=version, **fields).path

    def publish(
        self, *paths: Path, progress: Progress = lambda *_: None, **request: object
    ) -> Publication:
        wanted = PublishRequest(paths, **request)  # type: ignore[arg-type]
        return publish(self.home, self.published, wanted, self.clock(), progress)

    @property
    def published(self) -> PushedTo:
        patches = Patches(self.path / "fleet" / "patches", self.content)
        return PushedTo(self.image, self.content, patches)

    def export(
        self, directory: Path, *releases: str, days: float = 30, patches: bool = False
    ) -> Exported:
        life, now = timedelta(days=days), self.clock()
        return export(self.home, self.published, directory, releases, life, now, patches=patches)

    def revoke(self, below: int, on_revoked: OnRevoked | None = None, line: str = "digits") -> None:
        change = Change({line: LineChange(min_epoch=below, on_revoked=on_revoked)})
        state = current_state(self.home, self.published)
        revise(self.home, self.published, state, change, self.clock())

    def rotate(self, *replace: str, doubt: Doubt | None = None, **more: object) -> Revision:
        """Change keys, as `edgepack repo rotate` does."""
        rotation = Rotation(dict.fromkeys(replace, ""), **more)  # type: ignore[arg-type]
        state = current_state(self.home, self.published, doubt)
        change = rotated(self.home, state, rotation, self.next_keys)
        return revise(self.home, self.published, state, change, self.clock())

    def next_keys(self) -> dict[str, Key]:
        return public_keys(self.image.next_online_keys())

    def release(self, version: str = "1.0.0", **fields: object) -> TargetInfo:
        """Build and publish a version; return its target."""
        path = self.bundle(version, **fields)
        self.publish(path)
        return target_of(path)

    def device(self, device: str = "cam-1", **more: object) -> TrustClient:
        directory = self.path / device
        return TrustClient(
            directory / "tuf",
            device,
            DeviceChannel(self, device),
            image_root=self.home.roots["1.root.json"],
            director_root=self.director.root(),
            floors=Floors(directory / "floors.json"),
            now=self.clock,
            **more,  # type: ignore[arg-type]
        )

    # What a thief of the fleet's host holds: its keys and its files.

    @property
    def image_files(self) -> MetadataDirectory:
        return MetadataDirectory(self.path / "fleet" / "image" / "metadata")

    def online_key(self, role: str) -> CryptoSigner:
        return signer_of(load_private(self.path / "fleet" / "image" / "keys" / f"{role}.pem"))

    def director_says(self, device: str, *targets: TargetInfo, **fields: object) -> None:
        """Sign any word for DEVICE with the director's stolen key."""
        from edgepack.metadata import DEVICE, OnlineKeys, seal, target_file, version_after

        key = signer_of(load_private(self.path / "fleet" / "director" / "keys" / "online.pem"))
        files = MetadataDirectory(self.path / "fleet" / "director" / "devices" / device)
        versions = files.versions("targets")
        word = Targets(
            version_after(versions[-1] if versions else 0, self.clock()),
            expires=self.clock() + timedelta(days=7),
            targets={target.path: target_file(target) for target in targets},
            unrecognized_fields={DEVICE: device, **fields},
        )
        data = sign(word, key)
        files.write(f"{word.version}.targets.json", data)
        seal(files, {"targets": data}, OnlineKeys(key, key), self.clock())


class DeviceChannel:
    """A device's way to the fleet, which authenticates it by its certificate."""

    def __init__(self, world: World, device: str) -> None:
        self.world, self.device = world, device

    def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
        self.world.asked.append(f"{repo}/{name}")
        source = self.world.image.metadata
        data = source(name) if repo == "image" else self.world.director.metadata(self.device, name)
        return self.world.tamper(repo, name, data)


def target_of(path: Path) -> TargetInfo:
    with open_bundle(path) as bundle:
        return model_target(bundle.manifest, bundle.oci_manifest)


def line_of(world: World, name: str = "digits") -> Targets:
    data = world.image_files.current()[f"line-{name}"]
    return parse(data, Targets).signed
