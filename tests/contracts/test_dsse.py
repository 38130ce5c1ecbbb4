"""Envelopes: only what a known key has signed, as the type it was signed as, comes out."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from edgepack import dsse
from edgepack.errors import IntegrityError

KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
KIND = "application/vnd.edgepack.test"


def refusal(data: bytes, kind: str = KIND, key: ec.EllipticCurvePrivateKey = KEY) -> str | None:
    try:
        dsse.opened(kind, data, key.public_key())
    except IntegrityError as error:
        return error.reason
    return None


@given(st.binary(max_size=200))
def test_what_is_sealed_comes_out(payload: bytes) -> None:
    sealed = dsse.seal(KIND, payload, KEY)
    assert dsse.opened(KIND, sealed, OTHER.public_key(), KEY.public_key()) == payload
    assert dsse.is_envelope(sealed)


def test_the_encoding_is_that_of_the_standard() -> None:
    kind = "http://example.com/HelloWorld"
    assert dsse.pae(kind, b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_another_key_another_type_another_payload() -> None:
    sealed = dsse.seal(KIND, b"payload", KEY)
    assert refusal(sealed, key=OTHER) == "bad_signature"
    assert refusal(sealed, kind="other") == "bad_message"
    renamed = json.loads(sealed) | {"payloadType": "other"}
    assert refusal(json.dumps(renamed).encode(), kind="other") == "bad_signature"
    changed = json.loads(sealed) | {"payload": base64.b64encode(b"Payload").decode()}
    assert refusal(json.dumps(changed).encode()) == "bad_signature"
    assert refusal(json.dumps(json.loads(sealed) | {"signatures": []}).encode()) == "bad_signature"


TEXTS = st.text(max_size=12)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "payload": TEXTS | st.integers(),
        "payloadType": st.just(KIND) | TEXTS,
        "signatures": st.lists(st.fixed_dictionaries({}, optional={"sig": TEXTS}), max_size=2),
    },
)


@given(st.binary(max_size=80) | SHAPED.map(lambda value: json.dumps(value).encode()))
def test_nonsense_is_refused(data: bytes) -> None:
    assert refusal(data) in {"bad_message", "bad_signature"}


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_torn_envelopes_are_refused(cut: int) -> None:
    sealed = dsse.seal(KIND, b"x" * 90, KEY)
    assert not dsse.is_envelope(sealed[:-cut])
    assert refusal(sealed[:-cut]) == "bad_message"
