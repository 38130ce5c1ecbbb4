"""The inference protocol without a server: what a request means, and that no bytes break it."""

import base64
import json
import math
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgepack.manifest import Binding, Manifest, TensorSpec
from edgepack_agent.runner import protocol
from edgepack_agent.runner.interface import EncodedImage
from edgepack_agent.runner.protocol import DATATYPES, Codec, InferRequest, RequestError
from slots import digits_manifest

LENGTH = protocol.HEADER_LENGTH
DTYPES = sorted(DATATYPES.values())
OIP = {numpy: oip for oip, numpy in DATATYPES.items()}


def model(*specs: tuple[str, str, tuple[int, ...]]) -> Manifest:
    """Return a manifest whose inputs and outputs are SPECS of name, dtype and shape."""
    tensors = tuple(
        TensorSpec(name=name, dtype=dtype, shape=shape, binding=Binding(native_name=name))
        for name, dtype, shape in specs
    )
    return msgspec.structs.replace(
        digits_manifest(), inputs=tensors, outputs=tensors, preprocess=None
    )


def read_request(
    headers: dict[str, str], body: bytes | memoryview, manifest: Manifest
) -> InferRequest:
    return Codec(manifest, "sha256:0").read(headers, body)


def request(*tensors: dict[str, Any], binary: bytes = b"", **more: Any) -> dict[str, Any]:
    """Return headers and body as arguments of `read_request`."""
    head = json.dumps({"inputs": list(tensors)} | more).encode()
    headers = {LENGTH: str(len(head))} if binary else {}
    return {"headers": headers, "body": head + binary}


def tensor(name: str, array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": OIP[array.dtype.name], "shape": list(array.shape)} | more


def refused(manifest: Manifest, *tensors: dict[str, Any], **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_request(manifest=manifest, **request(*tensors, **more))
    return caught.value


any_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(
        dtype,
        arrays.array_shapes(min_dims=1, max_dims=3, max_side=4),
        elements=arrays.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
    )
)


@settings(deadline=None)
@given(any_array)
@example(np.array([0, 2**63], np.uint64))
@example(np.zeros((2, 1), np.uint64))
def test_json_tensors_arrive_as_they_were_sent(sent: np.ndarray) -> None:
    manifest = model(("x", sent.dtype.name, sent.shape))
    for data in (sent.tolist(), sent.ravel().tolist()):
        got = read_request(manifest=manifest, **request(tensor("x", sent, data=data)))
        received = got.inputs["x"]
        assert received.dtype == sent.dtype
        assert np.array_equal(received, sent)


@settings(deadline=None)
@given(any_array, any_array)
def test_binary_tensors_arrive_as_they_were_sent(first: np.ndarray, second: np.ndarray) -> None:
    pairs = [("x", first), ("y", second)]
    manifest = model(*((name, a.dtype.name, a.shape) for name, a in pairs))
    tensors = [tensor(n, a, parameters={"binary_data_size": a.nbytes}) for n, a in pairs]
    binary = first.tobytes() + second.tobytes()
    got = read_request(manifest=manifest, **request(*tensors, binary=binary))
    for name, sent in pairs:
        assert got.inputs[name].flags.aligned
        assert got.inputs[name].dtype == sent.dtype
        assert np.array_equal(got.inputs[name], sent)


@settings(deadline=None)
@given(any_array)
def test_answers_read_back_as_they_were(sent: np.ndarray) -> None:
    manifest = model(("x", sent.dtype.name, sent.shape), ("y", sent.dtype.name, sent.shape))
    asked = [tensor("x", sent, data=sent.tolist()), tensor("y", sent, data=sent.tolist())]
    wanted = [{"name": "y", "parameters": {"binary_data": True}}, {"name": "x"}]
    got = read_request(manifest=manifest, **request(*asked, outputs=wanted, id="7"))
    headers, body = Codec(manifest, "sha256:0").write(got, {"x": sent, "y": sent})
    size = int(headers[LENGTH])
    head = json.loads(body[:size])
    assert (head["id"], head["parameters"]) == ("7", {"edgepack_bundle": "sha256:0"})
    y, x = head["outputs"]
    assert y["parameters"] == {"binary_data_size": len(body) - size}
    assert np.array_equal(np.frombuffer(body[size:], sent.dtype), sent.ravel())
    assert np.array_equal(np.array(x["data"], sent.dtype), sent.ravel())


@settings(deadline=None)
@given(st.binary(max_size=400), st.text(max_size=12))
@example(b'{"inputs":[{"name":"image","shape":[1,1,16,16],"datatype":"FP32","data":[]}]}', "")
@example(b"[" * 5000, "")
def test_no_bytes_break_the_reader(body: bytes, length: str) -> None:
    for headers in ({}, {LENGTH: length}, {"content-type": "image/png"}):
        assert outcome(headers, body, digits_manifest()) in {200, 400, 415}


def outcome(headers: dict[str, str], body: bytes, manifest: Manifest) -> int:
    try:
        got = read_request(headers, body, manifest)
    except RequestError as error:
        return error.status
    for spec in manifest.inputs:
        found = got.inputs[spec.name]
        assert isinstance(found, EncodedImage) or found.dtype == spec.dtype
    return 200


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
odd_tensor = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "image"]),
        "datatype": st.sampled_from([*DATATYPES, "BYTES", "XY"]),
        "shape": st.lists(st.integers(-1, 4), max_size=4) | json_value,
    },
    optional={
        "data": json_value,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "classification", "binary_data"]), json_value
        ),
    },
)


