"""The systemd units of broker and fleet: rendered for this installation. Installs nothing."""

import shlex
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from edgepack.errors import UsageError

__all__ = ["SYSUSERS", "UNITS", "hidden", "render"]

UNITS = {"broker": "edgepack-broker.service", "fleet": "edgepack-fleet.service"}
SYSUSERS = """\
# The user of the edgepack fleet and its broker.
u edgepack-fleet - "edgepack fleet" /var/lib/edgepack-fleet
"""
_PROGRAM = "/usr/bin/edgepack"
_DATA = "/var/lib/edgepack-fleet"
_UNSEEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - not for our files
"""What the units' ProtectHome and PrivateTmp hide from the service."""


def render(part: str, program: Path, data: Path, options: Sequence[str]) -> str:
    """Return the unit of PART (`broker` or `fleet`).

    Args:
        part: Which of both.
        program: The `edgepack` that it runs.
        data: The fleet's directory; below another place than /var/lib/edgepack-fleet it must be
            there and belong to the user `edgepack-fleet`.
        options: Of the command, after `--data`.

    Raises:
        UsageError: the unit file is not installed (reason `no_unit`).
    """
    name = UNITS[part]
    installed = Path(sysconfig.get_path("data")) / "share" / "edgepack" / name
    source = Path(__file__).parents[2] / "systemd" / name
    found = next((path for path in (source, installed) if path.is_file()), None)
    if found is None:
        raise UsageError(
            "the unit file is not installed",
            why=f"there is no {installed}",
            fix="install edgepack again",
            reason="no_unit",
        )
    text = found.read_text()
    if str(data) != _DATA:
        text = text.replace("StateDirectory=edgepack-fleet\nStateDirectoryMode=0700\n", "")
        text = text.replace(
            "ProtectSystem=strict\n", f"ProtectSystem=strict\nReadWritePaths={data}\n"
        )
    words = " ".join(map(_quoted, options))
    start = f"--data {_DATA}"
    text = text.replace(f"{start}\n", f"{start} {words}".rstrip() + "\n")
    return text.replace(_PROGRAM, str(program)).replace(_DATA, str(data))


def hidden(path: Path) -> bool:
    """Return whether the service could not see PATH."""
    return any(path.is_relative_to(place) for place in _UNSEEN)


def _quoted(word: str) -> str:
    """Return WORD as systemd reads it: a percent sign is its own, quotes are a shell's."""
    return shlex.quote(word.replace("%", "%%"))
