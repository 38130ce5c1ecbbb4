"""Facts in a TFLite model: a metadata buffer named `edgepack` with canonical JSON.

The format's own metadata (`TFLITE_METADATA` with labels in an appended zip, what Android's
tooling reads) is a second FlatBuffer schema whose only writer, tflite-support, is no longer kept
and does not install beside today's LiteRT. So it is not written; labels that a model brings in
that way are read.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgepack import durable
from edgepack.errors import UnsupportedError
from edgepack_targets.annotation import KEY, MAX_TEXT, decode, encode
from edgepack_targets.session import unreadable

__all__ = ["annotate", "annotations"]

FILE = "model.tflite"
STANDARD = "TFLITE_METADATA"
ALIGNMENT = 16
"""Of the data of every buffer: what the schema asks for and the Python writer does not do."""
MAX_BYTES = 2**31 - 1
DAMAGED = (OSError, ValueError, TypeError, IndexError, struct.error)
"""What the readers of FlatBuffers raise at a damaged file."""


class _Buffer(schema.BufferT):  # type: ignore[misc]  # it ships no types
    """A buffer whose data is aligned, so that runtimes can use it in place."""

    def Pack(self, builder: flatbuffers.Builder) -> Any:  # noqa: N802  the library's name
        if self.data is None or not len(self.data):
            return super().Pack(builder)
        data = bytes(self.data)
        builder.StartVector(1, len(data), ALIGNMENT)
        builder.head = builder.Head() - len(data)
        builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def annotate(model_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write FACTS into MODEL_DIR/model.tflite; see `interface.Target`.

    Raises:
        UnsupportedError: the file is too large for the one piece that FlatBuffers write.
    """
    path = model_dir / FILE
    if path.stat().st_size > MAX_BYTES - 2 * MAX_TEXT:
        raise UnsupportedError(
            "this TFLite model is too large to be annotated",
            why="a FlatBuffer has at most 2 GiB",
            reason="too_large",
        )
    try:
        model = flatbuffer_utils.read_model(path)
    except DAMAGED as error:
        raise unreadable("LiteRT", path, error) from error
    data = np.frombuffer(encode(facts).encode(), np.uint8)
    entry = next((e for e in model.metadata or [] if _text(e.name) == KEY), None)
    if entry is None:
        entry = schema.MetadataT(name=KEY)
        model.metadata = [*(model.metadata or []), entry]
    if not _is_its_own(model, entry.buffer):
        entry.buffer = len(model.buffers)
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = data
    model.buffers = [_Buffer(b.data, b.offset, b.size) for b in model.buffers]
    durable.write_file(path, bytes(flatbuffer_utils.convert_object_to_bytearray(model)))


def _is_its_own(model: Any, index: int) -> bool:
    """Say whether the buffer INDEX holds one entry of metadata and nothing else.

    A stranger's entry may point to weights, or nowhere; and buffer 0 means no data at all.
    """
    used = [entry.buffer for entry in model.metadata]
    used += [tensor.buffer for graph in model.subgraphs for tensor in graph.tensors]
    return 0 < index < len(model.buffers) and used.count(index) == 1


def annotations(path: Path) -> dict[str, Any]:
    """Return the facts in the TFLite model PATH; see `interface.Target`."""
    try:
        entries = dict(_entries(path.read_bytes()))
    except DAMAGED as error:
        raise unreadable("LiteRT", path, error) from error
    found = decode(entries.get(KEY, b"").decode("utf-8", "replace"))
    if not found and STANDARD in entries:
        labels = _associated_labels(path)
        found = {"labels": labels} if labels else {}
    return found


def _entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the metadata in DATA, name and content."""
    model = schema.Model.GetRootAs(data, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        content = model.Buffers(entry.Buffer())
        if entry.Name() and not content.DataIsNone():
            yield _text(entry.Name()), content.DataAsNumpy().tobytes()


def _associated_labels(path: Path) -> list[str]:
    """Return the lines of the one text file in the zip that is appended to PATH."""
    try:
        with zipfile.ZipFile(path) as files:
            named = [f for f in files.infolist() if f.filename.endswith(".txt")]
            if len(named) != 1 or named[0].file_size > MAX_TEXT:
                return []
            text = files.read(named[0]).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError, RuntimeError, NotImplementedError):
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _text(name: bytes | str) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name
