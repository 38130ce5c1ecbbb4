"""Messages: what is encoded is decoded, newer fields are ignored, nothing else gets through."""

import json
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import messages
from edgepack.errors import IntegrityError
from edgepack.messages import decode, decode_batch, encode, encode_batch
from fuzz import almost, json_values, refusal

EXAMPLES: list[messages.Message] = [
    messages.Conn(online=True, conn="c1", boot="b1", agent="0.1.0", bundle="digits@1.0.0"),
    messages.Telemetry(
        boot="b1",
        seq=4,
        start=1.0,
        end=61.0,
        inferences=12,
        errors={"timeout": 1},
        latency_ms=messages.Histogram(edges=(1.0, 10.0), counts=(3, 8, 1)),
        classes={"7": 12},
    ),
    messages.Event(boot="b1", seq=5, ts=62.0, type="rejected", reason="acceptance_below_limit"),
    messages.Export(
        device="cam-1", time=63.0, messages=(messages.Carried(kind="evt", payload=b"[]"),)
    ),
    messages.Ack(boot="b1", upto=5, missing=((2, 2), (3, 3))),
    messages.JobGet(token="t"),
    messages.JobUpdate(token="t", job="j", version=3, status="IN_PROGRESS", progress=0.5),
    messages.JobReply(
        token="t",
        job=messages.Job(job="j", version=3, status="QUEUED", release="d@1.0.0", target="models/d"),
    ),
    messages.Rejected(token="t", code="version_mismatch"),
    messages.MetaRequest(xfer="x", repo="image", name="3.root.json"),
    messages.BlobRequest(xfer="x", sha256="a" * 64, size=70_000, start=0, n=2),
    messages.Head(status=404),
    messages.CertRequest(token="t", request="{}"),
    messages.Renewal(device="cam-1", csr="-----BEGIN", challenge="1.ab.cd"),
    messages.Challenge(challenge="1.ab.cd"),
    messages.CertHint(within_s=60),
    messages.CertReply(token="t", certificate="c", authorities="{}"),
    messages.Report(device="cam-1", kind="evt", nonce="n", time=1.0, body=[{"v": 1}]),
    messages.EnrollRequest(secret="s", csr="-----BEGIN", inventory=messages.Inventory(ram_mb=1)),
    messages.EnrollReply(
        device="cam-1", group="eu", certificate="c", ca="a", broker_host="h", broker_port=8883,
        director_root="{}",
    ),
    messages.EnrollPending(applicant="a-1", fingerprint="0" * 64, deadline=1.0, retry_s=15),
]  # fmt: skip
examples = pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)


def test_every_message_has_an_example() -> None:
    kinds = {
        getattr(messages, name)
        for name in messages.__all__
        if isinstance(getattr(messages, name), type)
    }
    wire = {kind for kind in kinds if issubclass(kind, messages.Message)}
    assert wire == {type(message) for message in EXAMPLES}


@examples
def test_what_is_encoded_is_decoded(message: messages.Message) -> None:
    assert decode(encode(message), type(message)) == message


@examples
def test_every_message_says_its_version(message: messages.Message) -> None:
    document = json.loads(encode(message))
    assert document["v"] == 1
    with pytest.raises(IntegrityError) as caught:
        decode(json.dumps(document | {"v": 2}).encode(), type(message))
    assert caught.value.reason == "bad_message"


@examples
def test_a_field_of_a_newer_side_is_ignored(message: messages.Message) -> None:
    newer = json.loads(encode(message)) | {"from_the_future": [1, 2]}
    assert decode(json.dumps(newer).encode(), type(message)) == message


@given(st.data(), st.sampled_from(EXAMPLES))
def test_almost_a_message_is_read_or_refused(data: st.DataObject, message: Any) -> None:
    document = json.dumps(data.draw(almost(msgspec.to_builtins(message)))).encode()
    assert refusal(decode, document, type(message)) in {None, "bad_message"}


@given(json_values, st.sampled_from(EXAMPLES))
def test_any_json_is_read_or_refused(value: object, message: Any) -> None:
    for read in (decode, decode_batch):
        reason = refusal(read, json.dumps(value).encode(), type(message))
        assert reason in {None, "bad_message"}


@given(st.binary(max_size=300), st.booleans(), st.sampled_from(EXAMPLES))
def test_any_bytes_are_read_or_refused(data: bytes, deflate: bool, message: Any) -> None:
    body = zlib.compress(data) if deflate else data
    for read in (decode, decode_batch):
        assert refusal(read, body, type(message)) in {None, "bad_message"}


@given(st.lists(st.sampled_from(EXAMPLES[1:2]), max_size=40))
def test_a_batch_comes_back(batch: list[Any]) -> None:
    assert decode_batch(encode_batch(batch), messages.Telemetry) == batch


def test_a_large_batch_is_deflated() -> None:
    batch = [EXAMPLES[1]] * 50
    assert len(encode_batch(batch)) < len(msgspec.json.encode(batch)) / 4


@pytest.mark.parametrize("size", [messages.MAX_MESSAGE + 1, 50_000_000])
def test_a_batch_that_inflates_too_far_is_refused(size: int) -> None:
    bomb = zlib.compress(b" " * size, 9)
    assert len(bomb) < messages.MAX_MESSAGE
    with pytest.raises(IntegrityError, match="not a valid"):
        decode_batch(bomb, messages.Event)


@pytest.mark.parametrize("read", [decode, decode_batch])
def test_a_message_that_is_too_long_is_refused(read: Any) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(b"[" + b" " * messages.MAX_MESSAGE + b"]", messages.Event)
    assert "at most" in caught.value.why


def test_a_torn_batch_is_refused() -> None:
    torn = zlib.compress(msgspec.json.encode([EXAMPLES[1]]))[:-3]
    with pytest.raises(IntegrityError):
        decode_batch(torn, messages.Telemetry)


@pytest.mark.parametrize(
    "name", ["../1.root.json", "a/b", "", "x" * 161, "root.json\n", "ro\0ot", "\u0430.json"]
)
def test_a_metadata_request_names_a_file_and_no_path(name: str) -> None:
    request = {"v": 1, "xfer": "x", "repo": "image", "name": name}
    with pytest.raises(IntegrityError):
        decode(json.dumps(request).encode(), messages.MetaRequest)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": "A" * 64}, {"sha256": "a" * 64 + "\n"}, {"size": -1}, {"start": -1}, {"n": 0},
        {"n": 65}, {"n": True}, {"n": 1.5}, {"xfer": ""}, {"xfer": "x" * 129},
    ],
)  # fmt: skip
def test_a_blob_request_stays_in_its_bounds(wrong: dict[str, object]) -> None:
    request = {"v": 1, "xfer": "x", "sha256": "a" * 64, "size": 9, "start": 0, "n": 1} | wrong
    with pytest.raises(IntegrityError):
        decode(json.dumps(request).encode(), messages.BlobRequest)