@settings(deadline=None)
@given(st.lists(odd_tensor, max_size=2), json_value, st.binary(max_size=16))
def test_no_json_breaks_the_reader(tensors: list[Any], odd: Any, binary: bytes) -> None:
    manifest = model(("x", "int64", (1, -1)), ("image", "bool", (2,)))
    body = request(*tensors, binary=binary, parameters=odd, outputs=odd)
    assert outcome(manifest=manifest, **body) in {200, 400}


ONE = model(("x", "float32", (1, 2)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "z"}, "must be ['x']"),
        ({"datatype": "FP64"}, "must be FP32"),
        ({"datatype": "BYTES"}, "must be FP32"),
        ({"shape": [2, 1]}, "must be [1, 2]"),
        ({"shape": [1, 2, 1]}, "must be [1, 2]"),
        ({"data": [1.0]}, "flat or [1, 2]"),
        ({"data": [[1.0], [2.0]]}, "flat or [1, 2]"),
        ({"data": [[1.0], 2.0]}, "uneven"),
        ({"data": [1.0, "2"]}, "no FP32"),
        ({"data": [1.0, None]}, "no FP32"),
        ({"data": [1.0, 1e39]}, "too large"),
        ({"data": None}, "neither"),
        ({"parameters": {"binary_data_size": 8}}, "past the body"),
        ({"parameters": {"classification": 3}}, "not supported"),
        ({"parameters": {"shared_memory_region": "m"}}, "not supported"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    good = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    assert read_request(manifest=ONE, **request(good)).inputs["x"].tolist() == [[1.0, 2.0]]
    error = refused(ONE, good | change)
    assert (error.status, words in str(error)) == (400, True), error


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("uint8", [256]), ("uint8", [-1]), ("int8", [1.0]), ("int64", [2**63]),
        ("bool", [1]), ("uint64", [0, 2**63, -1]), ("int64", [1.5, 2]), ("uint64", [-1]),
        ("int32", [True]), ("float16", [70000.0]),
    ],
)  # fmt: skip
def test_no_number_is_bent_to_fit(dtype: str, data: list[Any]) -> None:
    zeros = np.zeros(len(data), dtype)
    error = refused(model(("x", dtype, zeros.shape)), tensor("x", zeros, data=data))
    assert error.status == 400


def test_binary_data_must_add_up() -> None:
    array = np.ones((1, 2), np.float32)
    sized = tensor("x", array, parameters={"binary_data_size": 8})
    assert "binary data" in str(refused(ONE, sized, binary=array.tobytes() + b"\0"))
    short = tensor("x", array, parameters={"binary_data_size": 7})
    assert "shape needs 8" in str(refused(ONE, short, binary=array.tobytes()[:7]))
    both = sized | {"data": [1.0, 1.0]}
    assert "twice" in str(refused(ONE, both, binary=array.tobytes()))


