"""`edgepack inspect`, `verify` and `unpack`: look at a bundle, check it, take it apart."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import canonical
from edgepack.bundle import Bundle, open_bundle
from edgepack.cli import print_json
from edgepack.decoders import OUTPUT_FIELDS, Postprocess
from edgepack.errors import IntegrityError, UsageError
from edgepack.keys import key_id, load_public
from edgepack.manifest import Manifest, TensorSpec
from edgepack.oci import MAX_DOCUMENT, MLBOM, PROVENANCE

__all__ = ["inspect", "unpack", "verify"]

_FILE = click.Path(path_type=Path)
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.argument("bundle", type=_FILE)
@click.option(
    "--provenance", "document", flag_value=PROVENANCE, help="Print its SLSA provenance (JSON)."
)
@click.option("--mlbom", "document", flag_value=MLBOM, help="Print its CycloneDX ML-BOM (JSON).")
@_json_flag
def inspect(bundle: Path, document: str | None, as_json: bool) -> None:
    """Show what BUNDLE says about itself. Checks its form, not who signed it.

    \b
    Example:
        edgepack inspect digits-1.0.0-onnx-int8.edgepack
        edgepack inspect digits-1.0.0-onnx-int8.edgepack --mlbom
    """
    with open_bundle(bundle) as opened:
        if document:
            print_json(_document(opened, document))
        elif as_json:
            print_json(_as_json(opened))
        else:
            _print_tables(opened)


@click.command()
@click.argument("bundle", type=_FILE)
@click.option("--key", type=_FILE, required=True, help="The publisher's NAME.pub.pem.")
@_json_flag
def verify(bundle: Path, key: Path, as_json: bool) -> None:
    """Check BUNDLE's form, digests and signature; exit code 3 if anything is not right.

    BUNDLE may also be a directory with a `model.sig`: what `edgepack unpack` wrote, or what
    another tool for OpenSSF Model Signing signed with the same key.

    \b
    Example:
        edgepack verify digits-1.0.0-onnx-int8.edgepack --key publisher.pub.pem
        edgepack verify digits/ --key publisher.pub.pem
    """
    public = load_public(key)
    found: dict[str, object] = {"schema": "edgepack.verify/v1", "path": str(bundle)}
    try:
        check = _check_directory if bundle.is_dir() else _check_bundle
        name, facts = check(bundle, public)
    except IntegrityError as error:
        if as_json:
            print_json(found | {"verified": False, "error": error.as_dict()})
        raise
    if as_json:
        print_json(found | {"verified": True, "key_id": key_id(public)} | facts)
    else:
        click.echo(f"verified  {name}\nsigned by {key_id(public)}")


@click.command()
@click.argument("bundle", type=_FILE)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--flat", is_flag=True, help="For an app: model, labels, model.json.")
@_json_flag
def unpack(bundle: Path, directory: Path, flat: bool, as_json: bool) -> None:
    """Write BUNDLE's files to DIRECTORY as they were signed, with `model.sig`.

    \b
    Example:
        edgepack unpack digits-1.0.0-onnx-int8.edgepack digits/
        edgepack unpack digits-1.0.0-tflite-int8.edgepack assets/ --flat
    """
    with open_bundle(bundle) as opened, _appearing(directory) as part:
        if flat:
            from edgepack_packager.adapters.embedding import write_flat

            write_flat(opened, part)
        else:
            opened.extract(part)
        files = sorted(str(path.relative_to(part)) for path in part.rglob("*") if path.is_file())
    if as_json:
        print_json({"schema": "edgepack.unpack/v1", "directory": str(directory), "files": files})
    else:
        click.echo("\n".join(str(directory / file) for file in files))


def _check_bundle(path: Path, public: ec.EllipticCurvePublicKey) -> tuple[str, dict[str, object]]:
    with open_bundle(path) as opened:
        opened.verify(public)
        return f"{opened.manifest.release}  {opened.digest}", {"digest": opened.digest}


def _check_directory(
    path: Path, public: ec.EllipticCurvePublicKey
) -> tuple[str, dict[str, object]]:
    from edgepack_packager.adapters.signed_tree import verify_tree

    count = len(verify_tree(path, public).digests)
    return f"{path}  ({count} files)", {"files": count}


def _document(bundle: Bundle, path: str) -> object:
    size = next((entry.size for entry in bundle.manifest.files if entry.path == path), 0)
    if size > MAX_DOCUMENT:
        raise IntegrityError(f"{path} is larger than {MAX_DOCUMENT} bytes", reason="too_large")
    return canonical.loads(bundle.read(path), what=path)


def _as_json(bundle: Bundle) -> dict[str, object]:
    return {
        "schema": "edgepack.inspect/v1",
        "path": str(bundle.path),
        "digest": bundle.digest,
        "size_bytes": bundle.size_bytes,
        "model_bytes": bundle.model_bytes,
        "signature": {"signed": bundle.signed, "key_id": bundle.signer},
        "manifest": msgspec.to_builtins(bundle.manifest),
    }


def _print_tables(bundle: Bundle) -> None:
    manifest = bundle.manifest
    _print_table([*_identity(bundle), *_processing(manifest), *_origin(manifest)])
    tensors = [_tensor_row("input", spec) for spec in manifest.inputs]
    tensors += [_tensor_row("output", spec) for spec in manifest.outputs]
    click.echo()
    _print_table([("", "name", "type", "shape", "layout", "native name"), *tensors])
    files = [(entry.path, entry.role, f"{entry.size:,}") for entry in manifest.files]
    click.echo()
    _print_table([("file", "role", "bytes"), *files])


def _identity(bundle: Bundle) -> list[tuple[str, str]]:
    manifest, target = bundle.manifest, bundle.manifest.target
    arch = " or ".join(target.arch) or "any machine"
    signature = f"by {bundle.signer} (not checked: edgepack verify)" if bundle.signed else "none"
    return [
        ("release", f"{manifest.release}  (build {manifest.build_id})"),
        ("digest", bundle.digest),
        ("signature", signature),
        ("task", manifest.task),
        ("target", f"{target.runtime} >= {target.min_runtime}, on {arch}"),
        ("precision", f"{target.precision}, executed in {target.execution_precision}"),
        ("size", f"{bundle.size_bytes:,} bytes, model {bundle.model_bytes:,}"),
        ("security epoch", str(manifest.security_epoch)),
    ]


def _processing(manifest: Manifest) -> list[tuple[str, str]]:
    pre, post = manifest.preprocess, manifest.postprocess
    before, after = "none: raw tensors", "none: raw tensors"
    if pre:
        resize = f"{pre.resize.mode}, {pre.resize.interpolation}"
        before = f"{pre.color}, {resize}, (x / {pre.scale:g} - {pre.mean}) / {pre.std}"
    if post:
        after = _decoding(post)
    return [
        ("preprocess", before),
        ("postprocess", after),
        ("labels", f"{len(manifest.labels)} ({', '.join(manifest.labels[:10])})"),
        ("agreement", f"{manifest.agreement.rule} on {manifest.agreement.output}"),
    ]


def _decoding(rule: Postprocess) -> str:
    said = msgspec.structs.asdict(rule)
    outputs = [said.pop(field) for field in OUTPUT_FIELDS if said.get(field)]
    settings = [f"{k.replace('_', ' ')} {v}" for k, v in said.items() if v not in {"", None}]
    return ", ".join([f"{rule.decoder} of {', '.join(outputs) or 'the outputs'}", *settings])


def _origin(manifest: Manifest) -> list[tuple[str, str]]:
    source, metrics, ranges = manifest.provenance, manifest.metrics, manifest.calibration
    rows = [("source", f"{source.source_format}, sha256 {source.source_sha256}")]
    if source.steps:
        rows.append(("steps", " -> ".join(source.steps)))
    if source.tools:
        rows.append(("built with", ", ".join(f"{t} {v}" for t, v in sorted(source.tools.items()))))
    if ranges:
        rows.append(("calibration", f"{ranges.method}, {ranges.samples} samples"))
    if metrics:
        change = f"{metrics.reference:.4f} -> {metrics.this:.4f}"
        rows.append((metrics.name, f"{change} on {metrics.samples} samples"))
    return [*rows, ("license", manifest.license or "not stated")]


def _tensor_row(kind: str, spec: TensorSpec) -> tuple[str, ...]:
    shape = " x ".join("?" if size < 0 else str(size) for size in spec.shape)
    return (
        kind,
        spec.name,
        spec.dtype,
        shape or "scalar",
        spec.layout or "",
        spec.binding.native_name,
    )


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print ROWS in columns; a line is never wrapped, so that a digest can be copied whole."""
    cells = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _printable(text: str) -> str:
    """Return TEXT without control characters: a bundle's names must not drive the terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


@contextmanager
def _appearing(directory: Path) -> Iterator[Path]:
    """Yield a directory to fill, which gets the name DIRECTORY only if all goes well."""
    target = directory.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            f"{directory} exists and is not an empty directory",
            fix="name a new directory",
            reason="exists",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".edgepack-", dir=target.parent))
        try:
            yield part
            part.chmod(0o755)
            part.replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {directory}", why=error.strerror or str(error), reason="unwritable"
        ) from error
