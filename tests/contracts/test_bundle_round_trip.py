"""What is written is read back, the same bytes everywhere, in a form that other tools open."""

import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bundles
from edgepack.bundle import open_bundle, write_bundle
from edgepack.chunks import CHUNK_SIZE, read_chunks
from edgepack.container import ALIGN_FROM, ALIGNMENT
from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack.oci import read_oci_manifest
from edgepack.tree import check_tree


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    info = bundles.write(tmp_path)
    files = bundles.sources(tmp_path / "sources")
    with open_bundle(info.path) as bundle:
        bundle.verify(bundles.KEY.public_key())
        assert bundle.manifest == info.manifest
        assert bundle.digest == info.digest
        assert bundle.size_bytes == info.size_bytes == info.path.stat().st_size
        assert bundle.model_bytes == info.model_bytes == 64 * 1024 + 1
        assert {path: bundle.read(path) for path in files} == {
            path: source.read_bytes() for path, source in files.items()
        }
    assert info.path.name == "digits-1.0.0-onnx-int8.edgepack"
    assert [entry.path for entry in info.manifest.files] == sorted([*files, "chunks.json"])


def test_the_digest_is_that_of_the_image_manifest(tmp_path: Path) -> None:
    info = bundles.write(tmp_path)
    with zipfile.ZipFile(info.path) as archive:
        index = json.loads(archive.read("index.json"))
        image = archive.read(f"blobs/sha256/{info.digest[7:]}")
    assert index["manifests"][0]["digest"] == info.digest
    assert hashlib.sha256(image).hexdigest() == info.digest[7:]


def test_every_blob_can_be_published_by_its_digest(tmp_path: Path) -> None:
    with open_bundle(bundles.write(tmp_path, model_bytes=3 * CHUNK_SIZE + 5).path) as bundle:
        for sha256, size in bundle.blobs().items():
            with bundle.open_blob(sha256) as blob:
                content = blob.read()
                assert hashlib.sha256(content).hexdigest() == sha256
                assert blob.seek(0, os.SEEK_END) == size == len(content)
                assert blob.read() == b""
                blob.seek(size // 2)
                assert blob.read(10) == content[size // 2 :][:10]
        assert next(iter(bundle.blobs())) == bundle.digest[7:]


def test_a_device_can_put_the_bundle_together_from_its_blobs(tmp_path: Path) -> None:
    with open_bundle(bundles.write(tmp_path).path) as bundle:
        image = read_oci_manifest(bundle.oci_manifest)
        for layer in image.layers:
            target = tmp_path / "slot" / layer.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open_blob(layer.sha256) as blob:
                target.write_bytes(blob.read())
        bundle.extract(tmp_path / "extracted")
        manifest = check_tree(image, (tmp_path / "slot/manifest.json").read_bytes())
        assert manifest == bundle.manifest
    assert _tree(tmp_path / "slot") == _tree(tmp_path / "extracted")


def test_the_same_input_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import bundles, sys; from pathlib import Path;"
        "print(bundles.write(Path(sys.argv[1]), model_bytes=1_300_000).path)"
    )
    written = []
    for number, epoch in enumerate(("0", "1700000000")):
        environment = os.environ | {
            "PYTHONHASHSEED": str(number),
            "SOURCE_DATE_EPOCH": epoch,
            "PYTHONPATH": str(Path(bundles.__file__).parent),
            "TZ": "Asia/Tokyo" if number else "UTC",
        }
        command = [sys.executable, "-c", script, str(tmp_path / str(number))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        written.append(Path(done.stdout.strip()).read_bytes())
    assert written[0] == written[1]


@pytest.mark.skipif(not shutil.which("unzip"), reason="unzip is not installed")
def test_unzip_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    info = bundles.write(tmp_path, model_bytes=200_000)
    done = subprocess.run(["unzip", "-t", info.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "No errors detected" in done.stdout
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_python_opens_it_as_an_ordinary_zip(tmp_path: Path) -> None:
    info = bundles.write(tmp_path)
    with zipfile.ZipFile(info.path) as archive:
        assert archive.testzip() is None
        assert archive.read("oci-layout") == b'{"imageLayoutVersion":"1.0.0"}'
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("size", [ALIGN_FROM - 1, ALIGN_FROM, ALIGN_FROM + 1, 1_000_003])
def test_large_blobs_can_be_mapped_in_place(tmp_path: Path, size: int) -> None:
    info = bundles.write(tmp_path, model_bytes=size)
    model = (tmp_path / "sources/model-model.onnx").read_bytes()
    start = info.path.read_bytes().index(model)
    assert (start % ALIGNMENT == 0) == (size >= ALIGN_FROM)
    if size >= ALIGN_FROM:
        with info.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start)
            assert mapped[:] == model
            mapped.close()


@given(path_length=st.integers(0, 150), size=st.integers(0, 140_000))
@settings(max_examples=25, deadline=None)
def test_alignment_holds_whatever_stands_before(
    tmp_path_factory: pytest.TempPathFactory, path_length: int, size: int
) -> None:
    directory = tmp_path_factory.mktemp("aligned")
    files = bundles.sources(directory / "sources")
    extra = directory / "asset"
    extra.write_bytes(b"\1" * size)
    info = write_bundle(
        directory, bundles.manifest(), files | {f"assets/a{'b' * path_length}": extra}
    )
    content = info.path.read_bytes()
    assert content.index(files["model/model.onnx"].read_bytes()) % ALIGNMENT == 0
    assert size < ALIGN_FROM or content.index(b"\1" * size) % ALIGNMENT == 0
    open_bundle(info.path).close()


def test_the_chunk_list_covers_what_is_larger_than_a_chunk(tmp_path: Path) -> None:
    info = bundles.write(tmp_path, model_bytes=2 * CHUNK_SIZE + 1)
    with open_bundle(info.path) as bundle:
        chunks = read_chunks(bundle.read("chunks.json"))
        model = bundle.read("model/model.onnx")
    pieces = [model[at : at + CHUNK_SIZE] for at in range(0, len(model), CHUNK_SIZE)]
    assert chunks == {
        hashlib.sha256(model).hexdigest(): tuple(hashlib.sha256(p).hexdigest() for p in pieces)
    }


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE])
def test_a_file_of_one_chunk_needs_no_chunk_list(tmp_path: Path, size: int) -> None:
    with open_bundle(bundles.write(tmp_path, model_bytes=size).path) as bundle:
        assert read_chunks(bundle.read("chunks.json")) == {}


def test_a_manifest_larger_than_a_chunk_is_not_in_the_chunk_list(tmp_path: Path) -> None:
    info = bundles.write(tmp_path, labels=tuple(f"label {n}" for n in range(100_000)))
    with open_bundle(info.path) as bundle:
        assert len(bundle.manifest_bytes) > CHUNK_SIZE
        assert read_chunks(bundle.read("chunks.json")) == {}
        bundle.verify(bundles.KEY.public_key())


def test_equal_files_are_stored_once(tmp_path: Path) -> None:
    files = bundles.sources(tmp_path / "sources")
    files["model/copy.onnx"] = files["model/model.onnx"]
    info = write_bundle(tmp_path, bundles.manifest(), files, key=bundles.KEY)
    assert info.model_bytes == 2 * (64 * 1024 + 1)
    assert info.size_bytes < info.model_bytes
    with open_bundle(info.path) as bundle:
        bundle.verify(bundles.KEY.public_key())
        assert bundle.read("model/copy.onnx") == bundle.read("model/model.onnx")


def test_a_large_model_is_not_held_in_memory(tmp_path: Path) -> None:
    files = bundles.sources(tmp_path / "sources")
    os.truncate(files["model/model.onnx"], 48 * CHUNK_SIZE)
    tracemalloc.start()
    try:
        info = write_bundle(tmp_path, bundles.manifest(), files, key=bundles.KEY)
        with open_bundle(info.path) as bundle:
            bundle.verify(bundles.KEY.public_key())
            bundle.extract(tmp_path / "tree")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * CHUNK_SIZE


def test_more_than_four_gib_is_refused_before_reading_it(tmp_path: Path) -> None:
    files = bundles.sources(tmp_path / "sources")
    os.truncate(files["model/model.onnx"], 2**32)
    with pytest.raises(UnsupportedError, match="4 GiB") as caught:
        write_bundle(tmp_path / "dist", bundles.manifest(), files)
    assert caught.value.exit_code == 5
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../up", "model/../../up", "model/.git/config", ".gitattributes", "model//m",
        "model", "model/", "model\\m", "elsewhere/m", "manifest.json", "model.sig", "chunks.json",
        "model/a\n", "model/\u0430", "model/a b", "model/" + "m" * 200,
    ],
)  # fmt: skip
def test_the_writer_refuses_a_path_that_bundles_do_not_have(tmp_path: Path, path: str) -> None:
    files = bundles.sources(tmp_path / "sources")
    files[path] = files["model/model.onnx"]
    with pytest.raises(UsageError):
        write_bundle(tmp_path / "dist", bundles.manifest(), files)
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").iterdir())


