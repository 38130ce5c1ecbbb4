"""`edgepack run`: a bundle on this host. Checks no signature."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.bundle import Bundle
from edgepack.cli import print_json
from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.cli.opened import THREADS, unpacked
from edgepack_targets.interface import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgepack_targets.pipeline.answer import Answer

__all__ = ["run"]

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@contextmanager
def _session(bundle: Bundle, home: Path, threads: int | None) -> Iterator[Session]:
    from edgepack_targets import registry

    target = registry.find(bundle.manifest.target.runtime)
    session = target.load(home / "model", bundle.manifest, threads=threads)
    try:
        yield session
    finally:
        session.close()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--input", "given", type=click.Path(path_type=Path), help=".npz, an array per input.")
@click.option("--out", type=click.Path(path_type=Path), help=".npz for the outputs, by name.")
@click.option("--source", type=click.Path(path_type=Path), help="An image, or a folder of images.")
@click.option(
    "--annotate", type=click.Path(path_type=Path), help="Folder for the images with the answers."
)
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def run(
    bundle: Path,
    given: Path | None,
    out: Path | None,
    source: Path | None,
    annotate: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on raw tensors (--input, --out) or on images (--source).

    \b
    Example:
        edgepack run digits-1.0.0-onnx-int8.edgepack --input x.npz --out y.npz
        edgepack run digits-1.0.0-onnx-int8.edgepack --source photos/
    """
    if (given is None) == (source is None) or (given is None) != (out is None):
        raise UsageError(
            "give either --input with --out, or --source", fix="edgepack run --help", reason="usage"
        )
    if annotate and not source:
        raise UsageError("--annotate needs --source", fix="edgepack run --help", reason="usage")
    with unpacked(bundle) as (opened, home), _session(opened, home, threads) as session:
        facts: dict[str, Any] = {
            "schema": "edgepack.run/v1",
            "bundle": opened.manifest.release,
            "digest": opened.digest,
            "effective": asdict(session.effective),
        }
        if given and out:
            facts |= _tensors(opened, session, given, out)
        elif source:
            facts |= {"results": _pictures(opened, session, source, annotate)}
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _tensors(bundle: Bundle, session: Session, given: Path, out: Path) -> dict[str, Any]:
    """Feed the samples in GIVEN one at a time and write the outputs to OUT."""
    from edgepack_packager.adapters.datasets import write_npz
    from edgepack_targets.pipeline.feed import run_samples
    from edgepack_targets.pipeline.npz import read_npz

    samples = read_npz(given, bundle.manifest.inputs)
    outputs = run_samples(session, bundle.manifest, samples)
    part = out.with_name(out.name + ".part")
    try:
        write_npz(part, outputs).replace(out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written", why=str(error), reason="bad_output") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return {"out": str(out), "samples": len(next(iter(samples.values())))}


def _pictures(
    bundle: Bundle, session: Session, source: Path, folder: Path | None
) -> list[dict[str, Any]]:
    """Return the answer for the image SOURCE, or for every image in it; draw them in FOLDER."""
    from edgepack_targets.pipeline.postprocess import decode
    from edgepack_targets.pipeline.preprocess import image_tensor, read_image

    if bundle.manifest.preprocess is None:
        raise UnsupportedError(
            f"{bundle.manifest.release} does not say how an image becomes its input",
            fix="build it with --preprocess, or give raw tensors with --input",
            reason="no_preprocess",
        )
    results = []
    for path in _images(source):
        image = read_image(path)
        name, tensor = image_tensor(bundle.manifest, image)
        answer = decode(bundle.manifest, session.run({name: tensor}), image.size)
        result = {"source": str(path), "answer": answer.plain()}
        if folder:
            result["annotated"] = str(_drawn(image, answer, folder / _name(path, source)))
        results.append(result)
    return results


def _name(path: Path, source: Path) -> Path:
    inside = path.relative_to(source) if path != source else Path(path.name)
    return inside.with_name(inside.name + ".png")


def _drawn(image: "Image", answer: "Answer", path: Path) -> Path:
    from edgepack_targets.pipeline.annotate import annotate

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        annotate(image, answer).save(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written", why=str(error), reason="bad_output"
        ) from error
    return path


def _images(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise UsageError(f"there are no images in {source}", reason="no_images")
    return found


def _print(facts: dict[str, Any]) -> None:
    for result in facts.get("results", ()):
        click.echo(f"{result['source']}: {_sentence(result['answer'])}")
    if "out" in facts:
        click.echo(f"{facts['samples']} samples, outputs in {facts['out']}")


def _sentence(answer: dict[str, Any]) -> str:
    """Return ANSWER, as `Answer.plain` gives it, in a few words."""
    if answer["task"] == "embed":
        return f"a vector of {answer['size']} numbers"
    if answer["task"] == "segment":
        return ", ".join(f"{r['label']} {r['share']:.1%}" for r in answer["regions"])
    if answer["task"] == "raw":
        return ", ".join(f"{n} {o['dtype']} {o['shape']}" for n, o in answer["outputs"].items())
    found = answer["top"][:1] if answer["task"] == "classify" else answer["objects"]
    return ", ".join(f"{f['label']} ({f['score']:.3f})" for f in found) or "nothing"