def test_a_bool_byte_is_zero_or_one() -> None:
    sized = {"name": "x", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}
    manifest = model(("x", "bool", (2,)))
    good = read_request(manifest=manifest, **request(sized, binary=b"\0\1"))
    assert good.inputs["x"].tolist() == [False, True]
    assert "0 or 1" in str(refused(manifest, sized, binary=b"\0\2"))


def test_a_dynamic_axis_takes_any_size_but_none() -> None:
    manifest = model(("x", "float32", (-1, 2)))
    array = np.ones((3, 2), np.float32)
    got = read_request(manifest=manifest, **request(tensor("x", array, data=array.tolist())))
    assert got.inputs["x"].shape == (3, 2)
    empty = np.ones((0, 2), np.float32)
    assert refused(manifest, tensor("x", empty, data=[])).status == 400


def test_outputs_are_those_asked_for_in_the_way_asked_for() -> None:
    manifest = model(("x", "bool", (1,)), ("y", "bool", (1,)))
    both = [tensor(name, np.ones(1, bool), data=[True]) for name in "xy"]
    plain = read_request(manifest=manifest, **request(*both))
    assert [(o.name, o.binary) for o in plain.outputs] == [("x", False), ("y", False)]
    binary = request(*both, parameters={"binary_data_output": True})
    assert all(o.binary for o in read_request(manifest=manifest, **binary).outputs)
    mixed = binary["body"][:-1] + b',"outputs":[{"name":"y","parameters":{"binary_data":false}}]}'
    [only] = read_request({}, mixed, manifest).outputs
    assert (only.name, only.binary) == ("y", False)
    assert "unknown output" in str(refused(manifest, *both, outputs=[{"name": "z"}]))


def test_an_image_comes_as_bytes_base64_or_body() -> None:
    manifest = digits_manifest()
    named = {"name": "image", "datatype": "BYTES", "shape": [1]}
    text = base64.b64encode(b"picture").decode()
    as_json = read_request(manifest=manifest, **request(named | {"data": [text]}))
    element = (7).to_bytes(4, "little") + b"picture"
    sized = named | {"parameters": {"binary_data_size": len(element)}}
    as_binary = read_request(manifest=manifest, **request(sized, binary=element))
    as_body = read_request({"content-type": "image/jpeg"}, b"picture", manifest)
    for got in (as_json, as_binary, as_body):
        assert got.inputs == {"image": EncodedImage(b"picture")}


@pytest.mark.parametrize("data", [["*"], [1], [], "xx", ["eA==", "eA=="], {"a": 1}])
def test_a_bad_element_is_no_image(data: Any) -> None:
    named = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    assert refused(digits_manifest(), named).status == 400


def test_a_torn_element_is_no_image() -> None:
    torn = {"name": "image", "datatype": "BYTES", "shape": [1]}
    for element in (b"", b"\1\0\0", b"\2\0\0\0x", b"\0\0\0\0x"):
        sized = torn | {"parameters": {"binary_data_size": len(element)}}
        assert refused(digits_manifest(), sized, binary=element).status == 400


def test_a_model_without_preprocessing_takes_no_image() -> None:
    with pytest.raises(RequestError) as caught:
        read_request({"content-type": "image/png"}, b"x", ONE)
    assert caught.value.status == 415


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        read_request({"content-encoding": "gzip"}, b"x", ONE)
    assert caught.value.status == 415


@pytest.mark.parametrize("timeout", [0, -1, True, "1", None])
def test_a_timeout_is_a_number_of_microseconds(timeout: Any) -> None:
    good = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    got = read_request(manifest=ONE, **request(good, parameters={"timeout": 1500}))
    assert got.timeout_s == 0.0015
    assert read_request(manifest=ONE, **request(good)).timeout_s == math.inf
    assert refused(ONE, good, parameters={"timeout": timeout}).status == 400


