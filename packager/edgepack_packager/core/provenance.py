"""How a model came to be, as SLSA provenance v1 in an in-toto statement. Pure, and never dated.

Everything said follows from the bundle's manifest and from what was asked for, so that two builds
of the same give the same bytes. What would tell of the host is left out: no paths, no user, no
time, no command line; of `file.py:function` only the last part of the path is kept.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from edgepack.manifest import Manifest
from edgepack.oms import STATEMENT_TYPE
from edgepack_packager.core.compression import FUNCTIONS
from edgepack_packager.core.recipe import Recipe

__all__ = ["BUILDER", "BUILD_TYPE", "PREDICATE_TYPE", "datasets", "provenance", "purl"]

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILDER = "urn:edgepack:packager"
"""Whoever holds the publisher's key ran it; the packager cannot vouch for a build service."""
BUILD_TYPE = "urn:edgepack:build:v1"


def provenance(manifest: Manifest, recipe: Recipe, builder_version: str) -> dict[str, Any]:
    """Return the statement about the model files of MANIFEST.

    Args:
        manifest: Complete but for the files around the model.
        recipe: What was asked for.
        builder_version: Of edgepack.
    """
    origin = manifest.provenance
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": entry.path, "digest": {"sha256": entry.sha256}}
            for entry in manifest.files
            if entry.role == "model"
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _asked(manifest, recipe),
                "internalParameters": {"steps": list(origin.steps)},
                "resolvedDependencies": [*_inputs(manifest), *_tools(origin.tools)],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"edgepack": builder_version}}},
        },
    }


def datasets(manifest: Manifest) -> dict[str, str]:
    """Return what data had a part in the model of MANIFEST, by their SHA-256."""
    said = {"calibration": manifest.calibration, "evaluation": manifest.metrics}
    return {name: facts.dataset_digest for name, facts in said.items() if facts}


def purl(tool: str, version: str) -> str:
    """Return the package URL of a TOOL that had a part in a build."""
    kind = "generic" if tool == "python" else "pypi"
    name = tool.lower().replace("_", "-")
    return f"pkg:{kind}/{quote(name, safe='')}@{quote(version, safe='')}"


def _asked(manifest: Manifest, recipe: Recipe) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": recipe.name,
        "version": recipe.version,
        "task": manifest.task,
        "target": manifest.target.runtime,
        "precision": manifest.target.precision,
        "arch": recipe.arch,
        "shapes": {name: list(shape) for name, shape in sorted(recipe.shapes.items())},
        "signature": recipe.signature,
        "metric": _function(recipe.metric) if recipe.evaluated else None,
        "maxDrop": recipe.max_drop,
        "auto": recipe.auto,
        "compression": [_step(step.as_dict()) for step in recipe.compression],
        "quantization": {name: _plain(value) for name, value in sorted(recipe.settings.items())},
        "seed": recipe.seed,
    }
    return {name: value for name, value in said.items() if value not in (None, {}, [], False)}


def _step(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _function(value) if name in FUNCTIONS else _plain(value)
        for name, value in settings.items()
        if value not in ("", None)
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _function(named: str) -> str:
    """Return `file.py:function` without the directories, which are the host's own."""
    file, colon, function = named.rpartition(":")
    return f"{PurePath(file).name}:{function}" if colon else named


def _inputs(manifest: Manifest) -> Iterator[dict[str, Any]]:
    origin = manifest.provenance
    yield {
        "name": "source",
        "digest": {"sha256": origin.source_sha256},
        "annotations": {"format": origin.source_format},
    }
    for name, sha256 in datasets(manifest).items():
        yield {"name": name, "digest": {"sha256": sha256}}


def _tools(tools: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for tool, version in sorted(tools.items()):
        yield {"name": tool, "uri": purl(tool, version)}
