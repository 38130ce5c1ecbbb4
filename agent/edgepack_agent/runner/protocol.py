"""Open Inference Protocol v2: bytes and headers to a request, arrays to bytes. Opens no socket.

JSON tensors and the binary tensor extension, which `tritonclient` uses by default: the JSON
part comes first, `Inference-Header-Content-Length` says how long it is, and the tensors follow
in the order of the inputs, each `binary_data_size` bytes of little-endian data. Beyond the
protocol, the input that the manifest can preprocess may be an encoded image: a BYTES tensor of
one element, or the whole body with a `Content-Type` of `image/...`.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.manifest import Manifest, TensorSpec
from edgepack_agent.runner.interface import DecodedImage, EncodedImage

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "Codec",
    "Given",
    "InferRequest",
    "Output",
    "RequestError",
    "body_limit",
    "describe_model",
]

Array = NDArray[Any]
_Kind = tuple[str, np.dtype[Any], tuple[int, ...]]
"""Name, type and shape of an output."""
Given = Array | EncodedImage | DecodedImage

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's datatypes and numpy's; BYTES is left out, it only carries images."""
_NAMES = {numpy: oip for oip, numpy in DATATYPES.items()}

HEADER_LENGTH = "inference-header-content-length"
_JSON_HEADER = 64 * 1024
_JSON_NUMBER = 32
"""Bytes that a number may take in JSON: sign, 17 digits, point, exponent, comma, indentation."""
_DYNAMIC_LIMIT = 64 * 2**20
_IMAGE_LIMIT = 16 * 2**20
_KINDS = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}
"""What JSON data may be for each kind of tensor: no float is cut to an integer."""
_KEPT = 32
"""Heads of requests, and of answers, that are not worked out again."""
_KEPT_BYTES = 4096
"""A longer head of a request hardly comes twice."""
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class RequestError(Exception):
    """A request that gets no inference.

    Args:
        status: HTTP status.
        message: What was wrong, for the client's programmer.
        reason: Code for the statistics.
        retry_after_s: When it may be worth another try.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: str = "bad_request",
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


@dataclass(frozen=True, slots=True)
class Output:
    """A wanted output and whether it goes as binary data."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that fits the model."""

    id: str
    inputs: dict[str, Given]
    outputs: tuple[Output, ...]
    timeout_s: float = math.inf
    """How long the client waits, by its own word."""


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=32)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(_Request)


def body_limit(manifest: Manifest) -> int:
    """Return how many bytes a request for the model of MANIFEST may have."""
    shapes = [spec.shape for spec in manifest.inputs]
    if any(size < 0 for shape in shapes for size in shape):
        return _DYNAMIC_LIMIT
    numbers = sum(math.prod(shape) for shape in shapes)
    image = _IMAGE_LIMIT if manifest.preprocess else 0
    return max(_JSON_HEADER + numbers * _JSON_NUMBER, image)


def describe_model(manifest: Manifest, digest: str) -> dict[str, Any]:
    """Return the model metadata of the protocol."""
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": f"edgepack_{manifest.target.runtime}",
        "inputs": [_describe(spec) for spec in manifest.inputs],
        "outputs": [_describe(spec) for spec in manifest.outputs],
        "parameters": {"edgepack_bundle": digest},
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return _described(spec.name, np.dtype(spec.dtype), spec.shape)


@dataclass(frozen=True, slots=True)
class _Field:
    """An input, and what makes its value of it and of its binary data."""

    tensor: _Tensor
    take: Callable[[_Tensor, memoryview | None], Given]


@dataclass(frozen=True, slots=True)
class _Form:
    """What a request says before its binary data."""

    id: str
    fields: tuple[_Field, ...]
    outputs: tuple[Output, ...]
    timeout_s: float