def test_the_writer_refuses_a_missing_file(tmp_path: Path) -> None:
    files = bundles.sources(tmp_path / "sources") | {"model/b": tmp_path / "missing"}
    with pytest.raises(UsageError, match="there is no file"):
        write_bundle(tmp_path / "dist", bundles.manifest(), files)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "Not A Name"), ("version", "1.0"), ("inputs", ())]
)
def test_the_writer_refuses_a_description_that_is_not_valid(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(UsageError) as caught:
        bundles.write(tmp_path, **{field: value})
    assert caught.value.reason == "bad_manifest"


def test_a_failed_write_leaves_the_older_bundle_alone(tmp_path: Path) -> None:
    before = bundles.write(tmp_path).path.read_bytes()
    files = bundles.sources(tmp_path / "sources", model_bytes=10)
    del files["golden/inputs.npz"]
    with pytest.raises(IntegrityError):
        write_bundle(tmp_path / "dist", bundles.manifest(), files)
    left = list((tmp_path / "dist").iterdir())
    assert [file.read_bytes() for file in left] == [before]


def test_a_directory_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("a file is in the way")
    with pytest.raises(UsageError, match="cannot write"):
        bundles.write(tmp_path)


def test_extracting_does_not_overwrite(tmp_path: Path) -> None:
    with open_bundle(bundles.write(tmp_path).path) as bundle:
        bundle.extract(tmp_path / "tree")
        with pytest.raises(UsageError, match="cannot write"):
            bundle.extract(tmp_path / "tree")


def test_a_change_after_opening_is_noticed(tmp_path: Path) -> None:
    info = bundles.write(tmp_path)
    with open_bundle(info.path) as bundle:
        with info.path.open("r+b") as file:
            file.seek(info.size_bytes - 40_000)
            file.write(b"\0" * 8)
        with pytest.raises(IntegrityError):
            bundle.read("model/model.onnx")


def test_unknown_files_and_blobs_are_usage_errors(tmp_path: Path) -> None:
    with open_bundle(bundles.write(tmp_path).path) as bundle:
        with pytest.raises(UsageError, match="no file nothing"):
            bundle.read("nothing")
        with pytest.raises(UsageError, match="no blob"):
            bundle.open_blob("0" * 64)


@pytest.mark.parametrize("name", ["missing.edgepack", "."])
def test_a_bundle_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot read the bundle"):
        open_bundle(tmp_path / name)


def _tree(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
