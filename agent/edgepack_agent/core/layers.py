"""Settings in layers: values that remember the file and line they come from. Reads no file.

A later layer wins. Mappings are merged key by key, to any depth; everything else, lists too, is
replaced as a whole, because there is no telling which entry of a list was meant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Layer", "Origin", "merge"]

Step = str | int
"""A key of a mapping, or a place in a list."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A value: a scalar, or a dict or list of layers."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {key: below.plain() for key, below in self.value.items()}
        if isinstance(self.value, list):
            return [below.plain() for below in self.value]
        return self.value

    def at(self, path: Sequence[Step]) -> "Layer":
        """Return what is at PATH, or the nearest there is above it."""
        found = self
        for step in path:
            try:
                found = found.value[step]
            except (KeyError, IndexError, TypeError):
                break
        return found

    def leaves(self, path: str = "") -> Iterator[tuple[str, "Layer"]]:
        """Yield every value that is not a mapping, with its dotted path."""
        if not isinstance(self.value, dict):
            yield path, self
            return
        for key, below in self.value.items():
            yield from below.leaves(f"{path}.{key}" if path else key)


def merge(lower: Layer, upper: Layer) -> Layer:
    """Return LOWER with everything that UPPER says."""
    if not (isinstance(lower.value, dict) and isinstance(upper.value, dict)):
        return upper
    both = lower.value | upper.value
    for key in lower.value.keys() & upper.value.keys():
        both[key] = merge(lower.value[key], upper.value[key])
    return Layer(both, upper.origin)
