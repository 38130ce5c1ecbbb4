"""`edgepack compare`: two bundles side by side on this host. Checks no signature."""

import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.bundle import Bundle
from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_packager.cli.opened import THREADS, stoppable, unpacked

if TYPE_CHECKING:
    from edgepack_packager.core.documents import Compare, Difference, Side
    from edgepack_targets.fresh import FreshModel

__all__ = ["compare"]

ROUNDS, BLOCK_MS, WARM_UP = 20, 25.0, 5
WORSE = 1.05
BUNDLE = click.Path(path_type=Path)


@dataclass
class _Place:
    """An open bundle and the directory with its files."""

    bundle: Bundle
    home: Path


@dataclass
class _Data:
    """The samples that both answer."""

    samples: Path
    labels: Any
    given: bool
    count: int


@click.command()
@click.argument("a", type=BUNDLE)
@click.argument("b", type=BUNDLE)
@click.option("--data", type=BUNDLE, help=".npz of inputs, and of `labels` if there are any.")
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def compare(a: Path, b: Path, data: Path | None, threads: int | None, as_json: bool) -> None:
    """Compare the bundles A and B: interface, size, answers, accuracy and speed.

    Both run in processes of their own and are measured in turns. Without --data they answer
    A's golden inputs. Nothing is judged: the exit code is 0 however far they differ.

    \b
    Example:
        edgepack compare dist/digits-1.0.0-onnx-fp32.edgepack \\
            dist/digits-1.0.0-onnx-int8.edgepack --data val.npz
    """
    with ExitStack() as stack:
        stack.enter_context(stoppable())
        left, right = (_Place(*stack.enter_context(unpacked(path))) for path in (a, b))
        document = _compare(left, right, data, threads)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _compare(a: _Place, b: _Place, given: Path | None, threads: int | None) -> "Compare":
    from edgepack_packager.core.compare import answers_agree, interface_differences
    from edgepack_packager.core.paired import paired_facts
    from edgepack_targets.fresh import FreshModel
    from edgepack_targets.machine import describe_machine

    differences = interface_differences(a.bundle.manifest, b.bundle.manifest)
    data = _data(a, b, given, differences)
    with (
        FreshModel(a.home, _samples(a, data), threads=threads) as first,
        FreshModel(b.home, _samples(b, data), threads=threads) as second,
    ):
        answers = [_answers(model, place, data) for model, place in ((first, a), (second, b))]
        sides = _sides((a, first), (b, second))
    pair, *accuracies = _paired(a, data, answers) if data else (None, None, None)
    sides[0]["accuracy"], sides[1]["accuracy"] = accuracies
    return {
        "schema": "edgepack.compare/v1",
        "a": sides[0],
        "b": sides[1],
        "same_interface": not differences,
        "differences": differences,
        "agreement": {
            "samples": data.count,
            "data": "given" if data.given else "golden",
            "outputs": answers_agree(*answers),
        }
        if data
        else None,
        "paired": paired_facts(pair),
        "latency_ratio": sides[1]["latency_ms"]["p50"] / sides[0]["latency_ms"]["p50"],
        "host": describe_machine(),
    }


def _data(
    a: _Place, b: _Place, given: Path | None, differences: "list[Difference]"
) -> _Data | None:
    """Return the samples for both; None: none are given and A's golden inputs do not fit B."""
    import numpy as np

    from edgepack_targets.pipeline.npz import LABELS, read_arrays, read_npz

    for place in (a, b):
        golden = place.bundle.manifest.golden
        read_npz(
            place.home / golden.inputs, place.bundle.manifest.inputs, what="golden",
            max_samples=golden.samples,
        )  # fmt: skip
    if given is None:
        if any(one["what"].startswith("input ") for one in differences):
            return None
        golden = a.bundle.manifest.golden
        return _Data(a.home / golden.inputs, None, False, golden.samples)
    names = {spec.name for spec in a.bundle.manifest.inputs}
    labelled = LABELS in read_arrays(given, what="data") and LABELS not in names
    for place in (a, b):
        arrays = read_npz(given, place.bundle.manifest.inputs, what="data", labels=labelled)
    labels = arrays.pop(LABELS, None) if labelled else None
    samples = a.home / "samples.npz"
    with samples.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return _Data(samples, labels, True, len(next(iter(arrays.values()))))


def _samples(place: _Place, data: _Data | None) -> Path:
    return data.samples if data else place.home / place.bundle.manifest.golden.inputs


def _answers(model: "FreshModel", place: _Place, data: _Data | None) -> dict[str, Any]:
    from edgepack_targets.pipeline.npz import read_arrays

    if data is None:
        return {}
    out = place.home / "answers.npz"
    model.answer(data.samples, out)
    return read_arrays(out, what="answers")


