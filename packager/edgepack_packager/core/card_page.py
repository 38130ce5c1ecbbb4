"""The model card that travels in a bundle, as Markdown for people. Pure, and never dated."""

from collections.abc import Iterator

from edgepack.manifest import Manifest, TensorSpec

__all__ = ["card_page"]


def card_page(manifest: Manifest) -> str:
    """Return what MANIFEST says, for a person who has only the bundle."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
    target, origin = manifest.target, manifest.provenance
    yield f"# {manifest.name} {manifest.version}"
    yield ""
    yield f"- Task: {manifest.task}"
    yield f"- License: {manifest.license or 'not stated'}"
    yield f"- Runs on: {target.runtime} >= {target.min_runtime}, {target.precision}"
    yield f"- Made from: {origin.source_format}, SHA-256 `{origin.source_sha256}`"
    yield f"- Steps: {', '.join(origin.steps) or 'none'}"
    if ranges := manifest.calibration:
        yield f"- Calibration: {ranges.method}, {ranges.samples} samples"
    if found := manifest.metrics:
        change = f"{found.reference:.4f} in the source, {found.this:.4f} here"
        yield f"- {found.name}: {change}, on {found.samples} samples"
    yield ""
    yield "| | name | type | shape | layout |"
    yield "|---|---|---|---|---|"
    yield from (_row("input", spec) for spec in manifest.inputs)
    yield from (_row("output", spec) for spec in manifest.outputs)
    yield ""
    yield "How it was built: `docs/provenance.json` (SLSA). What it is made of: `docs/mlbom.json`"
    yield "(CycloneDX). What a program needs to know of it: `manifest.json`."


def _row(kind: str, spec: TensorSpec) -> str:
    shape = " x ".join("?" if size < 0 else str(size) for size in spec.shape)
    name = spec.name.replace("|", "\\|").replace("\n", " ")
    return f"| {kind} | {name} | {spec.dtype} | {shape or 'scalar'} | {spec.layout or ''} |"
