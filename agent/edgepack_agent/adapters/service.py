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
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.durable import write_file
from edgepack.errors import EdgepackError, UsageError
from edgepack_agent import config
from edgepack_agent.adapters.instances import CONFIG, find_instances
from edgepack_agent.adapters.units import SLICE, SYSUSERS, TEMPLATE, UNIT, render, unit_of

__all__ = [
    "Done",
    "Place",
    "Standing",
    "hand_over",
    "hidden",
    "install",
    "standing",
    "this_program",
    "uninstall",
]

_UNSEEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - not for our files
"""What the unit's ProtectHome and PrivateTmp hide from the service."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the service is for: this system, or the one below another root; an instance, or none."""

    root: Path = Path("/")
    instance: str = ""

    @property
    def service(self) -> str:
        """What systemd calls the service."""
        return unit_of(self.instance)

    @property
    def unit(self) -> Path:
        """The unit's file; that of an instance is the template of all."""
        return self._units / (TEMPLATE if self.instance else UNIT)

    @property
    def enabled(self) -> Path:
        """The link that starts the service at boot."""
        return self._wants / self.service

    @property
    def slice(self) -> Path:
        """Holds the limits for all agents together."""
        return self._units / "system-edgepack.slice"

    @property
    def sysusers(self) -> Path:
        """Tells systemd which user there is to be."""
        return self.root / "etc/sysusers.d/edgepack.conf"

    @property
    def settings(self) -> Path:
        """Directory of the configuration."""
        return self.root / "etc/edgepack" / self.instance

    @property
    def data(self) -> tuple[Path, ...]:
        """Where the device's data may be; `private` is systemd's choice for dynamic users."""
        state, name = self.root / "var/lib", self.own("edgepack")
        return (state / name, state / "private" / name)

    @property
    def siblings(self) -> list[Path]:
        """The links that start the other agents of this box."""
        found = [*self._wants.glob(TEMPLATE.replace("@", "@*")), self._wants / UNIT]
        return [path for path in found if path != self.enabled and path.is_symlink()]

    def own(self, name: str) -> str:
        """Return what systemd calls the directory that is NAME without an instance."""
        return f"{name}-{self.instance}" if self.instance else name

    @property
    def _units(self) -> Path:
        return self.root / "etc/systemd/system"

    @property
    def _wants(self) -> Path:
        return self._units / "multi-user.target.wants"

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
        _write(place.unit, render(program, template=bool(place.instance)), done)
        _write(place.slice, SLICE, done)
        _write(place.sysusers, SYSUSERS, done)
        (place.settings / "conf.d").mkdir(parents=True, exist_ok=True)
        if (place.settings / CONFIG).exists():
            done.kept.append(place.settings / CONFIG)
        else:
            _write(place.settings / CONFIG, _skeleton(place), done)
        _enable(place, done)
    except OSError as error:
        raise _refused(error) from error
    _make_user(place, done)
    if place.live:
        _systemctl("daemon-reload")
        if now:
            _systemctl("restart", place.service)
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
        _systemctl("disable", "--now", place.service)
    ours = [place.enabled, *_unshared(place)]
    leftovers = [*_own_settings(place), *place.data]
    try:
        for path in ours + (leftovers if purge else []):
            _remove(path, done)
    except OSError as error:
        raise _refused(error) from error
    done.kept += [path for path in leftovers if path.exists()]
    if place.live:
        _systemctl("daemon-reload")
    return done


def _unshared(place: Place) -> list[Path]:
    """Return the files of systemd that no other agent of the box needs."""
    others = place.siblings
    same_unit = place.instance and any("@" in path.name for path in others)
    return ([] if same_unit else [place.unit]) + ([] if others else [place.slice, place.sysusers])


def _own_settings(place: Place) -> list[Path]:
    """Return the configuration; that of instances is below the directory of the agent without."""
    if place.instance or not any(each.name for each in find_instances(place.settings)):
        return [place.settings]
    return [place.settings / CONFIG, place.settings / "conf.d"]


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
        told = ("show", "-P", "ActiveState", place.service)
        active = _ask_systemctl(*told).stdout.strip()
        watchdog = _ask_systemctl("show", "-P", "WatchdogUSec", place.service).stdout.strip() != "0"
    return Standing(
        installed=bool(text),
        current=program is not None
        and text == render(Path(program[1]), template=bool(place.instance)),
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
    link.symlink_to(f"../{place.unit.name}")
    done.wrote.append(link)


def _remove(path: Path, done: Done) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    else:
        return
    done.removed.append(path)


def _skeleton(place: Place) -> str:
    """Return a configuration that shows every key, and sets only what an instance must have."""
    _, _, keys = inspect.cleandoc(config.__doc__ or "").partition("\n\n")
    shown = "".join(f"# {line}\n" for line in keys.splitlines())
    dirs = {"data_dir": Path("/var/lib"), "run_dir": Path("/run")} if place.instance else {}
    own = "".join(f"{key}: {path / place.own('edgepack')}\n" for key, path in dirs.items())
    return (
        "# Settings of the edgepack agent. Every key has a default; an unknown key is an error.\n"
        "# conf.d/*.yaml beside this file is merged over it, in the order of names.\n"
        "# `edgepack-agent config check` checks all of it, `config show` says what holds.\n"
        f"#\n{shown}{own}"
    )


def _make_user(place: Place, done: Done) -> None:
    program = shutil.which("systemd-sysusers")
    if program is None:
        done.warnings.append("systemd-sysusers is not here: the user is made at the next boot")
        return
    ran = subprocess.run(
        [program, f"--root={place.root}", "-"],
        input=SYSUSERS,
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
