"""Make patches, a frame at a time. Writes payloads; how they are applied is in contracts.

bsdiff sorts all suffixes of its base window, which takes about 17 bytes of memory for each byte
of it, and seconds for each MiB.
"""

import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgepack.patch import LZMA_DICTIONARY, MIN_PREFIX, RECORD, WINDOW_LOG, Codec, zstd_module

__all__ = ["PAYLOAD", "encode", "frame"]

PAYLOAD = "payload"
"""The file that a step writes."""
_ZSTD_LEVEL = 19
_MIN_WINDOW_LOG = 10
_LZMA_MODELS: tuple[dict[str, int], ...] = ({"lc": 4, "pb": 0}, {"lc": 0, "pb": 0})
"""Contexts of the literals: the first suits floats, the second the differences of int8."""
_CONTROL = 24


def frame(args: dict[str, Any], out: Path, _say: Callable[[str], None]) -> dict[str, Any]:
    """Write the payload of one frame of a patch.

    Args:
        args: `codec`; `base` and `target`, files; `base_offset`, `base_length`,
            `target_offset` and `target_length`, what of them.
        out: Gets the payload.
    """
    with Path(args["base"]).open("rb") as old, Path(args["target"]).open("rb") as new:
        old.seek(args["base_offset"])
        new.seek(args["target_offset"])
        base, target = old.read(args["base_length"]), new.read(args["target_length"])
    payload = encode(args["codec"], base, target)
    (out / PAYLOAD).write_bytes(payload)
    return {"bytes": len(payload)}


def encode(codec: Codec, base: bytes, target: bytes) -> bytes:
    """Return what makes TARGET of BASE, as the payload of a frame of CODEC."""
    return _zstd(base, target) if codec == "zstd" else _bsdiff(base, target)


def _zstd(base: bytes, target: bytes) -> bytes:
    zstd = zstd_module()
    parameter = zstd.CompressionParameter
    reach = (len(base) + len(target)).bit_length()
    options = {
        parameter.compression_level: _ZSTD_LEVEL,
        parameter.window_log: max(_MIN_WINDOW_LOG, min(reach, WINDOW_LOG)),
        parameter.enable_long_distance_matching: 1,
    }
    prefix = zstd.ZstdDict(base, is_raw=True).as_prefix if len(base) >= MIN_PREFIX else None
    payload: bytes = zstd.compress(target, options=options, zstd_dict=prefix)
    return payload


def _bsdiff(base: bytes, target: bytes) -> bytes:
    from bsdiff4 import core

    plain = b"".join(_records(*core.diff(base, target)))
    return min((_lzma(plain, model) for model in _LZMA_MODELS), key=len)


def _records(control: bytes, differences: bytes, extra: bytes) -> Iterator[bytes]:
    """Yield the records of bsdiff's three streams, each followed by its bytes."""
    from bsdiff4 import core

    added = copied = skip = 0
    for at in range(0, len(control), _CONTROL):
        add, copy, seek = (core.decode_int64(control[at + i : at + i + 8]) for i in (0, 8, 16))
        if add + copy:
            yield RECORD.pack(skip, add, copy)
            yield differences[added : added + add]
            yield extra[copied : copied + copy]
            added, copied, skip = added + add, copied + copy, 0
        skip += seek


def _lzma(data: bytes, model: dict[str, int]) -> bytes:
    chosen: dict[str, Any] = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": LZMA_DICTIONARY,
    }
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=[chosen | model])