class Codec:
    """Reads requests for one model and writes its answers.

    What comes before the binary data is the same in all calls of most clients, and with it what
    precedes the answer's. Both are worked out once, if they are short: after a call of the model
    nothing of this is in the processor's caches (ADR 28).

    Args:
        manifest: Of the model.
        digest: Of its bundle.
    """

    def __init__(self, manifest: Manifest, digest: str) -> None:
        self._manifest, self._digest = manifest, digest
        self._forms: dict[bytes, _Form] = {}
        self._binary_opening = lru_cache(_KEPT)(self._sizes)

    def read(self, headers: Mapping[str, str], body: bytes | memoryview) -> InferRequest:
        """Return the inference request in BODY, checked against the inputs of the model.

        Args:
            headers: HTTP headers with lower-case names.
            body: The whole body.

        Raises:
            RequestError: 400, or 415 for a compressed body; what does not fit.
        """
        if headers.get("content-encoding", "identity") != "identity":
            raise RequestError(415, "compressed bodies are not supported", "unsupported_encoding")
        if headers.get("content-type", "").startswith("image/"):
            return _image_request(body, self._manifest)
        split = _header_length(headers, len(body))
        whole = memoryview(body)
        head, binary = whole[:split], whole[split:]
        may_repeat = binary and split <= _KEPT_BYTES
        form = self._known(bytes(head)) if may_repeat else self._form(head)
        return InferRequest(form.id, _inputs(form.fields, binary), form.outputs, form.timeout_s)

    def write(
        self, request: InferRequest, outputs: Mapping[str, Array]
    ) -> tuple[dict[str, str], bytes]:
        """Return headers and body that answer REQUEST with OUTPUTS.

        Raises:
            RequestError: 500; an output holds NaN or infinity, which JSON cannot say.
        """
        found = [(wanted, outputs[wanted.name]) for wanted in request.outputs]
        binary = [_little(array).tobytes() for wanted, array in found if wanted.binary]
        if len(binary) == len(found):
            kinds = tuple((wanted.name, array.dtype, array.shape) for wanted, array in found)
            opening = self._binary_opening(kinds)
        else:
            opening = self._opening([_numbers(wanted, array) for wanted, array in found])
        mark = b',"id":' + msgspec.json.encode(request.id) if request.id else b""
        head = opening + mark + b"}"
        if not binary:
            return {"content-type": "application/json"}, head
        headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        return headers, b"".join((head, *binary))

    def _known(self, head: bytes) -> _Form:
        form = self._forms.get(head)
        if form is None:
            form = self._form(head)
            if not form.id:  # with an id, it comes once
                if len(self._forms) >= _KEPT:
                    self._forms.clear()
                self._forms[head] = form
        return form

    def _form(self, head: bytes | memoryview) -> _Form:
        request = _decode(head)
        outputs = _outputs(request, self._manifest)
        fields = _fields(request.inputs, self._manifest)
        return _Form(request.id, fields, outputs, _timeout_s(request))

    def _sizes(self, kinds: tuple[_Kind, ...]) -> bytes:
        """Return the opening of an answer whose outputs are all binary data."""
        return self._opening([_sized(*kind) for kind in kinds])

    def _opening(self, tensors: Sequence[Mapping[str, Any]]) -> bytes:
        """Return the head of an answer up to its id, which comes last."""
        head = {
            "model_name": self._manifest.name,
            "model_version": self._manifest.version,
            "parameters": {"edgepack_bundle": self._digest},
            "outputs": tensors,
        }
        return msgspec.json.encode(head).removesuffix(b"}")


def _image_request(body: bytes | memoryview, manifest: Manifest) -> InferRequest:
    if manifest.preprocess is None or len(manifest.inputs) != 1:
        raise RequestError(415, "this model takes tensors, not images", "unsupported_encoding")
    outputs = tuple(Output(spec.name, binary=False) for spec in manifest.outputs)
    return InferRequest("", {manifest.preprocess.input: EncodedImage(bytes(body))}, outputs)


def _header_length(headers: Mapping[str, str], size: int) -> int:
    text = headers.get(HEADER_LENGTH, str(size))
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= size):
        raise RequestError(400, f"{HEADER_LENGTH} must be a number up to the body's length")
    return int(text)


def _decode(data: bytes | memoryview) -> _Request:
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the request is not valid: {error}") from error


def _outputs(request: _Request, manifest: Manifest) -> tuple[Output, ...]:
    default = _flag(request.parameters, "binary_data_output")
    known = [spec.name for spec in manifest.outputs]
    if not request.outputs:
        return tuple(Output(name, default) for name in known)
    for wanted in request.outputs:
        if wanted.name not in known:
            raise RequestError(400, f"unknown output `{wanted.name}`, the model has {known}")
        _refuse(wanted.parameters, "output", wanted.name)
    return tuple(
        Output(wanted.name, _flag(wanted.parameters, "binary_data", default=default))
        for wanted in request.outputs
    )


