"""`edgepack build`: read the flags, run the build, print the receipt. Builds nothing itself."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from edgepack.cli import FiniteRange, print_json
from edgepack.errors import PartialError, UnsupportedError, UsageError

__all__ = ["build"]

LATER = {
    "auto": "--auto",
    "holdout": "--holdout",
    "profile": "--profile",
    "jobs": "--jobs",
    "trust_source": "--trust-source",
    "emit": "--emit",
}

LIMIT = FiniteRange(0, min_open=True)

F = TypeVar("F", bound=Callable[..., Any])


def _later(name: str, **settings: Any) -> Callable[[F], F]:
    """Return an option of the final command line that is refused until it does something."""
    return click.option(name, hidden=True, **settings)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, help="openvino, tflite or onnx; repeatable.")
@click.option("--precision", "precisions", multiple=True, help="fp32 or int8; repeatable.")
@click.option("--recipe", type=click.Path(path_type=Path), help="YAML with a `model:` section.")
@click.option("--task", help="classify, detect, segment, embed or raw.")
@click.option("--labels", type=click.Path(path_type=Path), help="Text file, one label per line.")
@click.option("--preprocess", help="Image to tensor: JSON, or a YAML or JSON file.")
@click.option("--calibration", type=click.Path(path_type=Path), help=".npz of inputs, for int8.")
@click.option("--evaluate", type=click.Path(path_type=Path), help=".npz of inputs and `labels`.")
@click.option(
    "--metric", default="top1", show_default=True, help="top1, file.py:function or module:function."
)
@click.option(
    "--max-drop", type=FiniteRange(0), help="Largest allowed fall of the metric, absolute."
)
@click.option("--max-latency-ms", type=LIMIT, help="Limit of the p50 latency on this host.")
@click.option("--max-rss-mb", type=LIMIT, help="Limit of the peak memory on this host.")
@click.option("--max-size-mb", type=LIMIT, help="Limit of the model's files.")
@click.option("--fail-if-slower", is_flag=True, help="Refuse a variant that is slower than fp32.")
@click.option(
    "--shape", "shapes", multiple=True, help="name=1,32,32,1 for unknown axes; repeatable."
)
@click.option("--signature", help="Which signature of a SavedModel.")
@click.option("--name", help="Name of the model; default: the file's.")
@click.option("--version", "version", default="0.1.0", show_default=True, help="MAJOR.MINOR.PATCH")
@click.option("--key", type=click.Path(path_type=Path), help="Publisher key (PEM) to sign with.")
@click.option("--unsigned", is_flag=True, help="Do not sign: for this machine only.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="dist",
    show_default=True,
    help="Where bundles go.",
)
@click.option(
    "--timeout", type=LIMIT, default=1800.0, show_default=True, help="Seconds for each step."
)
@click.option("--no-cache", is_flag=True, help="Do every step again.")
@click.option("--no-install", is_flag=True, help="Fail rather than install a missing toolchain.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@_later("--auto", is_flag=True)
@_later("--holdout")
@_later("--profile")
@_later("--jobs")
@_later("--trust-source", is_flag=True)
@_later("--emit")
def build(model: Path, as_json: bool, **flags: Any) -> None:
    """Compress, convert, prove and sign MODEL: a .keras file, a SavedModel or an .onnx file.

    \b
    Example:
        edgepack build person.onnx --target openvino --precision int8 \\
            --calibration calib.npz --evaluate val.npz --max-drop 0.01
    """
    _refuse_later(flags)
    from edgepack_packager.build import build as drive
    from edgepack_packager.cli.receipt import print_receipt, progress

    request = _request(model, flags)
    with _stoppable(), progress() as (say, warn):
        if request.key is None:
            warn("the bundles are not signed: no agent installs them")
        result = drive(request, say=say, warn=warn)
    from edgepack_packager.core.report import build_document

    if as_json:
        print_json(build_document(result))
    print_receipt(result)
    if result.failed and not result.built:
        raise result.failed[0].error
    if result.failed:
        raise PartialError(
            f"{len(result.failed)} of {len(result.failed) + len(result.built)} variants failed",
            why="; ".join(f"{f.variant}: {f.error.what}" for f in result.failed),
        )


def _refuse_later(flags: dict[str, Any]) -> None:
    for name, flag in LATER.items():
        if flags.pop(name, None):
            raise UnsupportedError(
                f"{flag} is not there yet", fix="leave it out", reason="flag_not_there_yet"
            )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end a build like Ctrl-C, so that nothing stays behind."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _request(model: Path, flags: dict[str, Any]) -> Any:
    import platformdirs

    from edgepack_packager.build import Request
    from edgepack_packager.cli.keys import signing_key

    cache = Path(platformdirs.user_cache_dir("edgepack")) / "steps"
    return Request(
        recipe=_recipe(model, flags),
        source=model,
        out_dir=flags["out"],
        calibration=flags["calibration"],
        evaluate=flags["evaluate"],
        key=None if flags["unsigned"] else signing_key(flags["key"]),
        cache=None if flags["no_cache"] else cache,
        may_install=not flags["no_install"],
        timeout_s=flags["timeout"],
    )


def _recipe(model: Path, flags: dict[str, Any]) -> Any:
    from edgepack_packager.core.recipe import Budgets, Recipe, parse_shape, variants

    if not flags["targets"]:
        raise UsageError(
            "no target is given", fix="--target openvino|tflite|onnx", reason="no_target"
        )
    name = flags["name"] or model.stem.lower().replace(" ", "-")
    return Recipe(
        name=name,
        version=flags["version"],
        variants=variants(flags["targets"], flags["precisions"] or ("fp32",)),
        card=_card(flags),
        shapes=dict(parse_shape(text) for text in flags["shapes"]),
        signature=flags["signature"],
        metric=flags["metric"],
        max_drop=flags["max_drop"],
        budgets=Budgets(
            max_latency_ms=flags["max_latency_ms"],
            max_rss_mb=flags["max_rss_mb"],
            max_size_mb=flags["max_size_mb"],
            fail_if_slower=flags["fail_if_slower"],
        ),
        calibrated=flags["calibration"] is not None,
        evaluated=flags["evaluate"] is not None,
    )


def _card(flags: dict[str, Any]) -> Any:
    """Return the model section of the recipe file, overridden by flags."""
    from edgepack_packager.adapters import cards

    card = cards.read_recipe(flags["recipe"]) if flags["recipe"] else cards.EMPTY
    if flags["task"]:
        card = replace(card, task=cards.task(flags["task"]))
    if flags["labels"]:
        card = replace(card, labels=cards.read_labels(flags["labels"]))
    if flags["preprocess"]:
        card = replace(card, preprocess=cards.preprocess(flags["preprocess"]))
    return card
