"""Canonical JSON: one value, one byte string."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import canonical
from edgepack.errors import IntegrityError
from fuzz import json_values


@given(json_values)
def test_what_is_dumped_is_loaded(value: object) -> None:
    data = canonical.dumps(value)
    assert canonical.loads(data) == value
    assert canonical.dumps(canonical.loads(data)) == data


@given(json_values, st.integers(0, 3))
def test_only_one_spelling_is_read(value: object, indent: int) -> None:
    other = json.dumps(value, indent=indent).encode()
    if other != canonical.dumps(value):
        with pytest.raises(IntegrityError):
            canonical.loads(other)


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'{"a": 1}', b'{"a":1}\n', b'\xef\xbb\xbf{"a":1}',
        b'"\\u0041"', b'"\\/"', b"1E2", b"1.50", b"-0", b"01", b'{"a":1}'.decode().encode("utf-16"),
    ],
)  # fmt: skip
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        canonical.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"NaN", b"[Infinity]", b"1e999", b'"\\ud800"', b"\xff", b"[" * 100_000,
        b"1" * 5000, b'{"a":1}}',
    ],
)  # fmt: skip
def test_what_is_no_json_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        canonical.loads(data, what="thing")
    assert "thing" in caught.value.what


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = canonical.loads(data)
    except IntegrityError:
        return
    assert canonical.dumps(value) == data


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_what_json_cannot_say_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical.dumps(value)