def _timeout_s(request: _Request) -> float:
    """Return the request's `timeout`, which tritonclient gives in microseconds."""
    timeout = request.parameters.get("timeout", math.inf)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
        raise RequestError(400, "the parameter `timeout` must be microseconds, more than 0")
    return timeout / 1e6


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"the parameter `{name}` must be true or false")
    return value


def _refuse(parameters: Mapping[str, Any], side: str, name: str) -> None:
    for parameter in ("shared_memory_region", "classification"):
        if parameter in parameters:
            raise RequestError(400, f"{side} `{name}`: `{parameter}` is not supported")


def _fields(tensors: Sequence[_Tensor], manifest: Manifest) -> tuple[_Field, ...]:
    specs = {spec.name: spec for spec in manifest.inputs}
    names = [tensor.name for tensor in tensors]
    if sorted(names) != sorted(specs):
        raise RequestError(400, f"the inputs must be {sorted(specs)}, once each, not {names}")
    image = manifest.preprocess.input if manifest.preprocess else None
    return tuple(_field(tensor, specs[tensor.name], image) for tensor in tensors)


def _field(tensor: _Tensor, spec: TensorSpec, image: str | None) -> _Field:
    _refuse(tensor.parameters, "input", tensor.name)
    if tensor.datatype == "BYTES" and tensor.name == image:
        return _Field(tensor, _encoded)
    if tensor.datatype == "UINT8" and tensor.name == image and spec.dtype != "uint8":
        return _Field(tensor, _decoded)
    _check_kind(tensor, spec)
    return _Field(tensor, _array)


def _inputs(fields: Sequence[_Field], binary: memoryview) -> dict[str, Given]:
    inputs: dict[str, Given] = {}
    offset = 0
    for field in fields:
        piece = _piece(field.tensor, binary, offset)
        offset += len(piece) if piece is not None else 0
        inputs[field.tensor.name] = field.take(field.tensor, piece)
    if offset != len(binary):
        raise RequestError(400, f"{len(binary)} bytes of binary data, the inputs name {offset}")
    return inputs


