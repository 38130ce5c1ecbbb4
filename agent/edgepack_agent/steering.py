"""Follows the settings of the fleet while the agent runs: judge, keep, apply, report.

They are on disk before they hold, so that a power cut leaves the old or the new ones. What is
rejected changes nothing; the fleet is told why, and is not asked again until it says otherwise.
"""

import logging
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from edgepack.errors import EdgepackError, UsageError
from edgepack.settings import Settings
from edgepack_agent.adapters.kept_settings import Kept, keep, kept
from edgepack_agent.config import Config, overlaid, pinned_of
from edgepack_agent.core.effects import Publish

__all__ = ["Steering"]

log = logging.getLogger(__name__)


class Steering:
    """The settings that hold on this device.

    Args:
        local: What its files say, with defaults.
        said: Dotted keys that its files name: they win.
    """

    def __init__(self, local: Config, said: Collection[str] = ()) -> None:
        self._local, self._said = local, frozenset(said)
        self._kept = kept(local.data_dir)
        self._told = self._kept.judged
        self._appliers: list[Callable[[Config], None]] = []
        self.config = local
        """What holds now."""
        try:
            self.config = self._made(self._kept.values)
        except EdgepackError as error:
            # An agent that is older than when they were set, or files that do not go with them.
            log.warning("what the fleet has set does not hold: %s: %s", error, error.why)

    def told(self, version: int) -> None:
        """Note that the fleet speaks of VERSION of the settings."""
        self._told = version

    def due(self) -> bool:
        """Return whether the director is to be asked now; once for each time the fleet says so."""
        due, self._told = self._told != self._kept.judged, self._kept.judged
        return due

    def then(self, apply: Callable[[Config], None]) -> None:
        """Call APPLY with the settings whenever they have changed."""
        self._appliers.append(apply)

    def take(self, found: Settings | None) -> Publish | None:
        """Take what the director says; return what is to be reported of it.

        Raises:
            OSError: it cannot be kept; what holds stays.
        """
        wanted = found or Settings(version=0)
        if wanted.version == self._kept.judged:
            return None
        try:
            config = self._made(wanted.values)
        except EdgepackError as error:
            log.warning("settings %d are rejected: %s: %s", wanted.version, error, error.why)
            self._keep(msgspec.structs.replace(self._kept, judged=wanted.version))
            message = f"{error.what}: {error.why}"[:1000]
            return self._report(wanted, "rejected", error.reason, message)
        self._keep(Kept(judged=wanted.version, applied=wanted.version, values=wanted.values))
        self.config = config
        log.info("settings %d hold: %s", wanted.version, ", ".join(wanted.values) or "none")
        for apply in self._appliers:
            apply(config)
        return self._report(wanted, "applied")

    def describe(self) -> dict[str, Any]:
        """Return what the fleet has set, for `status`."""
        values = self._kept.values
        pinned = pinned_of(values, self._said)
        return {"version": self._kept.applied, "values": values, "pinned": list(pinned)}

    def _made(self, values: dict[str, Any]) -> Config:
        if values and not self._local.remote.settings:
            raise UsageError(
                "this device takes no settings from its fleet",
                why="remote.settings is false in its configuration",
                reason="not_allowed",
            )
        return overlaid(self._local, values, self._said)

    def _keep(self, found: Kept) -> None:
        keep(self._local.data_dir, found)
        self._kept = found

    def _report(
        self, wanted: Settings, status: str, reason: str = "", message: str = ""
    ) -> Publish:
        pinned = list(pinned_of(wanted.values, self._said))
        detail = {"version": wanted.version, "status": status, "message": message, "pinned": pinned}
        once = f"settings-{wanted.version}"
        return Publish("settings", None, None, reason, detail, once)
