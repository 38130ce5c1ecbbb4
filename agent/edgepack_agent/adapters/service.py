"""The systemd service of this installation: its unit, user and configuration, on disk and running.

Everything may be done twice. Works on another root directory as well, for images and chroots;
there nothing is started, and the system under that root picks it all up when it boots.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.durable import write_file
from edgepack.errors import EdgepackError, UsageError
from edgepack_agent import config

__all__ = [
    "UNIT",
    "Done",
    "Place",
    "Standing",
    "hand_over",
    "hidden",
    "install",
    "render",
    "standing",
    "this_program",
    "uninstall",
]

UNIT = "edgepack-agent.service"
_PROGRAM = "/usr/bin/edgepack-agent"
_UNSEEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - not for our files
"""What the unit's ProtectHome and PrivateTmp hide from the service."""
_SYSUSERS = """\
# The user of the edgepack agent. Programs that use its inference API join the group `edgepack`.
u edgepack - "edgepack agent"
g video - -
g render - -
"""


@dataclass(frozen=True, slots=True)
class Place:
    """The system that the service is for: this one, or the one below another root."""

    root: Path = Path("/")

    @property
    def unit(self) -> Path:
        """The unit's file."""
        return self.root / "etc/systemd/system" / UNIT

    @property
    def enabled(self) -> Path:
        """The link that starts the unit at boot."""
        return self.unit.parent / "multi-user.target.wants" / UNIT

    @property
    def sysusers(self) -> Path:
        """Tells systemd which user there is to be."""
        return self.root / "etc/sysusers.d/edgepack.conf"

    @property
    def settings(self) -> Path:
        """Directory of the configuration."""
        return self.root / "etc/edgepack"

    @property
    def data(self) -> tuple[Path, ...]:
        """Where the device's data may be; `private` is systemd's choice for dynamic users."""
        state = self.root / "var/lib"
        return (state / "edgepack", state / "private/edgepack")

    @property
    def live(self) -> bool:
        """Whether systemd runs here and can be told."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()


@dataclass(slots=True)
class Done:
    """What was changed and what was left alone."""

    wrote: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Standing:
    """How it is with the service.

    Attributes:
        installed: The unit is there.
        current: It is what this version would write.
        enabled: It starts at boot.
        active: `active`, `inactive`, `failed`, ...; empty where systemd does not run.
        watchdog: systemd ends an agent that shows no sign of life.
    """

    installed: bool
    current: bool
    enabled: bool
    active: str
    watchdog: bool


def this_program() -> Path:
    """Return the `edgepack-agent` of this very installation."""
    return Path(sys.argv[0]).resolve()


def hidden(program: Path) -> str:
    """Say why the service could not run PROGRAM; empty if it could."""
    needed = [program]
    if program == this_program():
        needed += [Path(sys.prefix), Path(sys.base_prefix), Path(__file__)]
    for path in (each.resolve() for each in needed):
        for place in _UNSEEN:
            if path.is_relative_to(place):
                return f"{path} is below {place}, which the service cannot see"
    return ""


def render(program: Path) -> str:
    """Return the unit that runs PROGRAM.

    Raises:
        UsageError: the unit file is not installed.
    """
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
    return found.read_text().replace(_PROGRAM, str(program))


def install(place: Place, program: Path, *, now: bool) -> Done:
    """Make the service of PROGRAM start at boot of PLACE.

    Args:
        place: A configuration that is there is kept.
        program: As seen from within PLACE.
        now: Start it at once, or start it anew.

    Raises:
        UsageError: it cannot be written, or the service could not run PROGRAM.
        EdgepackError: systemd refuses.
    """
    if why := hidden(program):
        raise UsageError(
            f"the service could not run {program}",
            why=why,
            fix="install edgepack in a venv below /opt, and use the one there",
            reason="hidden_program",
        )
    done = Done()
    try:
        _write(place.unit, render(program), done)
        _write(place.sysusers, _SYSUSERS, done)
        (place.settings / "conf.d").mkdir(parents=True, exist_ok=True)
        if (place.settings / "agent.yaml").exists():
            done.kept.append(place.settings / "agent.yaml")
        else:
            _write(place.settings / "agent.yaml", _skeleton(), done)
        _enable(place, done)
    except OSError as error:
        raise _refused(error) from error
    _make_user(place, done)
    if place.live:
        _systemctl("daemon-reload")
        if now:
            _systemctl("restart", UNIT)
    return done


def uninstall(place: Place, *, purge: bool) -> Done:
    """Stop the service and take it away.

    Args:
        place: Where it was installed.
        purge: Remove configuration, identity and models as well. The user stays.

    Raises:
        UsageError: something cannot be removed.
        EdgepackError: systemd refuses.
    """
    done = Done()
    if place.live and place.unit.exists():
        _systemctl("disable", "--now", UNIT)
    ours = [place.enabled, place.unit, place.sysusers]
    leftovers = [place.settings, *place.data]
    try:
        for path in ours + (leftovers if purge else []):
            _remove(path, done)
    except OSError as error:
        raise _refused(error) from error
    done.kept += [path for path in leftovers if path.exists()]
    if place.live:
        _systemctl("daemon-reload")
    return done


def standing(place: Place) -> Standing:
    """Return how it is with the service of PLACE."""
    try:
        text = place.unit.read_text()
    except OSError:
        text = ""
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)
    watchdog = bool(re.search(r"^WatchdogSec=[1-9]", text, re.MULTILINE))
    active = ""
    if place.live:
        told = ("show", "-P", "ActiveState", UNIT)
        active = _ask_systemctl(*told).stdout.strip()
        watchdog = _ask_systemctl("show", "-P", "WatchdogUSec", UNIT).stdout.strip() != "0"
    return Standing(
        installed=bool(text),
        current=program is not None and text == render(Path(program[1])),
        enabled=place.enabled.is_symlink(),
        active=active,
        watchdog=watchdog,
    )


def hand_over(data: Path) -> None:
    """Give what root has written below DATA to the user whom DATA belongs to: the service's.

    Raises:
        OSError: something cannot be given away.
    """
    owner = data.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        # As long as the directory is root's, systemd hands over all of it at the first start.
        return
    for directory, folders, files in os.walk(data):
        for name in (*folders, *files):
            os.chown(Path(directory, name), owner.st_uid, owner.st_gid, follow_symlinks=False)


def _write(path: Path, text: str, done: Done) -> None:
    if path.is_file() and path.read_text() == text:
        done.kept.append(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode(), 0o644)
    done.wrote.append(path)


def _enable(place: Place, done: Done) -> None:
    """Do what `systemctl enable` does, which is not there on every machine that builds images."""
    link = place.enabled
    if link.is_symlink():
        done.kept.append(link)
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../{UNIT}")
    done.wrote.append(link)


def _remove(path: Path, done: Done) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    else:
        return
    done.removed.append(path)


def _skeleton() -> str:
    """Return a configuration that changes nothing and shows every key."""
    _, _, keys = inspect.cleandoc(config.__doc__ or "").partition("\n\n")
    shown = "".join(f"# {line}\n" for line in keys.splitlines())
    return (
        "# Settings of the edgepack agent. Every key has a default; an unknown key is an error.\n"
        "# conf.d/*.yaml beside this file is merged over it, in the order of names.\n"
        "# `edgepack-agent config check` checks all of it, `config show` says what holds.\n"
        f"#\n{shown}"
    )


def _make_user(place: Place, done: Done) -> None:
    program = shutil.which("systemd-sysusers")
    if program is None:
        done.warnings.append("systemd-sysusers is not here: the user is made at the next boot")
        return
    ran = subprocess.run(
        [program, f"--root={place.root}", "-"],
        input=_SYSUSERS,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        done.warnings.append(f"the user is made at the next boot: {ran.stderr.strip()}")


def _systemctl(*words: str) -> None:
    ran = _ask_systemctl(*words)
    if ran.returncode:
        raise EdgepackError(
            f"systemctl {' '.join(words)} failed",
            why=ran.stderr.strip(),
            fix=f"systemctl status {UNIT}; edgepack-agent doctor",
            reason="systemctl",
        )


def _ask_systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)


def _refused(error: OSError) -> UsageError:
    root = isinstance(error, PermissionError)
    return UsageError(
        f"cannot change {error.filename}",
        why=error.strerror or str(error),
        fix="run it as root" if root else "",
        reason="not_allowed" if root else "unwritable",
    )
