"""No byte of a signed bundle is free: whatever is changed, cut or added, opening it says so."""

import dataclasses
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bundles
from edgepack import canonical, oci, oms, tree
from edgepack.archive import Content, measure
from edgepack.bundle import BundleInfo, open_bundle
from edgepack.container import ContainerWriter
from edgepack.errors import IntegrityError
from edgepack.manifest import write_manifest

PUBLIC = bundles.KEY.public_key()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    """Return a small signed bundle whose model is just large enough to be aligned."""
    return bundles.write(tmp_path_factory.mktemp("signed"))


@pytest.fixture
def copy(signed: BundleInfo, tmp_path: Path) -> Path:
    path = tmp_path / "copy.edgepack"
    path.write_bytes(signed.path.read_bytes())
    return path


def verify(path: Path) -> None:
    with open_bundle(path) as bundle:
        bundle.verify(PUBLIC)


def refused(path: Path) -> bool:
    try:
        verify(path)
    except IntegrityError as error:
        return error.exit_code == 3
    return False


def model_region(signed: BundleInfo) -> range:
    model = (signed.path.parents[1] / "sources/model-model.onnx").read_bytes()
    start = signed.path.read_bytes().index(model)
    return range(start, start + len(model))


def flips_not_refused(path: Path, offsets: list[int]) -> list[int]:
    """Return the OFFSETS at which one flipped bit goes unnoticed."""
    content = path.read_bytes()
    unnoticed = []
    with path.open("r+b", buffering=0) as file:
        for at in offsets:
            file.seek(at)
            file.write(bytes([content[at] ^ (1 << at % 8)]))
            if not refused(path):
                unnoticed.append(at)
            file.seek(at)
            file.write(content[at : at + 1])
    assert path.read_bytes() == content
    return unnoticed


def test_every_header_padding_and_metadata_byte_counts(signed: BundleInfo, copy: Path) -> None:
    verify(copy)
    payload = model_region(signed)
    offsets = [at for at in range(signed.size_bytes) if at not in payload]
    assert len(offsets) > 8000, "the bundle has padding and metadata to flip"
    assert flips_not_refused(copy, offsets) == []
    verify(copy)


def test_a_thousand_payload_bytes_count(signed: BundleInfo, copy: Path) -> None:
    payload = model_region(signed)
    offsets = [payload[0], payload[-1], *random.Random(7).sample(payload, 1000)]
    assert flips_not_refused(copy, offsets) == []


def test_it_cannot_be_cut_anywhere(signed: BundleInfo, copy: Path) -> None:
    size = signed.size_bytes
    lengths = {*range(200), *range(size - 1200, size), *random.Random(8).sample(range(size), 500)}
    for length in sorted(lengths, reverse=True):
        with copy.open("r+b") as file:
            file.truncate(length)
        assert refused(copy), f"cut at byte {length}"


def test_nothing_can_be_put_in_or_taken_out(signed: BundleInfo, copy: Path) -> None:
    content = signed.path.read_bytes()
    seeded = random.Random(9)
    for at in [0, len(content), *seeded.sample(range(len(content)), 300)]:
        for added in (b"\0", seeded.randbytes(22), content[-22:]):
            copy.write_bytes(content[:at] + added + content[at:])
            assert refused(copy), f"{len(added)} bytes put in at {at}"
        if at < len(content):
            copy.write_bytes(content[:at] + content[at + 1 :])
            assert refused(copy), f"byte {at} taken out"
    copy.write_bytes(content + content)
    assert refused(copy)


edits = st.lists(
    st.tuples(st.integers(0, 2**17), st.integers(0, 60), st.binary(max_size=60)), min_size=1
)


@given(st.binary(max_size=500) | edits)
def test_any_other_file_is_refused(
    signed: BundleInfo, tmp_path_factory: pytest.TempPathFactory, change: bytes | list[Any]
) -> None:
    right = signed.path.read_bytes()
    content = right if isinstance(change, list) else change
    for at, removed, added in change if isinstance(change, list) else []:
        content = content[:at] + added + content[at + removed :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.edgepack"
    path.write_bytes(content)
    assert refused(path) or content == right


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + bytes(26), b"\0" * 5000])
def test_what_is_no_bundle_is_an_integrity_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.edgepack").write_bytes(content)
    with pytest.raises(IntegrityError):
        open_bundle(tmp_path / "b.edgepack")


