"""Patches: what they make, what they refuse, and that nothing in one is believed unchecked."""

import contextlib
import hashlib
import io
import lzma
import random
import struct
import tracemalloc

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.patch import (
    CODECS,
    FRAME_TARGET,
    LZMA_DICTIONARY,
    MAX_PAYLOAD,
    RECORD,
    Codec,
    Frame,
    Header,
    PatchError,
    apply_patch,
    read_header,
    write_frame,
    write_header,
)
from edgepack_packager.workers.patches import encode
from fuzz import refusal

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": LZMA_DICTIONARY}]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def patch_of(base: bytes, target: bytes, codec: Codec, **other: object) -> bytes:
    """Return the patch from BASE to TARGET in one frame; OTHER replaces fields of its header."""
    facts = {"frames": 1} | other
    header = Header(codec, digest(base), len(base), digest(target), len(target), **facts)  # type: ignore[arg-type]
    payload = encode(codec, base, target)
    return written(header, (Frame(0, len(base), len(target), 0), payload))


def written(header: Header, *frames: tuple[Frame, bytes]) -> bytes:
    file = io.BytesIO()
    write_header(file, header)
    for frame, payload in frames:
        write_frame(file, frame, payload)
    return file.getvalue()


def apply(patch: bytes, base: bytes) -> bytes:
    out = io.BytesIO()
    apply_patch(io.BytesIO(patch), io.BytesIO(base), out)
    return out.getvalue()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a base and a target that has much, little or nothing of it."""
    seed = draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    base = rng.randbytes(draw(st.integers(1, 4000)))
    target = bytearray(base[draw(st.integers(0, 50)) :])
    for _ in range(draw(st.integers(0, 40))):
        place = rng.randrange(len(target) + 1)
        change = draw(st.sampled_from(["set", "insert", "cut", "move"]))
        if change == "set" and place < len(target):
            target[place] = rng.randrange(256)
        elif change == "insert":
            target[place:place] = rng.randbytes(rng.randrange(100))
        elif change == "cut":
            del target[place : place + rng.randrange(100)]
        elif change == "move":
            piece = target[place : place + 300]
            target[0:0] = piece
    return base, bytes(target) or b"x"


@settings(max_examples=60, deadline=None)
@given(pairs(), st.sampled_from(CODECS))
def test_a_patch_makes_the_target_of_the_base(pair: tuple[bytes, bytes], codec: Codec) -> None:
    base, target = pair
    assert apply(patch_of(base, target, codec), base) == target


@pytest.mark.parametrize("codec", CODECS)
def test_a_patch_of_little_change_is_small(codec: Codec) -> None:
    base = random.Random(1).randbytes(300_000)
    target = bytearray(base)
    target[1000] ^= 1
    assert len(patch_of(base, bytes(target), codec)) < 1000


def test_the_result_is_right_across_pieces_and_frames() -> None:
    rng = random.Random(2)
    base = rng.randbytes(300_000)
    target = bytes((b + 1) % 256 for b in base[:200_000]) + rng.randbytes(70_000) + base[200_000:]
    cut = 150_000
    header = Header("bsdiff", digest(base), len(base), digest(target), len(target), 2)
    patch = written(
        header,
        (Frame(0, 200_000, cut, 0), encode("bsdiff", base[:200_000], target[:cut])),
        (Frame(100_000, 200_000, len(target) - cut, 0),
         encode("bsdiff", base[100_000:], target[cut:])),
    )  # fmt: skip
    assert apply(patch, base) == target


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(CODECS))
def test_a_damaged_patch_is_refused_or_makes_no_more_than_it_says(
    data: st.DataObject, codec: Codec
) -> None:
    rng = random.Random(3)
    base = rng.randbytes(2000)
    target = base[:700] + rng.randbytes(300) + base[600:]
    patch = bytearray(patch_of(base, target, codec))
    if data.draw(st.booleans()):
        del patch[data.draw(st.integers(0, len(patch) - 1)) :]
        assert refusal(apply, bytes(patch), base) == "bad_patch"
        return
    place = data.draw(st.integers(0, len(patch) - 1))
    patch[place] ^= 1 << data.draw(st.integers(0, 7))
    out = io.BytesIO()
    try:
        header = apply_patch(io.BytesIO(patch), io.BytesIO(base), out)
    except PatchError:
        assert out.tell() <= FRAME_TARGET
    else:
        assert out.tell() == header.target_size


@pytest.mark.parametrize("codec", CODECS)
def test_another_base_gives_another_result_or_none(codec: Codec) -> None:
    rng = random.Random(4)
    base, other = rng.randbytes(5000), rng.randbytes(5000)
    target = base[100:] + b"tail"
    patch = patch_of(base, target, codec)
    out = io.BytesIO()
    with contextlib.suppress(PatchError):
        apply_patch(io.BytesIO(patch), io.BytesIO(other), out)
    assert digest(out.getvalue()) != digest(target)
    assert refusal(apply, patch, base[:3000]) == "bad_patch"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert refusal(apply, data, b"base") == "bad_patch"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.sampled_from((1, 2)), st.integers(0, 2**32 - 1))
def test_any_frames_are_refused(data: bytes, codec: int, length: int) -> None:
    head = struct.pack(">8sBI32sQ32sQ", b"EPPATCH1", codec, 1, b"", 4, b"", 4)
    frame = struct.pack(">QIII", 0, 4, 4, length)
    for tail in (data, frame + data, frame[:-4] + struct.pack(">I", len(data)) + data):
        assert refusal(apply, head + tail, b"base") in {"bad_patch", None}


def test_what_a_header_claims_is_bounded() -> None:
    good = Header("zstd", "0" * 64, 1, "1" * 64, 1, 1)
    assert read_header(io.BytesIO(written(good))) == good
    for changes in (
        {"base_size": 2**40},
        {"target_size": 2**40},
        {"target_size": 0},
        {"frames": 0},
        {"frames": 2**31},
        {"target_size": FRAME_TARGET + 1},
    ):
        fields = {name: getattr(good, name) for name in Header.__slots__} | changes
        assert refusal(read_header, io.BytesIO(written(Header(**fields)))) == "bad_patch"


def test_a_frame_stays_inside_its_bounds() -> None:
    base = bytes(100)
    header = Header("zstd", digest(base), 100, digest(b"x"), 10, 1)
    payload = zstd.compress(b"0123456789")
    assert apply(written(header, (Frame(0, 0, 10, 0), payload)), base) == b"0123456789"
    for frame in (
        Frame(1, 100, 10, 0),
        Frame(2**63, 1, 10, 0),
        Frame(0, 2**31, 10, 0),
        Frame(0, 0, 11, 0),
        Frame(0, 0, 0, 0),
        Frame(0, 0, 9, 0),
    ):
        assert refusal(apply, written(header, (frame, payload)), base) == "bad_patch", frame
    assert refusal(apply, written(header, (Frame(0, 0, 10, 0), b"")), base) == "bad_patch"
    huge = struct.pack(">QIII", 0, 0, 10, MAX_PAYLOAD + 1)
    assert refusal(apply, written(header) + huge + payload, base) == "bad_patch"


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_goes_off_nowhere(codec: Codec) -> None:
    """40 MB of zeros in few bytes: no more is made than the header says, in little memory."""
    zeros = bytes(40 * 2**20)
    if codec == "zstd":
        payload = zstd.compress(zeros)
    else:
        record = RECORD.pack(0, 0, len(zeros))
        payload = lzma.compress(record + zeros, format=lzma.FORMAT_RAW, filters=FILTERS)
    header = Header(codec, digest(b"b"), 1, digest(b"x"), 100_000, 1)
    patch = written(header, (Frame(0, 1, 100_000, 0), payload))
    tracemalloc.start()
    out = io.BytesIO()
    with pytest.raises(PatchError):
        apply_patch(io.BytesIO(patch), io.BytesIO(b"b"), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.tell() <= 100_000
    assert peak < LZMA_DICTIONARY + 2 * 2**20


def test_a_window_that_is_too_far_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    payload = compressor.compress(b"0123456789") + compressor.flush()
    header = Header("zstd", digest(b"b"), 1, digest(b"x"), 10, 1)
    assert refusal(apply, written(header, (Frame(0, 1, 10, 0), payload)), b"b") == "bad_patch"


@pytest.mark.parametrize(
    "records",
    [
        [(0, 0, 0)],
        [(0, 5, 0)],
        [(1, 4, 0), (0, 0, 1)],
        [(5, 0, 5)],
        [(-1, 0, 5)],
        [(0, 0, 6)],
        [(0, 2**32 - 1, 0)],
        [(0, 1, 3), (0, 0, 1), (0, 0, 1)],
        [(0, 4, 0), (1, 0, 1)],
    ],
)
def test_a_record_stays_inside_its_frame(records: list[tuple[int, int, int]]) -> None:
    plain = b"".join(
        RECORD.pack(*record) + bytes(min(record[1] + record[2], 9)) for record in records
    )
    payload = lzma.compress(plain, format=lzma.FORMAT_RAW, filters=FILTERS)
    header = Header("bsdiff", digest(b"base"), 4, digest(b"x"), 5, 1)
    patch = written(header, (Frame(0, 4, 5, 0), payload))
    assert refusal(apply, patch, b"base") == "bad_patch"


def test_nothing_may_follow() -> None:
    base, target = b"the base", b"the target"
    for codec in CODECS:
        patch = patch_of(base, target, codec)
        assert refusal(apply, patch + b"x", base) == "bad_patch"
        header, cut = read_header(io.BytesIO(patch)), len(encode(codec, base, target))
        payload = patch[-cut:] + b"more"
        longer = written(header, (Frame(0, len(base), len(target), 0), payload))
        assert refusal(apply, longer, base) == "bad_patch"
