"""Which patches are worth making, and of which windows. Pure; makes none."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgepack.errors import UsageError
from edgepack.oci import Layer
from edgepack.offers import MIN_TARGET
from edgepack.patch import FRAME_BASE, FRAME_TARGET, Codec
from edgepack.trust import parse_model_path

__all__ = [
    "AUTO",
    "WORTH",
    "Delta",
    "Pair",
    "Window",
    "bases_of",
    "changed",
    "check_wanted",
    "hopeless",
    "sample",
    "windows",
]

AUTO = 2
"""Published versions, newest first, that `auto` makes patches from."""
WORTH = 0.9
"""A patch is offered if it is at most this share of the whole blob."""
_HOPELESS = 0.97
_MIN_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the target, and the stretch of the base where it most likely comes from."""

    base_offset: int
    base_length: int
    target_offset: int
    target_length: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A file of one version, and the same file of another; digests in hex, sizes in bytes."""

    base_release: str
    target_release: str
    path: str
    base: str
    base_size: int
    target: str
    target_size: int


@dataclass(frozen=True, slots=True)
class Delta:
    """The smallest way from a base to a target: a patch, or the whole of it (`full`)."""

    pair: Pair
    codec: Codec | Literal["full"]
    size: int
    tried: Mapping[str, int] = field(default_factory=dict)
    """Bytes of what was made, by codec; what was given up half-way is not in it."""

    @property
    def ratio(self) -> float:
        """Its share of the whole blob."""
        return self.size / self.pair.target_size


def windows(base_size: int, target_size: int) -> list[Window]:
    """Return the frames that a target is made in, each with its window of the base.

    The window is where the frame would be if the two files were of one length, and as much
    again around it: two versions of a model have their tensors in one order.
    """
    found = []
    for start in range(0, target_size, FRAME_TARGET):
        length = min(FRAME_TARGET, target_size - start)
        reach = min(FRAME_BASE, base_size)
        middle = (start + length // 2) * base_size // target_size
        offset = max(0, min(middle - reach // 2, base_size - reach))
        found.append(Window(offset, reach, start, length))
    return found


def sample(frames: Sequence[Window]) -> Window | None:
    """Return the frame that shows whether the others are worth their time; None: few are."""
    return frames[len(frames) // 2] if len(frames) >= _MIN_FRAMES else None


def hopeless(payload: int, frame: Window) -> bool:
    """Return whether a PAYLOAD of that many bytes shows that FRAME has little of its base."""
    return payload > _HOPELESS * frame.target_length


def bases_of(path: str, published: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return the paths among PUBLISHED that the model at PATH is to have patches from.

    Args:
        path: A model's target path.
        published: Target paths of its line.
        wanted: `auto`, or releases as `name@version`.
    """
    name, version, variant = parse_model_path(path)
    others = {}
    for other in published:
        if other.endswith(".json"):  # the rest is the line's exam
            _, known, same = parse_model_path(other)
            if same == variant and known != version:
                others[f"{name}@{known}"] = other
    newest = sorted(others, key=lambda release: _precedence(release.partition("@")[2]))[-AUTO:]
    chosen = {*(newest if "auto" in wanted else ()), *wanted}
    return [others[release] for release in others if release in chosen]


def check_wanted(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return WANTED without `none`.

    Raises:
        UsageError: one is no release, or `none` is not alone.
    """
    if "none" in wanted and len(set(wanted)) > 1:
        raise UsageError("--delta-from none goes with no other", reason="usage")
    for word in wanted:
        if word not in {"auto", "none"} and not re.fullmatch(r"[^@\s]+@[^@\s]+", word):
            raise UsageError(
                f"--delta-from {word} is not a release",
                fix="give NAME@VERSION, auto or none",
                reason="usage",
            )
    return tuple(word for word in wanted if word != "none")


def changed(
    base_release: str,
    base: Mapping[str, Layer],
    target_release: str,
    target: Mapping[str, Layer],
) -> Iterator[Pair]:
    """Yield the large files of TARGET that differ from those of BASE; both by their path."""
    for path, new in target.items():
        old = base.get(path)
        if old is None or old.sha256 == new.sha256 or min(old.size, new.size) < MIN_TARGET:
            continue
        yield Pair(base_release, target_release, path, old.sha256, old.size, new.sha256, new.size)


def _precedence(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Return what orders semantic versions: numbers first, a pre-release before its release."""
    core, _, rest = version.partition("+")[0].partition("-")
    numbers = tuple(int(part) for part in core.split(".") if part.isdecimal())
    parts = tuple(
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in rest.split(".")
        if part
    )
    return numbers, not rest, parts
