"""Provenance, ML-BOM and model card, held against the official schemas."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2

import bundles
from edgepack import canonical
from edgepack.bundle import write_bundle
from edgepack.cli import root, run_command
from edgepack.manifest import Calibration, FileEntry, Manifest, Metrics, Provenance
from edgepack.oci import MLBOM, PROVENANCE, README
from edgepack_packager.core.card_page import card_page
from edgepack_packager.core.compression import Distil, PruneMagnitude
from edgepack_packager.core.mlbom import mlbom
from edgepack_packager.core.provenance import provenance
from edgepack_packager.core.recipe import ModelCard, Recipe, Variant

DATA = "d" * 64
PLAIN = bundles.manifest(
    files=(FileEntry(path="model/model.onnx", role="model", size=10, sha256="a" * 64),)
)
FULL = bundles.manifest(
    files=(
        FileEntry(path="model/model.bin", role="model", size=10, sha256="a" * 64),
        FileEntry(path="model/model.xml", role="model", size=10, sha256="b" * 64),
        FileEntry(path="golden/inputs.npz", role="golden", size=10, sha256="c" * 64),
    ),
    provenance=Provenance(
        source_sha256="0" * 64,
        source_format="keras",
        tools={"onnx": "1.23.2", "ai_edge_quantizer": "0.10.0", "tf2onnx": "1.17.0+cpu"},
        steps=("open", "quantize int8"),
    ),
    calibration=Calibration(method="minmax", samples=128, dataset_digest=DATA),
    metrics=Metrics(
        name="top1", reference=0.98, this=0.97, drop=0.01, samples=360, dataset_digest=DATA
    ),
    license="Apache-2.0 OR MIT",
)


def recipe(**fields: Any) -> Recipe:
    return Recipe(
        **{
            "name": "digits",
            "version": "1.0.0",
            "variants": (Variant("onnx", "int8"),),
            "card": ModelCard(),
            "shapes": {},
        }
        | fields
    )


PRIVATE = recipe(
    metric="/home/ann/secret project/metric.py:score",
    evaluated=True,
    max_drop=0.01,
    trained=True,
    shapes={"x": (1, 3, 48, 320)},
    compression=(
        Distil(student="/home/ann/secret project/student.py:make"),
        PruneMagnitude(sparsity=0.5),
    ),
    settings={"method": "minmax", "exclude": ("fc1",)},
)
CASES = pytest.mark.parametrize(
    ("manifest", "asked"), [(PLAIN, recipe()), (FULL, PRIVATE)], ids=["plain", "full"]
)


@CASES
def test_provenance_is_slsa_in_an_in_toto_statement(manifest: Manifest, asked: Recipe) -> None:
    said = provenance(manifest, asked, "0.1.0")
    # The attestation framework's own messages: unknown or misplaced fields are refused.
    statement = json_format.ParseDict(said, statement_pb2.Statement())
    parsed = json_format.ParseDict(said["predicate"], provenance_pb2.Provenance())
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    models = [entry.path for entry in manifest.files if entry.role == "model"]
    assert [subject.name for subject in statement.subject] == models
    assert all(len(subject.digest["sha256"]) == 64 for subject in statement.subject)
    # What SLSA v1.0 requires: https://slsa.dev/spec/v1.0/provenance#schema
    assert parsed.build_definition.build_type
    assert parsed.build_definition.external_parameters
    assert parsed.run_details.builder.id
    assert not parsed.run_details.HasField("metadata")
    needed = parsed.build_definition.resolved_dependencies
    assert all(one.digest or one.uri for one in needed)
    assert needed[0].digest["sha256"] == manifest.provenance.source_sha256


@CASES
def test_the_bill_of_materials_is_valid(manifest: Manifest, asked: Recipe) -> None:
    text = json.dumps(mlbom(manifest, "0.1.0"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    del asked


def test_a_wrong_bill_of_materials_would_be_noticed() -> None:
    wrong = mlbom(FULL, "0.1.0") | {"serialNumber": "urn:uuid:1"}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(wrong)) is not None


def test_the_bill_of_materials_lists_what_the_model_is_made_of() -> None:
    bom = mlbom(FULL, "0.1.0")
    parts = {part["bom-ref"]: part for part in bom["components"]}
    assert set(parts) == {
        "model/model.bin", "model/model.xml", "source", "data/calibration", "data/evaluation",
        "tool/onnx", "tool/ai_edge_quantizer", "tool/tf2onnx",
    }  # fmt: skip
    assert parts["tool/ai_edge_quantizer"]["purl"] == "pkg:pypi/ai-edge-quantizer@0.10.0"
    assert parts["tool/tf2onnx"]["purl"] == "pkg:pypi/tf2onnx@1.17.0%2Bcpu"
    card = bom["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["task"] == "classify"
    assert card["modelParameters"]["inputs"] == [{"format": "image: float32[1,8,8,1] NHWC"}]
    values = [m["value"] for m in card["quantitativeAnalysis"]["performanceMetrics"]]
    assert values == ["0.970000", "0.980000"]
    assert bom["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]


def test_the_serial_number_follows_from_the_content() -> None:
    again, other = mlbom(FULL, "0.1.0"), mlbom(FULL, "0.2.0")
    assert again["serialNumber"] == mlbom(FULL, "0.1.0")["serialNumber"] != other["serialNumber"]


def test_what_was_asked_for_is_told_without_the_host() -> None:
    said = provenance(FULL, PRIVATE, "0.1.0")
    asked = said["predicate"]["buildDefinition"]["externalParameters"]
    assert asked["metric"] == "metric.py:score"
    assert asked["maxDrop"] == 0.01
    assert asked["shapes"] == {"x": [1, 3, 48, 320]}
    assert [step["kind"] for step in asked["compression"]] == ["distil", "prune_magnitude"]
    assert asked["compression"][0]["student"] == "student.py:make"
    assert asked["quantization"] == {"exclude": ["fc1"], "method": "minmax"}
    everything = canonical.dumps(said) + canonical.dumps(mlbom(FULL, "0.1.0"))
    for secret in (b"/ann", b"secret", b"/home"):
        assert secret not in everything + card_page(FULL).encode()


def test_the_card_tells_a_person() -> None:
    page = card_page(FULL)
    for fact in (
        "# digits 1.0.0",
        "Apache-2.0 OR MIT",
        "int8",
        "0.9800 in the source",
        "| image |",
    ):
        assert fact in page


# -- on the command line


def inspected(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        run_command(root, ["inspect", *map(str, words)])
    except SystemExit as leave:
        code = int(leave.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    files = bundles.sources(tmp_path / "sources")
    manifest = bundles.manifest(provenance=FULL.provenance)
    documents = {
        PROVENANCE: canonical.dumps(provenance(manifest, recipe(), "0.1.0")),
        MLBOM: canonical.dumps(mlbom(manifest, "0.1.0")),
        README: card_page(manifest).encode(),
    }
    for path, content in documents.items():
        files[path] = tmp_path / path.replace("/", "-")
        files[path].write_bytes(content)
    return write_bundle(tmp_path / "dist", manifest, files, key=bundles.KEY).path


def test_inspect_prints_the_documents(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    code, out, _ = inspected(capsys, bundle, "--provenance")
    assert (code, json.loads(out)["predicateType"]) == (0, "https://slsa.dev/provenance/v1")
    code, out, _ = inspected(capsys, bundle, "--mlbom")
    assert (code, json.loads(out)["bomFormat"]) == (0, "CycloneDX")
    code, out, _ = inspected(capsys, bundle)
    assert "built with" in out
    assert "tf2onnx 1.17.0+cpu" in out
    assert PROVENANCE in out


def test_a_bundle_without_them_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = inspected(capsys, bundles.write(tmp_path).path, "--mlbom")
    assert code == 2
    assert "no file docs/mlbom.json" in err