def _piece(tensor: _Tensor, binary: memoryview, offset: int) -> memoryview | None:
    """Return the binary data of TENSOR, which starts at OFFSET; None if it comes as JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if tensor.data is None:
            raise RequestError(400, f"input `{tensor.name}` has neither data nor binary data")
        return None
    if type(size) is not int or not 0 <= size <= len(binary) - offset:
        raise RequestError(400, f"input `{tensor.name}`: binary_data_size goes past the body")
    if tensor.data is not None:
        raise RequestError(400, f"input `{tensor.name}` has data twice")
    return binary[offset : offset + size]


def _check_kind(tensor: _Tensor, spec: TensorSpec) -> None:
    wanted = _NAMES[spec.dtype]
    if tensor.datatype != wanted:
        raise RequestError(
            400, f"input `{tensor.name}` has datatype {tensor.datatype[:16]}, it must be {wanted}"
        )
    pairs = zip(tensor.shape, spec.shape, strict=False)
    fits = all(got == want or (want < 0 < got) for got, want in pairs)
    if len(tensor.shape) != len(spec.shape) or not fits:
        raise RequestError(
            400,
            f"input `{tensor.name}` has shape {list(tensor.shape)}, "
            f"it must be {list(spec.shape)} (-1: any)",
        )


def _array(tensor: _Tensor, piece: memoryview | None) -> Array:
    array = _from_json(tensor) if piece is None else _from_binary(tensor, piece)
    return array.reshape(tensor.shape)


def _from_binary(tensor: _Tensor, piece: memoryview) -> Array:
    dtype = np.dtype(DATATYPES[tensor.datatype])
    wanted = math.prod(tensor.shape) * dtype.itemsize
    if len(piece) != wanted:
        raise RequestError(
            400, f"input `{tensor.name}` has {len(piece)} bytes, its shape needs {wanted}"
        )
    if dtype == np.bool_ and (np.frombuffer(piece, np.uint8) > 1).any():
        raise RequestError(400, f"input `{tensor.name}`: a BOOL is 0 or 1")
    array = np.frombuffer(piece, dtype.newbyteorder("<")).astype(dtype, copy=False)
    return array if array.flags.aligned else array.copy()


def _from_json(tensor: _Tensor) -> Array:
    dtype = np.dtype(DATATYPES[tensor.datatype])
    loose = _loose(tensor)
    if dtype.kind in "ui" and loose.dtype.kind in "fO":
        return _integers(tensor, loose, dtype)
    if loose.size and loose.dtype.kind not in _KINDS[dtype.kind]:
        raise RequestError(400, f"input `{tensor.name}` holds data that is no {tensor.datatype}")
    with np.errstate(over="ignore"):
        array = loose.astype(dtype)
    exact = bool(np.isfinite(array).all()) if dtype.kind == "f" else bool((array == loose).all())
    if not exact:
        raise RequestError(400, f"input `{tensor.name}`: a number is too large")
    return array


def _integers(tensor: _Tensor, loose: Array, dtype: np.dtype[Any]) -> Array:
    """Return integers for which numpy alone finds no common type: small ones beside 2**63."""
    numbers = np.array(tensor.data, dtype=object).ravel().tolist()
    if not all(type(number) is int for number in numbers):
        raise RequestError(400, f"input `{tensor.name}` holds data that is no {tensor.datatype}")
    try:
        return np.array(numbers, dtype).reshape(loose.shape)
    except OverflowError as error:
        raise RequestError(400, f"input `{tensor.name}`: a number is too large") from error


def _loose(tensor: _Tensor) -> Array:
    """Return the JSON data of TENSOR in whatever type numpy finds for it, of the right size."""
    try:
        loose = np.array(tensor.data)
    except (ValueError, OverflowError) as error:
        raise RequestError(400, f"input `{tensor.name}`: the lists are uneven") from error
    if loose.shape != tensor.shape and loose.shape != (math.prod(tensor.shape),):
        raise RequestError(
            400,
            f"input `{tensor.name}` has data of shape {list(loose.shape)}, it must be flat "
            f"or {list(tensor.shape)}",
        )
    return loose


def _decoded(tensor: _Tensor, piece: memoryview | None) -> DecodedImage:
    """Return a picture that comes as pixels, to be preprocessed as one from a file is."""
    batch, picture = tensor.shape[:-3], tensor.shape[-3:]
    if len(picture) != 3 or picture[2] != 3 or math.prod(batch) != 1 or 0 in picture:
        raise RequestError(
            400,
            f"input `{tensor.name}` as UINT8 is a picture of [height, width, 3], red first, "
            f"not {list(tensor.shape)}",
        )
    return DecodedImage(_array(tensor, piece).reshape(picture))


def _encoded(tensor: _Tensor, piece: memoryview | None) -> EncodedImage:
    if math.prod(tensor.shape) != 1:
        raise RequestError(400, f"input `{tensor.name}` takes one image at a time")
    if piece is not None:
        size = int.from_bytes(piece[:4], "little")
        if len(piece) != 4 + size:
            raise RequestError(400, f"input `{tensor.name}`: an element is length and bytes")
        return EncodedImage(bytes(piece[4:]))
    try:
        [text] = tensor.data
        return EncodedImage(base64.b64decode(text, validate=True))
    except (TypeError, ValueError, binascii.Error) as error:
        raise RequestError(
            400, f"input `{tensor.name}` must be a list of one base64 string"
        ) from error


def _little(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _numbers(wanted: Output, array: Array) -> dict[str, Any]:
    """Return what the head of an answer says of ARRAY, with its numbers unless they are binary."""
    if wanted.binary:
        return _sized(wanted.name, array.dtype, array.shape)
    return _described(wanted.name, array.dtype, array.shape) | {
        "data": _to_json(wanted.name, array)
    }


def _sized(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    size = math.prod(shape) * dtype.itemsize
    return _described(name, dtype, shape) | {"parameters": {"binary_data_size": size}}


def _described(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": _NAMES[dtype.name], "shape": list(shape)}


def _to_json(name: str, array: Array) -> list[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            500, f"output `{name}` holds NaN or infinity; ask for binary data", "non_finite"
        )
    numbers: list[Any] = array.ravel().tolist()
    return numbers
