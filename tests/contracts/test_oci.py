"""The image's documents: read back only in their one form, whatever else is thrown at them."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bundles
from edgepack import canonical, chunks, oci
from edgepack.bundle import open_bundle
from edgepack.errors import IntegrityError
from fuzz import almost, json_values, refusal

LAYERS = tuple(
    oci.file_layer(path, hashlib.sha256(path.encode()).hexdigest(), len(path))
    for path in ("model/m.xml", "manifest.json", "model.sig", "golden/i.npz", "chunks.json")
)
CONFIG = oci.config_layer(b"{}")
IMAGE = oci.write_oci_manifest(CONFIG, LAYERS)
INDEX = oci.write_index(IMAGE)
CHUNK_LIST = chunks.write_chunks({"a" * 64: ("b" * 64, "c" * 64)})


def test_what_is_written_is_read() -> None:
    image = oci.read_oci_manifest(IMAGE)
    assert image.config == CONFIG
    assert [layer.path for layer in image.layers] == [
        "manifest.json", "chunks.json", "golden/i.npz", "model/m.xml", "model.sig",
    ]  # fmt: skip
    assert set(image.layers) == set(LAYERS)
    assert oci.read_index(INDEX) == (hashlib.sha256(IMAGE).hexdigest(), len(IMAGE))


def test_the_signature_covers_every_file_but_itself() -> None:
    image = oci.read_oci_manifest(IMAGE)
    assert set(image.digests()) == {layer.path for layer in LAYERS} - {"model.sig"}


def test_blobs_are_the_config_and_every_layer() -> None:
    blobs = oci.read_oci_manifest(IMAGE).blobs()
    assert blobs == {part.sha256: part.size for part in (CONFIG, *LAYERS)}


def test_it_is_an_oci_image_of_model_pack_type(tmp_path: Path) -> None:
    with open_bundle(bundles.write(tmp_path).path) as bundle:
        image = json.loads(bundle.oci_manifest)
        with bundle.open_blob(image["config"]["digest"][7:]) as blob:
            config = json.loads(blob.read())
    assert image["schemaVersion"] == 2
    assert image["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert image["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert image["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    types = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"]
        for layer in image["layers"]
    }
    assert types["model/model.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert all(t.startswith("application/vnd.cncf.model.") for t in types.values())
    assert all(t.endswith(".v1.raw") for t in types.values())
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in image["layers"]]
    assert config["descriptor"]["version"] == "1.0.0"


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("model/a.bin", "model"), ("golden/x.npz", "golden"), ("labels.txt", "labels"),
        ("assets/t.json", "asset"), ("chunks.json", "chunks"), ("docs/card.md", "doc"),
        ("manifest.json", None), ("model.sig", None), ("labels.txt/x", None), ("modelx", None),
    ],
)  # fmt: skip
def test_a_files_place_says_its_role(path: str, role: str | None) -> None:
    assert oci.role_of(path) == role


def test_one_digest_has_one_size() -> None:
    twin = oci.file_layer("model/twin", LAYERS[0].sha256, LAYERS[0].size)
    oci.read_oci_manifest(oci.write_oci_manifest(CONFIG, (*LAYERS, twin)))
    liar = oci.file_layer("model/twin", LAYERS[0].sha256, LAYERS[0].size + 1)
    with pytest.raises(IntegrityError, match="image manifest"):
        oci.read_oci_manifest(oci.write_oci_manifest(CONFIG, (*LAYERS, liar)))


@pytest.mark.parametrize("size", [-1, 2**32, 2**70])
def test_sizes_stay_in_their_bounds(size: int) -> None:
    layer = oci.file_layer("model/large", "d" * 64, size)
    assert refusal(oci.read_oci_manifest, oci.write_oci_manifest(CONFIG, (*LAYERS, layer)))


def test_more_layers_than_anyone_needs_are_refused() -> None:
    many = [oci.file_layer(f"model/{n}", f"{n:064x}", 1) for n in range(5000)]
    image = oci.write_oci_manifest(CONFIG, (*LAYERS, *many))
    assert refusal(oci.read_oci_manifest, image) == "bad_image"


@pytest.mark.parametrize("read", [oci.read_oci_manifest, oci.read_index, chunks.read_chunks])
def test_a_document_larger_than_its_limit_is_refused(read: type[object]) -> None:
    assert refusal(read, b"[" + b"0," * oci.MAX_DOCUMENT + b"0]") in {"bad_image", "bad_chunks"}


@given(almost(json.loads(IMAGE)).map(canonical.dumps))
def test_almost_an_image_manifest_is_rebuilt_or_refused(data: bytes) -> None:
    if refusal(oci.read_oci_manifest, data) is None:
        image = oci.read_oci_manifest(data)
        assert oci.write_oci_manifest(image.config, image.layers) == data


@given(almost(json.loads(INDEX)).map(canonical.dumps))
def test_almost_an_index_is_refused(data: bytes) -> None:
    reason = refusal(oci.read_index, data)
    document, right = json.loads(data), json.loads(INDEX)
    assert reason or [*document["manifests"][0]] == [*right["manifests"][0]]


@given(almost(json.loads(CHUNK_LIST)).map(canonical.dumps))
def test_almost_a_chunk_list_is_read_or_refused(data: bytes) -> None:
    if refusal(chunks.read_chunks, data) is None:
        assert chunks.write_chunks(chunks.read_chunks(data)) == data


@given(json_values.map(canonical.dumps) | st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    for read in (oci.read_oci_manifest, oci.read_index, chunks.read_chunks):
        assert refusal(read, data)


def test_a_chunk_list_is_read_back() -> None:
    assert chunks.read_chunks(CHUNK_LIST) == {"a" * 64: ("b" * 64, "c" * 64)}