def test_json_cannot_say_nan_but_binary_can() -> None:
    array = np.array([[np.nan, 1]], np.float32)
    good = tensor("x", array, data=[0.0, 1.0])
    asked = read_request(manifest=ONE, **request(good))
    with pytest.raises(RequestError) as caught:
        Codec(ONE, "d").write(asked, {"x": array})
    assert (caught.value.status, caught.value.reason) == (500, "non_finite")
    binary = request(good, parameters={"binary_data_output": True})
    headers, body = Codec(ONE, "d").write(read_request(manifest=ONE, **binary), {"x": array})
    assert np.isnan(np.frombuffer(body[int(headers[LENGTH]) :], np.float32)[0])


def test_the_limit_has_room_for_the_longest_json() -> None:
    array = np.full((1, 5000), -1.2345678901234567e-300)
    manifest = model(("x", "float64", array.shape))
    body = request(tensor("x", array, data=array.tolist()))["body"]
    assert len(body) <= protocol.body_limit(manifest) < 5 * len(body)
    assert protocol.body_limit(model(("x", "float64", (-1, 2)))) > 2**20


def said(codec: Codec, headers: dict[str, str], body: bytes) -> Any:
    """Return what CODEC makes of a request, in a form that can be compared."""
    try:
        got = codec.read(headers, body)
    except RequestError as error:
        return error.status, str(error)
    return got.id, got.outputs, got.timeout_s, {k: v.tolist() for k, v in got.inputs.items()}


calls = st.builds(
    lambda size, shape, mark, data: request(
        {"name": "x", "datatype": "FP32", "shape": shape}
        | {"parameters": {"binary_data_size": size}},
        binary=data,
        **({"id": mark} if mark else {}),
    ),
    size=st.sampled_from([4, 8]),
    shape=st.sampled_from([[1, 2], [2, 1], [1, 1]]),
    mark=st.sampled_from(["", "7"]),
    data=st.sampled_from([b"\0" * 8, b"\1" * 8, b"\0" * 4, b"\2" * 16]),
)


@settings(deadline=None)
@given(st.lists(calls, max_size=12))
def test_who_has_read_before_reads_as_who_has_not(asked: list[dict[str, Any]]) -> None:
    old = Codec(ONE, "d")
    for call in asked:
        assert said(old, **call) == said(Codec(ONE, "d"), **call)


def test_heads_that_are_kept_hold_no_data_of_another_call() -> None:
    codec = Codec(ONE, "d")
    sized = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    sized |= {"parameters": {"binary_data_size": 8}}
    for numbers in ([1, 2], [3, 4], [1, 2]):
        array = np.array([numbers], np.float32)
        wanted = {"binary_data_output": True}
        got = codec.read(**request(sized, binary=array.tobytes(), parameters=wanted))
        assert got.inputs["x"].tolist() == [numbers]
        headers, body = codec.write(got, {"x": array * 2})
        size = int(headers[LENGTH])
        assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 8}
        assert np.frombuffer(body[size:], np.float32).tolist() == [n * 2 for n in numbers]
    # Of a shape that the model leaves open, each has a head of its own.
    for rows in (1, 2):
        headers, body = codec.write(got, {"x": np.zeros((rows, 2), np.float32)})
        assert json.loads(body[: int(headers[LENGTH])])["outputs"][0]["shape"] == [rows, 2]


def test_what_comes_once_is_not_kept() -> None:
    codec = Codec(ONE, "d")
    sized = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    sized |= {"parameters": {"binary_data_size": 8}}
    wanted = {"binary_data_output": True}
    long = "\N{PENGUIN}" * 2**20
    tracemalloc.start()
    for number in range(8):
        asked = request(sized, binary=bytes(8), parameters=wanted, id=f"{number}{long}")
        got = codec.read(**asked)
        headers, body = codec.write(got, {"x": np.zeros((1, 2), np.float32)})
        assert json.loads(body[: int(headers[LENGTH])])["id"] == got.id
        del asked, got, body
    for number in range(100):
        codec.read(**request(sized, binary=bytes(8), parameters=wanted, id=str(number)))
        codec.read(**request(sized, binary=bytes(8), parameters={"timeout": number + 1}))
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 2**20
