"""What one runner shows another: its manifest, then inputs with what it said of them, as frames.

    4 bytes length of the head, 4 bytes length of the body, head as JSON, body: the arrays in order

A picture goes as a picture, so that each model makes its own tensor of it. Both ends are ours, and
yet nothing is believed: lengths are bounded and checked before anything is made.
"""

import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.errors import IntegrityError
from edgepack.manifest import Manifest
from edgepack_agent.runner.interface import DecodedImage, EncodedImage
from edgepack_agent.runner.protocol import DATATYPES, Given

__all__ = [
    "MAX_BODY",
    "Given",
    "Hello",
    "Shown",
    "TooLargeError",
    "receive",
    "send_hello",
    "send_shown",
]

Array = NDArray[Any]
MAX_HEAD, MAX_BODY = 8 * 2**20, 64 * 2**20
"""Bytes; a head may hold a manifest."""
IN_TIME_S = 60.0
"""For a frame that has begun."""
_LENGTHS = struct.Struct("!II")
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BODY)]


class TooLargeError(Exception):
    """A sample has more bytes than may be sent."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One input, and what the model that shows it has made of it."""

    inputs: Mapping[str, Given]
    outputs: Mapping[str, Array]
    ms: float
    """That the call of the runtime took."""
    dropped: int = 0
    """Inputs that were not shown since the one before because nobody had time for them."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame: whose answers are shown."""

    manifest: Manifest


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kind: Literal["tensor", "picture", "file"]
    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=32)]


class _Sample(msgspec.Struct, frozen=True, tag="sample", forbid_unknown_fields=True):
    ms: float
    dropped: int
    inputs: Annotated[tuple[_Part, ...], msgspec.Meta(max_length=64)]
    outputs: Annotated[tuple[_Part, ...], msgspec.Meta(max_length=256)]


_DECODER: msgspec.json.Decoder[Hello | _Sample] = msgspec.json.Decoder(Hello | _Sample)


def send_hello(channel: socket.socket, manifest: Manifest) -> None:
    """Send whose answers will be shown.

    Raises:
        OSError: nobody takes it.
    """
    _send(channel, msgspec.json.encode(Hello(manifest)), [])


def send_shown(channel: socket.socket, shown: Shown) -> None:
    """Send a sample.

    Raises:
        TooLargeError: it has more than `MAX_BODY` bytes; nothing was sent.
        OSError: nobody takes it.
    """
    given = [_as_array(name, value) for name, value in shown.inputs.items()]
    said = [(_part(name, "tensor", array), array) for name, array in shown.outputs.items()]
    arrays = [array for _, array in (*given, *said)]
    if sum(array.nbytes for array in arrays) > MAX_BODY:
        raise TooLargeError
    parts = tuple(part for part, _ in given), tuple(part for part, _ in said)
    _send(channel, msgspec.json.encode(_Sample(shown.ms, shown.dropped, *parts)), arrays)


def receive(channel: socket.socket) -> Hello | Shown | None:
    """Return the next frame, for which any time is waited; None: there are no more whole ones.

    Raises:
        IntegrityError: it is none.
        OSError: it does not come to its end.
    """
    channel.settimeout(None)
    first = _exactly(channel, 1)
    channel.settimeout(IN_TIME_S)
    lengths = _exactly(channel, _LENGTHS.size - 1) if first else b""
    if len(lengths) < _LENGTHS.size - 1:
        return None
    head, body = _LENGTHS.unpack(first + lengths)
    if head > MAX_HEAD or body > MAX_BODY:
        raise _bad(f"a frame of {head} and {body} bytes")
    found = _decoded(_exactly(channel, head))
    content = _exactly(channel, body)
    if len(content) != body:
        return None
    return found if isinstance(found, Hello) else _shown(found, content)


def _as_array(name: str, value: Given) -> tuple[_Part, Array]:
    if isinstance(value, EncodedImage):
        data = np.frombuffer(value.data, np.uint8)
        return _part(name, "file", data), data
    if isinstance(value, np.ndarray):
        return _part(name, "tensor", value), value
    return _part(name, "picture", value.pixels), value.pixels


def _part(name: str, kind: Literal["tensor", "picture", "file"], array: Array) -> _Part:
    return _Part(name, kind, array.dtype.name, array.shape)


def _send(channel: socket.socket, head: bytes, arrays: list[Array]) -> None:
    body = sum(array.nbytes for array in arrays)
    channel.sendall(_LENGTHS.pack(len(head), body) + head)
    for array in arrays:
        if array.nbytes:
            channel.sendall(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _exactly(channel: socket.socket, count: int) -> bytes:
    """Return COUNT bytes; fewer if there are no more."""
    data = bytearray(count)
    place, got = memoryview(data), 0
    while got < count:
        came = channel.recv_into(place[got:])
        if not came:
            break
        got += came
    return bytes(place[:got])


def _decoded(head: bytes) -> Hello | _Sample:
    try:
        return _DECODER.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)) from error


def _shown(sample: _Sample, body: bytes) -> Shown:
    sizes = [_nbytes(part) for part in (*sample.inputs, *sample.outputs)]
    if sum(sizes) != len(body):
        raise _bad(f"{len(body)} bytes of arrays, the head names {sum(sizes)}")
    whole, place = memoryview(body), 0
    arrays: list[Array] = []
    for part, size in zip((*sample.inputs, *sample.outputs), sizes, strict=True):
        piece = whole[place : place + size]
        arrays.append(np.frombuffer(piece, part.dtype).reshape(part.shape).copy())
        place += size
    count = len(sample.inputs)
    given = {
        p.name: _given(p, array) for p, array in zip(sample.inputs, arrays[:count], strict=True)
    }
    said = {p.name: array for p, array in zip(sample.outputs, arrays[count:], strict=True)}
    return Shown(given, said, sample.ms, sample.dropped)


def _nbytes(part: _Part) -> int:
    if part.dtype not in DATATYPES.values():
        raise _bad(f"arrays of {part.dtype[:16]}")
    size = math.prod(part.shape) * np.dtype(part.dtype).itemsize
    picture = part.kind != "picture" or (len(part.shape) == 3 and part.shape[2] == 3)
    if size > MAX_BODY or not picture or (part.kind != "tensor" and part.dtype != "uint8"):
        raise _bad(f"a {part.kind} of {part.dtype} and shape {part.shape}")
    return size


def _given(part: _Part, array: Array) -> Given:
    if part.kind == "file":
        return EncodedImage(array.tobytes())
    return DecodedImage(array) if part.kind == "picture" else array


def _bad(why: str) -> IntegrityError:
    return IntegrityError("what a runner shows cannot be read", why=why, reason="bad_sample")
