"""The files that belong to a model file: an IR's weights, an ONNX model's external data.

Found without any framework, so that the digest of a source covers all that it is read from.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["companions"]

# An entry of `external_data`: field 1 is the key, field 2 a string of up to 127 or 16383 bytes.
LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])", re.DOTALL)
LONGEST = 255
"""Characters in a name that can lead to a file; the pattern may match in the midst of weights."""


def companions(model: Path) -> list[Path]:
    """Return the other files that MODEL is read from, sorted; those that are missing are not in.

    Neither are those outside of its folder: nothing is ever read from there.

    Raises:
        OSError: MODEL cannot be read.
    """
    match model.suffix.lower():
        case ".xml":
            names = {model.with_suffix(".bin").name}
        case ".onnx":
            names = set(_locations(model))
        case _:
            names = set()
    home = model.parent.resolve()
    paths = [model.parent / name for name in names if len(name) <= LONGEST]
    return sorted(p for p in paths if p.is_file() and p.resolve().is_relative_to(home))


def _locations(model: Path) -> Iterator[str]:
    """Yield every file name that an external tensor of the ONNX model gives as its place."""
    if not model.stat().st_size:
        return
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for found in LOCATION.finditer(data):
            size = found[1][0] & 0x7F | (found[1][1] << 7 if len(found[1]) > 1 else 0)
            name = data[found.end() : found.end() + size]
            if name and b"\0" not in name:
                yield name.decode(errors="replace")
