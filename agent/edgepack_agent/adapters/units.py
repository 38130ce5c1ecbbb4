"""The texts that systemd reads: the agent's unit, the template of its instances, slice and user."""

import sysconfig
from pathlib import Path

from edgepack.errors import UsageError

__all__ = ["SLICE", "SYSUSERS", "TEMPLATE", "UNIT", "render", "unit_of"]

UNIT = "edgepack-agent.service"
TEMPLATE = "edgepack-agent@.service"
_PROGRAM = "/usr/bin/edgepack-agent"
SYSUSERS = """\
# The user of the edgepack agent. Programs that use its inference API join the group `edgepack`.
u edgepack - "edgepack agent"
g video - -
g render - -
"""
SLICE = """\
# All edgepack agents of this box together, each for one line of models. When they want more
# processor than there is, each gets the same; a fifth of the memory stays for other programs. By
# its name it is within system.slice, where all agents together count as one service.

[Unit]
Description=edgepack agents

[Slice]
MemoryMax=80%
"""
_AS_INSTANCE = (
    ("# edgepack agent:", "# An instance of the edgepack agent:"),
    ("`edgepack-agent service", "`edgepack-agent --instance NAME service"),
    ("systemctl edit edgepack-agent`", "systemctl edit edgepack-agent@NAME`"),
    ("Description=edgepack agent\n", "Description=edgepack agent for %i\n"),
    ("=/var/lib/edgepack/identity/", "=/var/lib/edgepack-%i/identity/"),
    (f"{_PROGRAM} run\n", f"{_PROGRAM} --instance %i run\n"),
    ("StateDirectory=edgepack\n", "StateDirectory=edgepack-%i\n"),
    ("RuntimeDirectory=edgepack\n", "RuntimeDirectory=edgepack-%i\n"),
    ("NoExecPaths=/var/lib/edgepack\n", "NoExecPaths=/var/lib/edgepack-%i\n"),
)  # fmt: skip
"""What the template says otherwise. Directories of its own, not below those of the agent without a
name: systemd removes /run/edgepack as a whole when that one stops."""


def unit_of(instance: str) -> str:
    """Return the unit that runs INSTANCE; empty: the agent without a name."""
    return TEMPLATE.replace("@", f"@{instance}") if instance else UNIT


def render(program: Path, *, template: bool = False) -> str:
    """Return the unit that runs PROGRAM.

    Args:
        program: As the system that it is for sees it.
        template: Return that of instances instead.

    Raises:
        UsageError: the unit file is not installed.
    """
    text = _installed()
    for here, there in _AS_INSTANCE if template else ():
        if text.count(here) != 1:
            raise AssertionError(f"the unit does not say {here!r} once")
        text = text.replace(here, there)
    return text.replace(_PROGRAM, str(program))


def _installed() -> str:
    installed = Path(sysconfig.get_path("data")) / "share" / "edgepack" / UNIT
    source = Path(__file__).parents[2] / "systemd" / UNIT
    found = next((path for path in (source, installed) if path.is_file()), None)
    if found is None:
        raise UsageError(
            "the unit file is not installed",
            why=f"there is no {installed}",
            fix="install edgepack again",
            reason="no_unit",
        )
    return found.read_text()
