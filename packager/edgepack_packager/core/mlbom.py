"""What a model is made of, as a CycloneDX 1.6 ML-BOM. Pure, and never dated.

The model is the component that the document is about, with a model card; its parts are the
files that a runtime loads, the source, the data by digest, and the libraries that built it. The
serial number follows from the content, so that two builds of the same give the same bytes.
"""

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

from edgepack import canonical
from edgepack.manifest import Manifest, TensorSpec
from edgepack_packager.core.provenance import datasets, purl

__all__ = ["SPEC_VERSION", "mlbom"]

SPEC_VERSION = "1.6"
_MODEL = "model"


def mlbom(manifest: Manifest, builder_version: str) -> dict[str, Any]:
    """Return the bill of materials of the model of MANIFEST, built by edgepack BUILDER_VERSION."""
    parts = [*_files(manifest), *_inputs(manifest), *_libraries(manifest)]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {"type": "application", "name": "edgepack", "version": builder_version}
                ]
            },
            "component": _model(manifest),
        },
        "components": parts,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }
    digest = hashlib.sha256(canonical.dumps(document)).digest()
    return document | {"serialNumber": uuid.UUID(bytes=digest[:16], version=5).urn}


def _model(manifest: Manifest) -> dict[str, Any]:
    said = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": manifest.name,
        "version": manifest.version,
        "licenses": [{"expression": manifest.license}] if manifest.license else [],
        "modelCard": {
            "modelParameters": {
                "task": manifest.task,
                "datasets": [{"ref": f"data/{name}"} for name in datasets(manifest)],
                "inputs": [{"format": _format(spec)} for spec in manifest.inputs],
                "outputs": [{"format": _format(spec)} for spec in manifest.outputs],
            },
        }
        | _analysis(manifest),
        "properties": list(_properties(manifest)),
    }
    return {name: value for name, value in said.items() if value}


def _format(spec: TensorSpec) -> str:
    shape = ",".join("?" if size < 0 else str(size) for size in spec.shape)
    layout = f" {spec.layout}" if spec.layout else ""
    return f"{spec.name}: {spec.dtype}[{shape}]{layout}"


def _analysis(manifest: Manifest) -> dict[str, Any]:
    found = manifest.metrics
    if found is None:
        return {}
    here = f"{found.samples} samples, {manifest.target.runtime} {manifest.target.precision}"
    said = {here: found.this, f"{found.samples} samples, source": found.reference}
    metrics = [
        {"type": found.name, "value": f"{value:.6f}", "slice": where}
        for where, value in said.items()
    ]
    return {"quantitativeAnalysis": {"performanceMetrics": metrics}}


def _properties(manifest: Manifest) -> Iterator[dict[str, str]]:
    target, ranges = manifest.target, manifest.calibration
    said = {
        "runtime": f"{target.runtime} >= {target.min_runtime}",
        "precision": target.precision,
        "execution-precision": target.execution_precision,
        "steps": " -> ".join(manifest.provenance.steps),
        "calibration": f"{ranges.method}, {ranges.samples} samples" if ranges else "",
    }
    for name, value in said.items():
        if value:
            yield {"name": f"edgepack:{name}", "value": value}


def _files(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for entry in manifest.files:
        if entry.role == "model":
            yield {"type": "file", "bom-ref": entry.path, "name": entry.path} | _hash(entry.sha256)


def _inputs(manifest: Manifest) -> Iterator[dict[str, Any]]:
    origin = manifest.provenance
    source = {
        "type": "machine-learning-model",
        "bom-ref": "source",
        "name": f"{manifest.name} source",
    }
    form = [{"name": "edgepack:format", "value": origin.source_format}]
    yield source | _hash(origin.source_sha256) | {"properties": form}
    for name, sha256 in datasets(manifest).items():
        yield {"type": "data", "bom-ref": f"data/{name}", "name": f"{name} data"} | _hash(sha256)


def _libraries(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for tool, version in sorted(manifest.provenance.tools.items()):
        name = {"type": "library", "bom-ref": f"tool/{tool}", "name": tool, "version": version}
        yield name | {"purl": purl(tool, version)}


def _hash(sha256: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]}
