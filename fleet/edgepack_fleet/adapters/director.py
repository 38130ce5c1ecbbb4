"""What each device shall run and be set to, signed: a small TUF repository per device, one root.

Points a device at a model and cannot invent one: the device believes it only as far as the
image repository agrees. Decides nothing; the fleet's rollouts do.
"""

import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Root, Targets

from edgepack.errors import UsageError
from edgepack.metadata import (
    DEVICE,
    ISSUED,
    MetadataDirectory,
    OnlineKeys,
    keep_fresh,
    parse,
    seal,
    sign,
    split_name,
    stale,
    target_file,
    target_info,
    version_after,
)
from edgepack.settings import SETTINGS, Settings
from edgepack.topics import DEVICE_ID
from edgepack.trust import TargetInfo, TrustError
from edgepack_fleet.adapters.lock import alone
from edgepack_fleet.adapters.online_signer import online_signer

__all__ = ["Director"]

ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=7)
KEEP = 3
"""Versions of a role that stay, for devices in the middle of reading."""

log = logging.getLogger(__name__)


class Director:
    """The repositories of all devices in DIRECTORY.

    Args:
        directory: Gets `root/`, `keys/` and a directory per device.
        clock: The time, UTC.

    An online key that the root does not name yet, because the one before was taken away, is put
    into a new root.

    Raises:
        UsageError: that new root cannot be signed: its key is kept elsewhere (`no_key`).
    """

    def __init__(
        self, directory: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._roots = MetadataDirectory(directory / "root")
        self._devices = directory / "devices"
        self._root_key = directory / "keys" / "root.pem"
        self._clock = clock
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._signed: set[str] = set()
        """Devices whose files this process has signed."""
        with alone(directory):  # workers may start at the same moment
            self._key = online_signer(directory / "keys" / "online.pem")
            self._renew_root(self._clock())

    def root(self) -> bytes:
        """Return the first root, which an enrolling device pins."""
        return self._roots.read("1.root.json") or b""

    def assign(self, device: str, target: TargetInfo | None) -> None:
        """Say that DEVICE shall run TARGET; None: no model. Durable when it returns.

        Raises:
            UsageError: DEVICE cannot be a device's id.
        """
        with alone(self._directory):
            repository = self._repository(device)
            last = _last(repository)
            if last is None or _wanted(last) != target:
                self._sign(device, repository, target, _settings(last))

    def configure(self, device: str, settings: Settings) -> None:
        """Say what DEVICE is to be set to. Durable when it returns.

        Raises:
            UsageError: DEVICE cannot be a device's id.
        """
        said = msgspec.to_builtins(settings)
        with alone(self._directory):
            repository = self._repository(device)
            last = _last(repository)
            if last is None or last.unrecognized_fields.get(SETTINGS) != said:
                self._sign(device, repository, _wanted(last), said)

    def forget(self, device: str) -> None:
        """Say nothing about DEVICE any more; who has its name next starts afresh.

        Versions are never lower than the time, so the next one's are above what it had.

        Raises:
            UsageError: DEVICE cannot be a device's id.
        """
        with alone(self._directory):
            self._repository(device)
            shutil.rmtree(self._devices / device, ignore_errors=True)
            self._signed.discard(device)

    def metadata(self, device: str, name: str) -> bytes | None:
        """Return the metadata file NAME for DEVICE; None if there is none of that name.

        The caller has proved that DEVICE is asking. What is past its half-life is signed
        again first, so that nothing has to be done for a device that is away.
        """
        try:
            if split_name(name)[1] == "root":
                return self._roots.read(name)
            if name == "timestamp.json":
                self._refresh(device, self._clock())
            return self._repository(device).read(name)
        except (TrustError, UsageError):
            return None

    def keep_fresh(self, now: datetime | None = None) -> None:
        """Renew the shared root if it is past its half-life. Devices' files renew when asked."""
        with alone(self._directory):
            self._renew_root(now or self._clock())

    def _refresh(self, device: str, now: datetime) -> None:
        with alone(self._directory):
            repository = self._repository(device)
            signed = _last(repository)
            # At first sight everything is signed anew: what is here may be a restored backup, and
            # the device may have seen later versions than it.
            first = device not in self._signed
            if signed is None or first or stale(signed.expires, TARGETS_LIFE, now):
                self._sign(device, repository, _wanted(signed), _settings(signed))
            else:
                keep_fresh(repository, OnlineKeys(self._key, self._key), now)

    def _sign(
        self,
        device: str,
        repository: MetadataDirectory,
        target: TargetInfo | None,
        settings: Any = None,
    ) -> None:
        now = self._clock()
        versions = repository.versions("targets")
        targets = Targets(
            version_after(versions[-1] if versions else 0, now),
            expires=now + TARGETS_LIFE,
            targets={target.path: target_file(target)} if target else {},
            unrecognized_fields={DEVICE: device, ISSUED: int(now.timestamp())}
            | ({SETTINGS: settings} if settings is not None else {}),
        )
        data = sign(targets, self._key)
        repository.write(f"{targets.version}.targets.json", data)
        seal(repository, {"targets": data}, OnlineKeys(self._key, self._key), now)
        repository.prune("targets", KEEP)
        self._signed.add(device)

    def _renew_root(self, now: datetime) -> None:
        versions = self._roots.versions("root")
        data = self._roots.read(f"{versions[-1]}.root.json") if versions else None
        last = parse(data, Root).signed if data else None
        named = last is not None and self._key.public_key.keyid in last.roles["targets"].keyids
        if last and named and not stale(last.expires, ROOT_LIFE, now):
            return
        if last and not self._root_key.exists():
            self._miss_root_key(last, named=named)
            return
        root = Root(versions[-1] + 1 if versions else 1, expires=now + ROOT_LIFE)
        key = online_signer(self._root_key)
        root.add_key(key.public_key, "root")
        for role in ("targets", "snapshot", "timestamp"):
            root.add_key(self._key.public_key, role)
        self._roots.write(f"{root.version}.root.json", sign(root, key))

    def _miss_root_key(self, last: Root, *, named: bool) -> None:
        if named:
            log.warning("the director's root ends on %s; bring %s", last.expires, self._root_key)
            return
        raise UsageError(
            "the director's online key is new, and no root names it",
            why=f"only {self._root_key} can sign one, and it is not there",
            fix="bring it back and start the fleet again",
            reason="no_key",
        )

    def _repository(self, device: str) -> MetadataDirectory:
        if not DEVICE_ID.fullmatch(device):
            raise UsageError(f"{device[:80]!r} cannot be the id of a device", reason="bad_device")
        return MetadataDirectory(self._devices / device)


def _last(repository: MetadataDirectory) -> Targets | None:
    """Return what was signed for a device last; None: nothing was."""
    data = repository.current().get("targets")
    return parse(data, Targets).signed if data is not None else None


def _wanted(last: Targets | None) -> TargetInfo | None:
    """Return the model that LAST speaks of; there is one at most."""
    return next((target_info(file) for file in last.targets.values()), None) if last else None


def _settings(last: Targets | None) -> Any:
    """Return the settings that LAST speaks of, as they were signed; None: none."""
    return last.unrecognized_fields.get(SETTINGS) if last else None
