"""The strict reader of .npz files: arrays by name, nothing else. Runs no pickle, writes no file.

Every tensor that comes from outside (calibration, evaluation, exam, input of `run`) goes
through `read_npz`: sizes are checked before anything is read, then names, shapes, dtypes and
values against the model's inputs.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack.manifest import TensorSpec
from edgepack_targets.binding import fits, one_sample, samples_text, shape_text

__all__ = ["LABELS", "MAX_BYTES", "read_arrays", "read_npz", "sample_shape"]

LABELS = "labels"
MAX_BYTES = 4 << 30
KINDS = "fiub"
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
)

Array = NDArray[Any]


def read_npz(
    path: Path,
    specs: Sequence[TensorSpec],
    *,
    what: str = "input",
    labels: bool = False,
    max_samples: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Array]:
    """Return the arrays of PATH, which must be exactly one per tensor of SPECS.

    Args:
        path: The file.
        specs: The public tensors; a batch axis of 1 or unknown size stands for the samples.
        what: What the file is for, e.g. `calibration`, for messages.
        labels: There must also be an integer array `labels`, one entry per sample.
        max_samples: More samples are refused.
        max_bytes: A larger content is refused before it is read.

    Returns:
        Arrays whose first axis is the samples, by public name, and `labels` if asked for.

    Raises:
        UsageError: The file is missing, damaged or too large, a name, shape, dtype or count
            is wrong, or a value is not finite.
    """
    arrays = read_arrays(path, what=what, max_bytes=max_bytes)
    faults = _names(arrays, specs, labels=labels)
    faults += [
        fault
        for spec in specs
        if spec.name in arrays and (fault := _tensor(spec, arrays[spec.name]))
    ]
    faults = faults or _counts(arrays, labels=labels, max_samples=max_samples)
    if faults:
        raise UsageError(
            f"the {what} file {path} does not fit the model",
            why="; ".join(faults),
            fix=f"give exactly {_expected(specs, labels=labels)}",
            reason=f"bad_{what}",
        )
    return arrays


def read_arrays(path: Path, *, what: str = "input", max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """Return all arrays of PATH, numbers only, unchecked against any model.

    Raises:
        UsageError: PATH is missing, damaged or too large, or holds anything but numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(archive, max_bytes)
            return {
                info.filename.removesuffix(".npy"): _array(archive, info)
                for info in archive.infolist()
            }
    except FileNotFoundError as error:
        raise UsageError(f"there is no {what} file {path}", reason=f"bad_{what}") from error
    except DAMAGED as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UsageError(
            f"the {what} file {path} cannot be read",
            why=lines[0],
            fix="write it with numpy.savez, one array per name",
            reason=f"bad_{what}",
        ) from error


def sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of one sample of SPEC: without a batch axis of 1 or unknown size."""
    return one_sample(spec.shape)


def _check_size(archive: zipfile.ZipFile, max_bytes: int) -> None:
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("it holds two arrays of one name")
    if odd := [name for name in names if not name.endswith(".npy")]:
        raise ValueError(f"it holds `{odd[0]}`, which is no array")
    size = sum(info.file_size for info in archive.infolist())
    if size > max_bytes:
        raise ValueError(f"it unpacks to {size} bytes, more than the {max_bytes} allowed")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream)
        if dtype.hasobject or dtype.kind not in KINDS:
            raise ValueError(f"`{name}` holds {dtype}, not numbers")
        # The header is checked against the real size before any memory is taken for it.
        expected = math.prod(shape) * dtype.itemsize
        data = stream.read(expected + 1) if expected <= info.file_size else b""
        if len(data) != expected:
            raise ValueError(f"`{name}` does not hold the {expected} bytes that its header says")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an array has format {version}, which is not for plain numbers")
    return readers[version](stream)


def _names(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], *, labels: bool) -> list[str]:
    wanted = [spec.name for spec in specs] + ([LABELS] if labels else [])
    missing = [f"`{name}` is missing" for name in wanted if name not in arrays]
    return missing + [f"`{name}` is unknown" for name in arrays if name not in wanted]


def _tensor(spec: TensorSpec, array: Array) -> str:
    """Return what is wrong with ARRAY as samples of SPEC, or nothing."""
    if array.dtype.name != spec.dtype or not fits(array.shape[1:], sample_shape(spec)):
        return f"`{spec.name}` is {array.dtype} {shape_text(array.shape)}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"`{spec.name}` holds NaN or infinite values"
    return ""


def _counts(arrays: Mapping[str, Array], *, labels: bool, max_samples: int | None) -> list[str]:
    if labels and (arrays[LABELS].ndim != 1 or arrays[LABELS].dtype.kind not in "iu"):
        return [f"`{LABELS}` is {arrays[LABELS].dtype} {shape_text(arrays[LABELS].shape)}"]
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        return [", ".join(f"`{name}` holds {count} samples" for name, count in counts.items())]
    count = next(iter(counts.values()))
    if count == 0:
        return ["it holds no samples"]
    if max_samples is not None and count > max_samples:
        return [f"it holds {count} samples, more than the {max_samples} allowed"]
    return []


def _expected(specs: Sequence[TensorSpec], *, labels: bool) -> str:
    parts = [f"{s.name}: {s.dtype} {samples_text(s.shape)}" for s in specs]
    return ", ".join([*parts, f"{LABELS}: int64 (samples,)"] if labels else parts)