def rezip(source: Path, change: Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], None]) -> None:
    """Write the same members again with Python's zipfile, as CHANGE would have it."""
    with zipfile.ZipFile(source) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        change(archive, members)
    source.write_bytes(target.getvalue())


def plain(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
    for name, content in members:
        archive.writestr(zipfile.ZipInfo(name), content)


def deflated(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
    for name, content in members:
        archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def doubled(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
    plain(archive, members)
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(zipfile.ZipInfo(members[-1][0]), b"another content of the same name")


def with_extra(name: str) -> Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], None]:
    def change(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
        plain(archive, [*members, (name, b"unlisted")])

    return change


def with_link(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
    plain(archive, members)
    link = zipfile.ZipInfo("blobs/link")
    link.external_attr = 0o120777 << 16
    archive.writestr(link, b"/etc/passwd")


def with_comment(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
    plain(archive, members)
    archive.comment = b"free to choose"


@pytest.mark.parametrize(
    "change",
    [
        plain, deflated, doubled, with_link, with_comment,
        *map(with_extra, ["../../etc/cron.d/x", "/etc/x", ".git/config", "blobs/", "model.bin"]),
    ],
)  # fmt: skip
def test_another_zip_of_the_same_content_is_refused(
    copy: Path, change: Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], None]
) -> None:
    rezip(copy, change)
    with pytest.raises(IntegrityError) as caught:
        verify(copy)
    assert caught.value.reason == "bad_container"


class Forger:
    """Writes bundles whose container and digests are right and whose content is not."""

    def __init__(self, source: Path, target: Path) -> None:
        self.target = target
        with open_bundle(source) as bundle:
            self.manifest = bundle.manifest
            self.files = {path: bundle.read(path) for path in bundle.paths()}

    def write(
        self,
        change_image: Callable[[dict[str, Any]], None] | None = None,
        config: bytes | None = None,
        change_members: Callable[[dict[str, Content]], None] | None = None,
    ) -> Path:
        """Write `files` as they stand, but for what the two functions change on the way."""
        contents = {path: measure(data) for path, data in self.files.items()}
        layers = [oci.file_layer(path, c.sha256, c.size) for path, c in contents.items()]
        config = config or oci.write_config(self.manifest, oci.in_order(layers))
        image = json.loads(oci.write_oci_manifest(oci.config_layer(config), layers))
        if change_image:
            change_image(image)
        blobs = {content.sha256: content for content in (measure(config), *contents.values())}
        parts = (image["config"], *image["layers"])
        named = {part["digest"][7:]: blobs[part["digest"][7:]] for part in parts}
        members = _members(canonical.dumps(image), named)
        if change_members:
            change_members(members)
        with self.target.open("wb") as file:
            writer = ContainerWriter(file)
            for name, content in members.items():
                writer.add(name, content.size, content.crc, content.pieces())
            writer.finish()
        return self.target

    def say(self, **fields: Any) -> None:
        """Change the manifest, and all that follows from it but the signature."""
        self.manifest = msgspec.structs.replace(self.manifest, **fields)
        self.manifest = msgspec.structs.replace(
            self.manifest, build_id=tree.build_id(self.manifest)
        )
        self.files["manifest.json"] = write_manifest(self.manifest)

    def resign(self) -> None:
        """Sign with the right key what the files hold now."""
        digests = {
            path: hashlib.sha256(data).hexdigest()
            for path, data in self.files.items()
            if path != "model.sig"
        }
        self.files["model.sig"] = oms.sign_files(digests, bundles.KEY)


def _members(image: bytes, blobs: dict[str, Content]) -> dict[str, Content]:
    own = hashlib.sha256(image).hexdigest()
    members = {"oci-layout": measure(oci.LAYOUT), "index.json": measure(oci.write_index(image))}
    members |= {f"blobs/sha256/{own}": measure(image)}
    return members | {f"blobs/sha256/{sha256}": content for sha256, content in blobs.items()}


@pytest.fixture
def forger(signed: BundleInfo, tmp_path: Path) -> Forger:
    return Forger(signed.path, tmp_path / "forged.edgepack")


def reason(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify(path)
    return caught.value.reason


def test_the_forger_can_write_what_is_right(forger: Forger, signed: BundleInfo) -> None:
    assert forger.write().read_bytes() == signed.path.read_bytes()


def test_another_model_of_the_same_name_breaks_the_manifest(forger: Forger) -> None:
    forger.files["model/model.onnx"] = b"evil" * 20_000
    assert reason(forger.write()) == "bad_tree"


def test_a_consistent_forgery_breaks_only_the_signature(forger: Forger) -> None:
    forger.say(security_epoch=99)
    path = forger.write()
    open_bundle(path).close()
    assert reason(path) == "digest_mismatch"


def test_a_wrong_build_id_is_refused(forger: Forger) -> None:
    forger.manifest = msgspec.structs.replace(forger.manifest, build_id="0" * 16)
    forger.files["manifest.json"] = write_manifest(forger.manifest)
    forger.resign()
    assert reason(forger.write()) == "bad_tree"


def test_a_wrong_config_is_refused(forger: Forger) -> None:
    assert reason(forger.write(config=b"{}")) == "bad_tree"


def test_a_wrong_chunk_list_is_refused_even_when_signed(signed: BundleInfo, forger: Forger) -> None:
    old = forger.files["chunks.json"]
    forger.files["chunks.json"] = old.replace(b"{}", b'{"%s":["%s"]}' % (b"0" * 64, b"1" * 64))
    entries = [
        msgspec.structs.replace(
            entry,
            size=len(forger.files[entry.path]),
            sha256=hashlib.sha256(forger.files[entry.path]).hexdigest(),
        )
        for entry in forger.manifest.files
    ]
    forger.say(files=tuple(entries))
    forger.resign()
    assert reason(forger.write()) == "bad_chunks"


def test_a_file_the_manifest_does_not_list_is_refused(forger: Forger) -> None:
    forger.files["docs/extra.md"] = b"unlisted"
    forger.resign()
    assert reason(forger.write()) == "bad_tree"


def test_a_missing_file_is_refused(forger: Forger) -> None:
    del forger.files["labels.txt"]
    forger.resign()
    assert reason(forger.write()) == "bad_tree"


def test_a_file_with_another_role_is_refused(forger: Forger) -> None:
    swapped = [msgspec.structs.replace(entry, role="doc") for entry in forger.manifest.files]
    forger.say(files=tuple(swapped))
    forger.resign()
    assert reason(forger.write()) == "bad_tree"


def test_golden_vectors_must_be_there(forger: Forger) -> None:
    golden = msgspec.structs.replace(forger.manifest.golden, inputs="golden/other.npz")
    forger.say(golden=golden)
    forger.resign()
    assert reason(forger.write()) == "bad_tree"


def test_a_manifest_in_another_spelling_is_refused(forger: Forger) -> None:
    forger.files["manifest.json"] = forger.files["manifest.json"].replace(b'":', b'": ', 1)
    forger.resign()
    assert reason(forger.write()) == "not_canonical"


def test_an_unsigned_bundle_opens_but_does_not_verify(forger: Forger) -> None:
    del forger.files["model.sig"]
    path = forger.write()
    with open_bundle(path) as bundle:
        assert not bundle.signed
        assert bundle.signer is None
    assert reason(path) == "unsigned"


def test_another_key_is_named_as_such(signed: BundleInfo) -> None:
    with open_bundle(signed.path) as bundle, pytest.raises(IntegrityError) as caught:
        bundle.verify(bundles.OTHER_KEY.public_key())
    assert caught.value.reason == "wrong_key"


def test_another_bundles_signature_is_refused(forger: Forger, tmp_path: Path) -> None:
    other = bundles.write(tmp_path / "other", version="2.0.0")
    with open_bundle(other.path) as bundle:
        forger.files["model.sig"] = bundle.read("model.sig")
    assert reason(forger.write()) == "digest_mismatch"


def test_no_byte_of_the_signature_is_free_in_a_rebuilt_bundle(
    signed: BundleInfo, forger: Forger
) -> None:
    signature = forger.files["model.sig"]
    for at in random.Random(3).sample(range(len(signature)), 150):
        changed = bytearray(signature)
        changed[at] ^= 1 << at % 8
        forger.files["model.sig"] = bytes(changed)
        assert refused(forger.write()), f"byte {at} of model.sig"


@cache
def oversized() -> bytes:
    return b"[" + b"0," * (2 * 1024 * 1024) + b"0]"


@pytest.mark.parametrize("path", ["manifest.json", "model.sig"])
def test_documents_larger_than_their_limit_are_not_read(forger: Forger, path: str) -> None:
    forger.files[path] = oversized()
    assert reason(forger.write()) == "too_large"


MEMBERS = ("oci-layout", "index.json", "image manifest", "config", "layer", "last layer")


@pytest.mark.parametrize("member", range(len(MEMBERS)), ids=MEMBERS)
def test_a_member_with_another_content_of_the_same_size_is_refused(
    forger: Forger, member: int
) -> None:
    def swap(members: dict[str, Content]) -> None:
        name = [*members][member if member < 5 else -1]
        content = b"".join(members[name].pieces())
        members[name] = measure(content[::-1])

    expected = {0: "bad_image", 1: "bad_json"}.get(member, "digest_mismatch")
    assert reason(forger.write(change_members=swap)) == expected


@pytest.mark.parametrize("member", range(len(MEMBERS)), ids=MEMBERS)
def test_a_wrong_checksum_is_refused(forger: Forger, member: int) -> None:
    def miscount(members: dict[str, Content]) -> None:
        name = [*members][member if member < 5 else -1]
        members[name] = dataclasses.replace(members[name], crc=members[name].crc ^ 1)

    assert reason(forger.write(change_members=miscount)) == "bad_container"


FILE_PATH = "org.cncf.model.filepath"


def place(layer: dict[str, Any]) -> tuple[int, str]:
    """Return where LAYER stands in a well-formed image."""
    path = layer["annotations"][FILE_PATH]
    return {"manifest.json": 0, "model.sig": 2}.get(path, 1), path


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd", "/etc/passwd", "model/../../x", ".git/hooks/x", "model/.gitmodules",
        "model//x", "model/", "model", "", ".", "C:\\x", "model/x\n", "model/\u0430", "other/x",
        "golden/inputs.npz", "GOLDEN/inputs.npz", "golden/INPUTS.npz", "golden/inputs.npz/x",
        "manifest.json", "model.sig", "chunks.json",
    ],
)  # fmt: skip
def test_an_image_with_a_path_that_bundles_do_not_have_is_refused(
    forger: Forger, path: str
) -> None:
    def rename(image: dict[str, Any]) -> None:
        layers = {layer["annotations"][FILE_PATH]: layer for layer in image["layers"]}
        model = layers["model/model.onnx"]
        model["annotations"][FILE_PATH] = path
        model["mediaType"] = oci.file_layer(path, "", 0).media_type
        image["layers"].sort(key=place)

    assert reason(forger.write(rename)) == "bad_image"


def reorder(image: dict[str, Any]) -> None:
    image["layers"].reverse()


def repeat(image: dict[str, Any]) -> None:
    image["layers"].append(image["layers"][-1])


def drop_manifest(image: dict[str, Any]) -> None:
    del image["layers"][0]


def annotate(image: dict[str, Any]) -> None:
    image["annotations"] = {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"}


def retype(image: dict[str, Any]) -> None:
    image["layers"][0]["mediaType"] = "application/octet-stream"


def resize(image: dict[str, Any]) -> None:
    image["layers"][1]["size"] = True


def link(image: dict[str, Any]) -> None:
    image["layers"][1]["urls"] = ["https://example.org/blob"]


@pytest.mark.parametrize("change", [reorder, repeat, drop_manifest, annotate, retype, resize, link])
def test_an_image_has_one_form(forger: Forger, change: Callable[[dict[str, Any]], None]) -> None:
    assert reason(forger.write(change)) == "bad_image"


def test_a_device_refuses_the_manifest_of_another_bundle(
    signed: BundleInfo, tmp_path: Path
) -> None:
    other = bundles.write(tmp_path, version="2.0.0")
    with open_bundle(signed.path) as bundle, open_bundle(other.path) as another:
        assert tree.check_tree(bundle.image, bundle.manifest_bytes) == bundle.manifest
        with pytest.raises(IntegrityError) as caught:
            tree.check_tree(bundle.image, another.manifest_bytes)
    assert "not the one the image names" in caught.value.why


def test_a_layer_that_claims_another_size_is_refused(forger: Forger) -> None:
    def grow(image: dict[str, Any]) -> None:
        image["layers"][-1]["size"] = 2**31

    assert reason(forger.write(grow)) == "bad_container"
