"""`model.sig`: one signature per key and content, and nothing else passes for it."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

import bundles
from edgepack import canonical
from edgepack.errors import IntegrityError
from edgepack.keys import key_id
from edgepack.oms import sign_files, signer, verify_files
from fuzz import almost, json_values, refusal

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DIGESTS = {"manifest.json": "1" * 64, "model/model.onnx": "2" * 64, "labels.txt": "3" * 64}
PUBLIC = bundles.KEY.public_key()
SIGNATURE = sign_files(DIGESTS, bundles.KEY)
DOCUMENT = json.loads(SIGNATURE)


def reason(signature: bytes, digests: dict[str, str] = DIGESTS) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify_files(signature, digests, PUBLIC)
    return caught.value.reason


def test_what_is_signed_is_verified() -> None:
    verify_files(SIGNATURE, DIGESTS, PUBLIC)
    assert signer(SIGNATURE) == key_id(PUBLIC)


def test_the_same_content_and_key_give_the_same_signature() -> None:
    again = sign_files(dict(reversed(DIGESTS.items())), bundles.KEY)
    assert again == SIGNATURE


hex_digests = st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())


@given(st.dictionaries(st.text("abc/", min_size=1), hex_digests))
def test_every_content_can_be_signed(digests: dict[str, str]) -> None:
    verify_files(sign_files(digests, bundles.KEY), digests, PUBLIC)


def test_no_byte_of_it_is_free() -> None:
    for at in range(len(SIGNATURE)):
        for bit in (1, 32, 128):
            changed = bytearray(SIGNATURE)
            changed[at] ^= bit
            assert refusal(verify_files, bytes(changed), DIGESTS, PUBLIC), f"byte {at} ^ {bit}"


@pytest.mark.parametrize(
    "digests",
    [
        {},
        DIGESTS | {"model/model.onnx": "4" * 64},
        DIGESTS | {"docs/extra": "4" * 64},
        {path: digest for path, digest in DIGESTS.items() if path != "labels.txt"},
        {path.upper(): digest for path, digest in DIGESTS.items()},
        dict(zip(DIGESTS, reversed(DIGESTS.values()), strict=True)),
    ],
    ids=["nothing", "changed", "added", "removed", "renamed", "swapped"],
)
def test_other_files_are_refused(digests: dict[str, str]) -> None:
    assert reason(SIGNATURE, digests) == "digest_mismatch"


def test_another_key_is_refused() -> None:
    assert reason(sign_files(DIGESTS, bundles.OTHER_KEY)) == "wrong_key"


def test_a_key_that_claims_the_right_name_is_refused() -> None:
    forged = json.loads(sign_files(DIGESTS, bundles.OTHER_KEY))
    forged["verificationMaterial"]["publicKey"]["hint"] = key_id(PUBLIC)
    assert reason(canonical.dumps(forged)) == "bad_signature"


def with_raw(raw: bytes) -> bytes:
    envelope = DOCUMENT["dsseEnvelope"]
    signature = {"keyid": "", "sig": base64.b64encode(raw).decode()}
    return canonical.dumps(DOCUMENT | {"dsseEnvelope": envelope | {"signatures": [signature]}})


def raw_signature() -> bytes:
    return base64.b64decode(DOCUMENT["dsseEnvelope"]["signatures"][0]["sig"])


def test_the_high_s_twin_is_refused() -> None:
    r, s = decode_dss_signature(raw_signature())
    assert s <= ORDER // 2
    twin = encode_dss_signature(r, ORDER - s)
    assert with_raw(raw_signature()) == SIGNATURE
    assert reason(with_raw(twin)) == "bad_signature"


@pytest.mark.parametrize("seed", range(20))
def test_s_is_low_for_every_content(seed: int) -> None:
    document = json.loads(sign_files({"a": f"{seed:064x}"}, bundles.KEY))
    raw = base64.b64decode(document["dsseEnvelope"]["signatures"][0]["sig"])
    assert decode_dss_signature(raw)[1] <= ORDER // 2


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x30\x00", raw_signature() + b"\0", raw_signature()[:-1],
        encode_dss_signature(0, 0), encode_dss_signature(1, 1), encode_dss_signature(ORDER, 1),
        b"\x30\x81" + raw_signature()[1:],
    ],
)  # fmt: skip
def test_other_encodings_of_numbers_are_refused(raw: bytes) -> None:
    assert reason(with_raw(raw)) == "bad_signature"


def two_signatures(document: Any) -> None:
    document["dsseEnvelope"]["signatures"] *= 2


def loose_base64(document: Any) -> None:
    document["dsseEnvelope"]["signatures"][0]["sig"] += "\n"


def other_payload_type(document: Any) -> None:
    document["dsseEnvelope"]["payloadType"] = "application/json"


def other_media_type(document: Any) -> None:
    document["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1"


def extra_field(document: Any) -> None:
    document["timestamp"] = "2026-01-01"


def other_predicate(document: Any) -> None:
    payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    payload["predicate"]["serialization"]["ignore_paths"].append("model/model.onnx")
    text = base64.b64encode(canonical.dumps(payload)).decode()
    document["dsseEnvelope"]["payload"] = text


@pytest.mark.parametrize(
    "change",
    [
        two_signatures, loose_base64, other_payload_type, other_media_type, extra_field,
        other_predicate,
    ],
)  # fmt: skip
def test_a_document_that_differs_anywhere_is_refused(change: Callable[[Any], None]) -> None:
    document = json.loads(SIGNATURE)
    change(document)
    assert reason(canonical.dumps(document)) in {"bad_signature", "digest_mismatch"}


@given(almost(DOCUMENT).map(canonical.dumps) | json_values.map(canonical.dumps) | st.binary())
def test_anything_else_is_refused(data: bytes) -> None:
    if data != SIGNATURE:
        assert refusal(verify_files, data, DIGESTS, PUBLIC)
        refusal(signer, data)
