"""The manifest: what is written is read, nothing unknown gets in, the schema is published."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bundles
from edgepack import canonical
from edgepack.errors import IntegrityError
from edgepack.manifest import (
    FileEntry,
    Preprocess,
    Target,
    json_schema,
    read_manifest,
    write_manifest,
)
from fuzz import almost, json_values, refusal

PUBLISHED = Path(__file__).parents[2] / "docs/reference/manifest.schema.json"
MANIFEST = bundles.manifest(
    files=(FileEntry(path="model/model.onnx", role="model", size=3, sha256="a" * 64),),
    preprocess=Preprocess(input="image", mean=(0.1, 0.2, 0.3)),
    drift={"edges": [0.0, 1.5], "counts": [1, 2, 3]},
)
DOCUMENT = json.loads(write_manifest(MANIFEST))


def test_what_is_written_is_read() -> None:
    assert read_manifest(write_manifest(MANIFEST)) == MANIFEST


def test_the_published_schema_is_the_one_in_the_code() -> None:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(json_schema()))
    assert published == now, f"write json_schema() to {PUBLISHED.name} again"


def test_the_schema_is_one_and_accepts_what_is_written() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(DOCUMENT, json_schema())


@given(almost(DOCUMENT))
def test_almost_a_manifest_is_read_or_refused(document: Any) -> None:
    reason = refusal(read_manifest, canonical.dumps(document))
    assert reason in {None, "bad_manifest", "not_canonical"}
    if reason is None:
        jsonschema.validate(document, json_schema())


@given(json_values.map(canonical.dumps) | st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "edgepack.bundle/v2"), ("name", "Digits"), ("name", "a\n"), ("name", "-a"),
        ("name", "../a"), ("name", "a" * 65), ("version", "1.0"), ("version", "01.0.0"),
        ("version", "1.0.0\n"), ("version", "\u0661.0.0"), ("task", "guess"), ("inputs", []),
        ("outputs", []), ("files", []), ("security_epoch", -1), ("security_epoch", 1.5),
        ("security_epoch", True), ("unknown", 1), ("labels", "0123"), ("golden", None),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_manifest(canonical.dumps(DOCUMENT | {field: value}))
    assert caught.value.reason == "bad_manifest"


@pytest.mark.parametrize("field", ["name", "version", "build_id", "target", "golden", "files"])
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(canonical.dumps({k: v for k, v in DOCUMENT.items() if k != field}))


@pytest.mark.parametrize(
    ("runtime", "arch", "name"),
    [
        ("onnx", (), "digits-1.0.0-onnx-int8.edgepack"),
        ("tflite", ("aarch64",), "digits-1.0.0-tflite-int8-aarch64.edgepack"),
    ],
)
def test_the_file_name_tells_the_variants_apart(
    runtime: Any, arch: tuple[str, ...], name: str
) -> None:
    target = Target(
        runtime=runtime, min_runtime="1.0", precision="int8", execution_precision="f32", arch=arch
    )
    manifest = msgspec.structs.replace(MANIFEST, target=target)
    assert manifest.file_name == name
    assert manifest.release == "digits@1.0.0"
