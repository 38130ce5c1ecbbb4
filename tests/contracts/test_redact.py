"""Secrets are taken out of text whatever is around them; what is none stays readable."""

import base64
import json
import secrets

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from edgepack.redact import redact

SECRET = "kQ7-zX_81pLmW0vR"
_KEY = ec.generate_private_key(ec.SECP256R1())
PEM = _KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
TOKEN = "ep1." + base64.urlsafe_b64encode(json.dumps({"secret": SECRET}).encode()).decode()
PLACES = [
    f"rtsp://admin:{SECRET}@10.0.0.7:554/h264?channel=1",
    f"cannot open rtsps://{SECRET}@cam/1: timed out",
    f"https://fleet.example/blob/ab12?exp=17&sig={SECRET}",
    f"https://fleet.example/blob?token={SECRET}&exp=1",
    f"https://s3.example/x?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"password={SECRET}",
    f'{{"secret": "{SECRET}", "name": "cam"}}',
    f"{{'api_key': '{SECRET}'}}",
    f'b\'{{"token":"{SECRET}"}}\'',
    f"EDGEPACK_FLEET_TOKEN={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"['authorization', 'Bearer {SECRET}']",
    f"proxy-authorization: Basic {SECRET}",
    f"pass phrase is wrong, passphrase: {SECRET}",
    f'mqtt_password="{SECRET} with spaces"',
]


@pytest.mark.parametrize("text", PLACES)
def test_a_secret_is_taken_wherever_it_stands(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


def test_keys_and_tokens_are_taken_whole_or_cut() -> None:
    body = PEM.splitlines()[1]
    for text in (PEM, PEM[:150], json.dumps(PEM), f"key: {PEM!r} and more", PEM.encode()):
        assert body not in redact(str(text))
    assert TOKEN[8:] not in redact(f"enroll {TOKEN} --root x")
    assert TOKEN[8:] not in redact(f"this is not an enrolment token: {TOKEN[:-7]}")


@pytest.mark.parametrize(
    "text",
    [
        "idle -> offered",
        "https://fleet.example:8443/enroll does not answer: timed out",
        "/etc/edgepack/conf.d/10-site.yaml, line 3: there is no key `levle` here",
        "job r1-cam: FAILED unreachable 2026-11-26T01:00:00Z",
        "-----BEGIN CERTIFICATE-----",
        "the signature does not hold",
        "digits@1.0.0 sha256:0123456789abcdef",
        "no link to broker.example:8883: [Errno 111] Connection refused",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


# Quotes that are opened elsewhere change what a quoted secret is, for any reader.
around = st.text(st.characters(exclude_characters="\"'"), max_size=40)


@given(around, st.sampled_from(PLACES), around)
def test_whatever_stands_around_it(before: str, place: str, after: str) -> None:
    assert SECRET not in redact(f"{before} {place} {after}")


@given(st.text(max_size=300))
def test_any_text_can_be_read_and_reading_twice_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


def test_long_text_takes_no_long_time() -> None:
    for piece in ("a://", "-----BEGIN PRIVATE KEY-----", "password", "pass=", "a" * 50, "ep1."):
        redact(piece * 1000)


def test_random_tokens_of_a_fleet() -> None:
    for _ in range(50):
        secret = secrets.token_urlsafe(32)
        assert secret not in redact(f"ep1.{secret}")
        assert secret not in redact(f"token={secret}")
