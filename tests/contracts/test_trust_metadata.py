"""Signed files on disk: atomic, versioned, and nothing counts before the timestamp."""

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Root, Targets, Timestamp

from edgepack.durable import BlobSink, sweep, write_file
from edgepack.errors import IntegrityError
from edgepack.metadata import (
    ISSUED,
    MetadataDirectory,
    OnlineKeys,
    keep_fresh,
    parse,
    seal,
    sign,
    signer_of,
    split_name,
    verify,
    version_after,
)
from edgepack.trust import TrustError

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SIGNER = signer_of(ec.derive_private_key(11, ec.SECP256R1()))
STRANGER = signer_of(ec.derive_private_key(12, ec.SECP256R1()))
KEYS = OnlineKeys(SIGNER, SIGNER)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def targets(version: int = 1) -> bytes:
    return sign(Targets(version, expires=NOW + timedelta(days=90)), SIGNER)


def repository(path: Path) -> MetadataDirectory:
    directory = MetadataDirectory(path)
    directory.write("1.targets.json", targets())
    seal(directory, {"targets": targets()}, KEYS, NOW)
    return directory


@given(st.text(max_size=40))
def test_a_name_never_leads_out_of_the_directory(text: str) -> None:
    for name in (text, f"{text}.json", f"../{text}.json", f"1.{text}.json"):
        try:
            split_name(name)
        except TrustError:
            continue
        assert "/" not in name
        assert not name.startswith(".")
        assert name == name.strip()


@pytest.mark.parametrize("name", ["..json", "0.root.json", "01.root.json", "a/b.json", "x.json\n"])
def test_odd_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrustError) as caught:
        MetadataDirectory(tmp_path).read(name)
    assert caught.value.reason == "bad_path"


@given(st.binary(max_size=200))
def test_garbage_is_not_metadata(data: bytes) -> None:
    with pytest.raises(TrustError) as caught:
        parse(data, Targets)
    assert caught.value.reason == "bad_metadata"


def test_one_role_is_not_another() -> None:
    with pytest.raises(TrustError, match="not timestamp"):
        parse(targets(), Timestamp)


def test_a_flip_in_any_signed_byte_is_noticed() -> None:
    root = Root(1, expires=NOW)
    root.add_key(SIGNER.public_key, "targets")
    data = targets()
    assert verify(root, "targets", parse(data, Targets)).version == 1
    for position in range(data.index(b'"signed"') + 10, len(data) - 2):
        torn = bytearray(data)
        torn[position] ^= 1
        with pytest.raises(TrustError):
            verify(root, "targets", parse(bytes(torn), Targets))
    stranger = sign(Targets(1, expires=NOW), STRANGER)
    with pytest.raises(TrustError) as caught:
        verify(root, "targets", parse(stranger, Targets))
    assert caught.value.reason == "bad_signature"


@given(st.integers(0, 2**40), st.integers(0, 2**33))
def test_a_version_rises_and_outruns_backups(last: int, seconds: int) -> None:
    version = version_after(last, datetime.fromtimestamp(seconds, UTC))
    assert version > last
    assert version >= seconds


def test_nothing_counts_before_the_timestamp(tmp_path: Path) -> None:
    directory = repository(tmp_path)
    directory.write("2.targets.json", targets(2))
    assert parse(directory.current()["targets"], Targets).signed.version == 1
    seal(directory, {"targets": targets(2)}, KEYS, NOW)
    assert parse(directory.current()["targets"], Targets).signed.version == 2


def test_it_is_signed_again_at_half_life_and_not_before(tmp_path: Path) -> None:
    directory = repository(tmp_path)
    first = directory.read("timestamp.json")
    assert not keep_fresh(directory, KEYS, NOW + timedelta(hours=11))
    assert directory.read("timestamp.json") == first
    later = NOW + timedelta(hours=13)
    assert keep_fresh(directory, KEYS, later)
    timestamp = directory.timestamp()
    assert timestamp is not None
    assert timestamp.expires == later + timedelta(days=1)
    assert timestamp.unrecognized_fields[ISSUED] == int(later.timestamp())


def test_an_empty_directory_has_nothing_to_refresh(tmp_path: Path) -> None:
    directory = MetadataDirectory(tmp_path / "none")
    assert not keep_fresh(directory, KEYS, NOW)
    assert directory.current() == {}


def test_old_snapshots_go_and_neighbours_stay(tmp_path: Path) -> None:
    directory = repository(tmp_path)
    directory.write("1.line-snapshot.json", targets())
    for day in range(9):
        seal(directory, {"targets": targets()}, KEYS, NOW + timedelta(days=day))
    assert len(directory.versions("snapshot")) == 5
    assert directory.versions("line-snapshot") == [1]
    assert directory.versions("targets") == [1]
    assert directory.current().keys() == {"targets"}


def test_a_write_replaces_the_whole_file_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old", 0o600)
    assert path.stat().st_mode & 0o777 == 0o600

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_blob_appears_only_if_it_is_what_it_is_called(tmp_path: Path) -> None:
    good = hashlib.sha256(b"hello").hexdigest()
    with BlobSink(tmp_path / good, good) as sink:
        sink.write(b"hel")
        assert not (tmp_path / good).exists()
        sink.write(b"lo")
    assert (tmp_path / good).read_bytes() == b"hello"
    with pytest.raises(IntegrityError) as caught, BlobSink(tmp_path / "b", "0" * 64) as sink:
        sink.write(b"hello")
    assert caught.value.reason == "digest_mismatch"
    with pytest.raises(IntegrityError) as caught, BlobSink(tmp_path / "c", good, 4) as sink:
        sink.write(b"hello")
    assert caught.value.reason == "too_long"
    assert names(tmp_path) == [good]


def test_what_a_power_cut_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".part-abc").write_bytes(b"half")
    (tmp_path / "whole").write_bytes(b"whole")
    sweep(tmp_path)
    assert names(tmp_path) == ["whole"]


def test_metadata_is_what_other_tuf_tools_read() -> None:
    document = json.loads(targets())
    assert document["signed"]["_type"] == "targets"
    assert document["signatures"][0]["keyid"] == SIGNER.public_key.keyid
    assert SIGNER.public_key.scheme == "ecdsa-sha2-nistp256"


def test_a_file_system_without_modes_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FAT stick refuses modes it cannot keep."""

    def refuse(handle: int, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    write_file(tmp_path / "a", b"content")
    with BlobSink(tmp_path / "b", hashlib.sha256(b"x").hexdigest()) as sink:
        sink.write(b"x")
    assert [path.read_bytes() for path in (tmp_path / "a", tmp_path / "b")] == [b"content", b"x"]