def _paired(a: _Place, data: _Data, answers: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """Return paired counts and both accuracies, by the output that decides; None without labels."""
    from edgepack_packager.core.compare import comparable
    from edgepack_packager.core.holdout import paired
    from edgepack_targets.pipeline.similarity import top1

    rule = a.bundle.manifest.agreement
    if data.labels is None:
        return None, None, None
    if rule.rule != "top1" or rule.output not in comparable(*answers):
        raise UsageError(
            f"the labels cannot be compared with output `{rule.output}`",
            why="both bundles need it, in one shape, with a class for each entry",
            fix="leave `labels` out of the file",
            reason="no_classes",
        )
    left, right = (top1(one[rule.output]) for one in answers)
    shares = [float((side == data.labels).mean()) for side in (left, right)]
    return paired(left, right, data.labels), shares[0], shares[1]


def _sides(*models: "tuple[_Place, FreshModel]") -> "list[Side]":
    """Measure the models in turns, so that what slows this machine down hits both alike."""
    from edgepack_targets.measure import latency

    times: list[list[float]] = [[] for _ in models]
    warm = [min(model.times(WARM_UP)) for _, model in models]
    blocks = [max(1, min(200, int(BLOCK_MS / max(one, 1e-3)))) for one in warm]
    for turn in range(ROUNDS):
        order = range(len(models)) if turn % 2 == 0 else reversed(range(len(models)))
        for index in order:
            times[index] += models[index][1].times(blocks[index])
    return [
        _side(place, model) | {"latency_ms": latency(spent), "peak_rss_mb": model.peak_rss_mb()}
        for (place, model), spent in zip(models, times, strict=True)
    ]


def _side(place: _Place, model: "FreshModel") -> Any:
    bundle, manifest = place.bundle, place.bundle.manifest
    said = manifest.metrics
    return {
        "path": str(bundle.path),
        "bundle": manifest.release,
        "digest": bundle.digest,
        "signed": bundle.signed,
        "target": manifest.target.runtime,
        "precision": manifest.target.precision,
        "execution_precision": manifest.target.execution_precision,
        "size_bytes": bundle.size_bytes,
        "model_bytes": bundle.model_bytes,
        "metrics": {
            "name": said.name,
            "reference": said.reference,
            "this": said.this,
            "drop": said.drop,
            "samples": said.samples,
            "dataset_digest": said.dataset_digest,
        }
        if said
        else None,
        "effective": model.effective,
        "load_ms": model.load_ms,
        "first_ms": model.first_ms,
        "accuracy": None,
    }


def _print(document: "Compare") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgepack_packager.core.compare import verdicts

    a, b = document["a"], document["b"]
    table = Table("", "A", "B", "B / A", box=None, pad_edge=False)
    for name, left, right in _words(a, b):
        table.add_row(name, Text(left), Text(right), "")
    for name, unit, left_number, right_number in _numbers(a, b):
        ratio = right_number / left_number if left_number else 1.0
        style = "red" if ratio > WORSE else "green" if ratio < 1 / WORSE else ""
        cells = (f"{left_number:,.4g} {unit}", f"{right_number:,.4g} {unit}")
        table.add_row(name, *cells, Text(f"{ratio:.2f} x", style=style))
    # What is no terminal is as wide as it must be: nothing is wrapped or cut.
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width or shutil.get_terminal_size().columns, highlight=False)
    console.print(table)
    console.print()
    for told in verdicts(document):
        console.print(Text(told))
    for one in document["differences"]:
        told = f"differs: {one['what']}: {one['a'] or 'not there'} | {one['b'] or 'not there'}"
        console.print(Text(told, style="yellow"))


def _words(a: "Side", b: "Side") -> list[tuple[str, str, str]]:
    def variant(side: "Side") -> str:
        return f"{side['target']} {side['precision']}, runs {side['effective']['precision']}"

    def metric(side: "Side") -> str:
        said = side["metrics"]
        return f"{said['name']} {said['this']:.4f} of {said['reference']:.4f}" if said else "-"

    def accuracy(side: "Side") -> str:
        return "-" if side["accuracy"] is None else f"{side['accuracy']:.4f}"

    rows = [
        ("bundle", a["bundle"], b["bundle"]),
        ("variant", variant(a), variant(b)),
        ("its build said", metric(a), metric(b)),
        ("top-1 on the data", accuracy(a), accuracy(b)),
    ]
    return [row for row in rows if row[1:] != ("-", "-")]


def _numbers(a: "Side", b: "Side") -> list[tuple[str, str, float, float]]:
    return [
        ("model", "kB", a["model_bytes"] / 1e3, b["model_bytes"] / 1e3),
        ("p50", "ms", a["latency_ms"]["p50"], b["latency_ms"]["p50"]),
        ("p95", "ms", a["latency_ms"]["p95"], b["latency_ms"]["p95"]),
        ("load", "ms", a["load_ms"], b["load_ms"]),
        ("peak memory", "MB", a["peak_rss_mb"], b["peak_rss_mb"]),
    ]
