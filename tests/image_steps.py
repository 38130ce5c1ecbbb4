"""Builds an image without a container engine: does a Dockerfile's steps in copies of a bare Debian.

Knows what our Dockerfile uses: FROM, ARG, ENV, LABEL, RUN, COPY, WORKDIR, USER, VOLUME, EXPOSE,
STOPSIGNAL, HEALTHCHECK, ENTRYPOINT and CMD, those with a command in their JSON form.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Container", "Image", "build", "instructions"]

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
QUIET = frozenset({"LABEL", "VOLUME", "EXPOSE", "STOPSIGNAL"})


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile's TEXT, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(word.upper(), rest.strip()) for word, rest in split]


@dataclass
class Image:
    """What a stage of a Dockerfile makes."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": SEARCHED})
    workdir: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def run(self, line: str, args: dict[str, str]) -> None:
        """Run a shell LINE in it as root, with this machine's network and way to packages."""
        script = (
            'mount -t proc proc "$0/proc" && mkdir -p "$0/run/host-certs" && '
            'mount --bind /etc/ssl/certs "$0/run/host-certs" && cd "$0" && '
            "for p in /opt/pypi /opt/pypi-more /opt/wheels; do [ ! -d $p ] || "
            '{ mkdir -p "$0$p" && mount --bind $p "$0$p"; }; done; '
            'exec chroot "$0" sh -ec "cd $1 && $2"'
        )
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        pip = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or "proxy" in k.lower()}
        if Path("/etc/pip.conf").exists():
            shutil.copy("/etc/pip.conf", self.root / "etc/pip.conf")
        env = {k: v.replace("/etc/ssl/certs", "/run/host-certs") for k, v in pip.items()}
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        done = subprocess.run(
            [*command, self.root, self.workdir, line],
            env=env | args | self.env | {"DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"RUN {line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def build(dockerfile: Path, context: Path, bare: Path, work: Path) -> Image:
    """Do the steps of DOCKERFILE, `FROM debian:...` being a copy of BARE; return the last stage."""
    stages: dict[str, Image] = {}
    before: dict[str, str] = {}
    args: dict[str, str] = {}
    image: Image | None = None
    for word, rest in instructions(dockerfile.read_text()):
        if word == "FROM":
            source, _, name = filled(rest, before).partition(" AS ")
            assert source.startswith("debian:bookworm"), source
            image, args = Image(work / (name or "image")), {}
            subprocess.run(["cp", "-a", bare, image.root], check=True)
            stages[name] = image
        elif word == "ARG":
            name, _, value = rest.partition("=")
            (args if image else before)[name] = value
        else:
            assert image is not None
            step(image, word, rest, args, context, stages)
    assert image is not None
    return image


def step(
    image: Image,
    word: str,
    rest: str,
    args: dict[str, str],
    context: Path,
    stages: dict[str, Image],
) -> None:
    if word == "RUN":
        image.run(rest, args)
    elif word == "COPY":
        copy(image, shlex.split(filled(rest, args | image.env)), context, stages)
    elif word == "ENV":
        image.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    elif word == "WORKDIR":
        image.workdir = rest
        (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif word == "USER":
        image.user = rest
    elif word == "ENTRYPOINT":
        image.entrypoint = json.loads(rest)
    elif word == "CMD":
        image.cmd = json.loads(rest)
    elif word == "HEALTHCHECK":
        image.healthcheck = json.loads(rest[rest.index("CMD") + 3 :])
    elif word == "VOLUME":
        image.volumes = json.loads(rest)
    else:
        assert word in QUIET, word


def copy(image: Image, words: list[str], context: Path, stages: dict[str, Image]) -> None:
    here = context
    if words[0].startswith("--from="):
        here = stages[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    for source in sources:
        place = image.root / image.workdir.lstrip("/") / target
        if target.startswith("/"):
            place = image.root / target.lstrip("/")
        found = here / source.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(found, place)


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], ""), text)


@dataclass
class Container:
    """An image that runs: its user, a read-only root, a volume, and a network of its own.

    Args:
        image: What runs.
        volume: Directory behind its volume; made as the image has it.
        words: Arguments of its entry point; None: those of the image.
        beside: Another container whose network it shares.
    """

    image: Image
    volume: Path
    words: list[str] | None = None
    beside: "Container | None" = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Start it, with its output in LOG."""
        (at,) = self.image.volumes
        if not self.volume.exists():
            subprocess.run(["cp", "-a", self.image.root / at.lstrip("/"), self.volume], check=True)
        script = (
            'ip link set lo up; mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && '
            'mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/tmp" && '
            'mount --bind "$1" "$0$2" && user=$3 && shift 3 && '
            'exec chroot --userspec="$user" "$0" "$@"'
        )
        inside = ["unshare", "--mount", "--propagation", "private"]
        if self.beside is None:
            inside.append("--net")
        else:
            inside = ["nsenter", "-t", str(self.beside.pid), "--net", *inside]
        words = self.image.cmd if self.words is None else self.words
        where = [self.image.root, self.volume, at, self.image.user]
        # `cd` comes with the image's directory: chroot starts in its root.
        command = ["sh", "-c", script, *where, *self.image.entrypoint, *words]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*inside, *command], env=self.image.env, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run WORDS in it, as its user."""
        user, group = self.image.user.split(":")
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-r", "-w", "-S", user, "-G", group]
        # nsenter looks programs up before it enters.
        found = ["/usr/bin/env", *words]
        done: Any = subprocess.run(
            [*enter, *found], env=self.image.env, capture_output=True, text=True, check=False
        )
        return done

    def stop(self) -> int:
        """End it as an engine does, and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
