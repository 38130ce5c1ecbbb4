"""`edgepack build`: read the flags, run the build, print the receipt. Builds nothing itself."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgepack.cli import FiniteRange, print_json
from edgepack.errors import PartialError, UsageError

__all__ = ["build"]

LIMIT = FiniteRange(0, min_open=True)

FORMATS = "openvino, tflite, onnx or onnx-mobile; repeatable."
PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--target", "targets", multiple=True, help=FORMATS)
@click.option(
    "--precision", "precisions", multiple=True,
    help="fp32, fp16, bf16, int8, w8 or w4; repeatable.",
)  # fmt: skip
@click.option("--arch", help="Of onnx-mobile: arm64 (default), arm or amd64.")
@click.option("--weights", type=PATH, help="Weights of module.py:factory: safetensors or .pt.")
@click.option("--trust-source", is_flag=True, help="Let code and pickles of the source run.")
@click.option("--recipe", type=PATH, help="YAML: `model:`, `train:`, `steps:`.")
@click.option("--task", help="classify, detect, segment, embed or raw.")
@click.option("--labels", type=PATH, help="Text file, one label per line.")
@click.option("--preprocess", help="Image to tensor: JSON, or a YAML or JSON file.")
@click.option("--calibration", type=PATH, help=".npz of inputs, for int8.")
@click.option("--evaluate", type=PATH, help=".npz of inputs and `labels`.")
@click.option(
    "--metric", default="top1", show_default=True, help="top1, file.py:function or module:function."
)
@click.option(
    "--max-drop", type=FiniteRange(0), help="Largest allowed fall of the metric, absolute."
)
@click.option("--auto", is_flag=True, help="Search for what keeps --max-drop.")
@click.option("--holdout", type=PATH, help="Samples that --auto reports on; default: half.")
@click.option("--max-latency-ms", type=LIMIT, help="Limit of the p50 latency.")
@click.option("--max-rss-mb", type=LIMIT, help="Limit of the peak memory.")
@click.option("--max-size-mb", type=LIMIT, help="Limit of the model's files.")
@click.option("--profile", type=PATH, help="JSON of a benchmark on a device, for the limits.")
@click.option("--fail-if-slower", is_flag=True, help="Refuse a variant that is slower than fp32.")
@click.option(
    "--shape", "shapes", multiple=True, help="name=1,32,32,1 for unknown axes; repeatable."
)
@click.option("--signature", help="Which signature of a SavedModel.")
@click.option("--name", help="Name of the model; default: the file's.")
@click.option("--version", "version", default="0.1.0", show_default=True, help="MAJOR.MINOR.PATCH")
@click.option("--key", type=PATH, help="Publisher key (PEM) to sign with.")
@click.option("--unsigned", is_flag=True, help="Do not sign: for this machine only.")
@click.option(
    "--out",
    type=PATH,
    default="dist",
    show_default=True,
    help="Where bundles go.",
)
@click.option(
    "--timeout", type=LIMIT, default=1800.0, show_default=True, help="Seconds for each step."
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True,
    help="Steps that run side by side.",
)  # fmt: skip
@click.option(
    "--emit", "emits", multiple=True, type=click.Choice(["frigate", "triton", "ovms"]),
    help="Also write what this server needs, beside each bundle; repeatable.",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Do every step again.")
@click.option("--no-install", is_flag=True, help="Fail rather than install a missing toolchain.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def build(model: str, as_json: bool, **flags: Any) -> None:
    """Compress, convert, prove and sign MODEL.

    MODEL is a .keras file, a SavedModel, a .pt2 program, a TorchScript file, module.py:factory,
    an .onnx or .tflite file, or an OpenVINO .xml.

    \b
    Example:
        edgepack build person.onnx --target openvino --precision int8 \\
            --calibration calib.npz --evaluate val.npz --max-drop 0.01
    """
    from edgepack_packager.build import build as drive
    from edgepack_packager.cli.opened import stoppable
    from edgepack_packager.cli.receipt import print_receipt, progress

    request = _request(model, flags)
    with stoppable(), progress() as (report, warn):
        if request.key is None:
            warn("the bundles are not signed: no agent installs them")
        result = drive(request, progress=report, warn=warn)
    from edgepack_packager.core.report import build_document

    if as_json:
        print_json(build_document(result))
    print_receipt(result, max_drop=flags["max_drop"])
    if result.failed and not result.built:
        raise result.failed[0].error
    if result.failed:
        raise PartialError(
            f"{len(result.failed)} of {len(result.failed) + len(result.built)} variants failed",
            why="; ".join(f"{f.variant}: {f.error.what}" for f in result.failed),
        )


def _request(model: str, flags: dict[str, Any]) -> Any:
    import platformdirs

    from edgepack_packager.adapters.cards import RecipeFile, read_recipe
    from edgepack_packager.build import Request
    from edgepack_packager.cli.keys import signing_key

    if flags["unsigned"] and flags["key"]:
        raise UsageError(
            "--unsigned and --key contradict each other", fix="give one of them",
            reason="unsigned_with_key",
        )  # fmt: skip
    cache = Path(platformdirs.user_cache_dir("edgepack")) / "steps"
    file = read_recipe(flags["recipe"]) if flags["recipe"] else RecipeFile()
    return Request(
        recipe=_recipe(model, file, flags),
        source=model,
        out_dir=flags["out"],
        calibration=flags["calibration"],
        evaluate=flags["evaluate"],
        holdout=_holdout(flags),
        train=file.train,
        weights=flags["weights"],
        trust=flags["trust_source"],
        emit=flags["emits"],
        profile=flags["profile"],
        command=("edgepack", *sys.argv[1:]),
        key=None if flags["unsigned"] else signing_key(flags["key"]),
        cache=None if flags["no_cache"] else cache,
        may_install=not flags["no_install"],
        jobs=flags["jobs"],
        timeout_s=flags["timeout"],
    )


def _recipe(model: str, file: Any, flags: dict[str, Any]) -> Any:
    from edgepack_packager.core.recipe import Budgets, Recipe, parse_shape, variants

    if not flags["targets"]:
        raise UsageError(
            "no target is given", fix="--target openvino|tflite|onnx", reason="no_target"
        )
    return Recipe(
        name=flags["name"] or _default_name(model),
        version=flags["version"],
        variants=variants(flags["targets"], _precisions(flags)),
        card=_card(file.card, flags),
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
        compression=file.compression,
        settings=file.settings,
        arch=flags["arch"],
        auto=flags["auto"],
        calibrated=flags["calibration"] is not None,
        evaluated=flags["evaluate"] is not None,
        trained=file.train is not None,
    )


def _precisions(flags: dict[str, Any]) -> tuple[str, ...]:
    """Return what is asked for; a search starts from the smallest that is also fast."""
    return flags["precisions"] or (("int8",) if flags["auto"] else ("fp32",))


def _holdout(flags: dict[str, Any]) -> Path | None:
    found: Path | None = flags["holdout"]
    if found and not flags["auto"]:
        raise UsageError(
            "--holdout is what --auto reports on",
            fix="add --auto, or give the samples as --evaluate",
            reason="holdout_without_auto",
        )
    return found


def _default_name(model: str) -> str:
    """Return the file's name without its suffix: `person` of person.onnx or person.py:small."""
    return Path(model.partition(".py:")[0]).stem.lower().replace(" ", "-")


def _card(card: Any, flags: dict[str, Any]) -> Any:
    """Return what the recipe file says about the model, overridden by flags."""
    from edgepack_packager.adapters import cards

    if flags["task"]:
        card = replace(card, task=cards.task(flags["task"]))
    if flags["labels"]:
        card = replace(card, labels=cards.read_labels(flags["labels"]))
    if flags["preprocess"]:
        card = replace(card, preprocess=cards.preprocess(flags["preprocess"]))
    return card
