"""The part of the conformance suite that is about making a model smaller."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.conformance_subject import Subject, files, refused, same_models, size
from edgepack_targets.interface import Quantization
from edgepack_targets.pipeline.agreement import agree
from edgepack_targets.pipeline.feed import run_samples
from edgepack_targets.quantization import require_effect

__all__ = [
    "diagnoses",
    "excludes_what_it_names",
    "makes_every_precision",
    "quantizes",
    "quantizes_the_same_again",
    "refuses_other_precisions",
    "refuses_other_settings",
    "refuses_wrong_calibration",
]

MIN_INT8_SHARE = 0.95
"""Of samples with the same decision in int8 as in the source; an accuracy gate is stricter."""
SMALLER = 0.35
"""int8 files are at most this share of fp32 ones, for a model of mostly weights."""
SIZES = {"fp16": 0.6, "bf16": 0.6, "int8": SMALLER, "w8": SMALLER, "w4": SMALLER}
PRECISIONS = ("fp16", "bf16", "int8", "w8", "w4")
FEATURES = ("avx512_bf16", "amx_bf16")
"""What a manifest may require; a target refuses bf16 without one of them."""
SETTINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"method": "dynamic"},
    "per_tensor": {"per_channel": False},
    "minmax": {"ranges": "minmax"},
    "entropy": {"ranges": "entropy"},
    "percentile": {"ranges": "percentile"},
    "smooth": {"smooth": True},
    "bias_full": {"bias_correction": "full"},
    "bias_none": {"bias_correction": "none"},
    "exclude": {"exclude": ("edgepack-unknown",)},
    "int8_io": {"io": "int8"},
}


def quantizes(subject: Subject, tmp_path: Path) -> None:
    """int8 is really int8, is much smaller, and decides like the source."""
    done = subject.quantize(tmp_path)
    assert done["samples"] > 0, "no samples were used"
    assert {"method", "seed", "tools"} <= done.keys(), "what was done is not reported"
    before = subject.target.applied(subject.model_dir)
    after = subject.target.applied(tmp_path)
    assert before["quantized_operators"] == 0, "fp32 claims quantised operators"
    assert after["quantized_operators"] > 0, "no operator is quantised"
    assert after["int8_share"] > 0.9, f"only {after['int8_share']:.0%} of the weights are int8"
    assert size(tmp_path) <= SMALLER * size(subject.model_dir), "the files are too large"
    session = subject.load(model_dir=tmp_path)
    got = run_samples(session, subject.manifest, subject.samples)
    session.close()
    rule = msgspec.structs.replace(
        subject.manifest.agreement, min_share=MIN_INT8_SHARE, min_cosine=-1.0
    )
    judged = msgspec.structs.replace(subject.manifest, agreement=rule)
    verdict = agree(judged, subject.expected, got)
    assert verdict.passed, f"only {verdict.share:.0%} of the decisions are the source's"


def quantizes_the_same_again(subject: Subject, tmp_path: Path) -> None:
    """The same calibration and seed give the same bytes, or at least the same answers."""
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        subject.quantize(tmp_path / name)
    same_models(subject, tmp_path / "once", tmp_path / "again")


def refuses_wrong_calibration(subject: Subject, tmp_path: Path) -> None:
    """Calibration with a wrong name, shape, dtype or without samples is one clear error."""
    good = subject.native_calibration()
    name, array = next(iter(good.items()))
    wrong = {
        "a missing input": {},
        "an unknown input": good | {"edgepack-unknown": array},
        "a wrong shape": good | {name: array[..., None]},
        "a wrong dtype": good | {name: array.astype(np.int64)},
        "no samples": {key: value[:0] for key, value in good.items()},
    }
    for what, calibration in wrong.items():
        error = refused(
            UsageError,
            what,
            partial(subject.quantize, tmp_path, calibration),
        )
        assert name in error.fix, f"{what}: the message does not say what is expected"
    assert not files(tmp_path), "something was written"


def makes_every_precision(subject: Subject, tmp_path: Path) -> None:
    """Every precision of the capability is really in the model, makes it smaller, and runs."""
    for name in _others(subject.target.capability().precisions, {"fp32"}):
        how = Quantization(name, cpu_features=FEATURES)
        (tmp_path / name).mkdir()
        subject.quantize(tmp_path / name, how=how)
        require_effect(subject.target.name, how, subject.target.applied(tmp_path / name))
        share = size(tmp_path / name) / size(subject.model_dir)
        assert share <= SIZES[name], f"{name} files are {share:.0%} of fp32 ones"
        _decides(subject, tmp_path / name, name)


def refuses_other_precisions(subject: Subject, tmp_path: Path) -> None:
    """A precision that is not in the capability is refused, and nothing is written."""
    for name in _others(PRECISIONS, set(subject.target.capability().precisions)):
        how = Quantization(name, cpu_features=FEATURES)
        _refused_by(subject, name, tmp_path, how)


def refuses_other_settings(subject: Subject, tmp_path: Path) -> None:
    """A setting that is not in the capability is refused, never ignored."""
    for option, fields in SETTINGS.items():
        if option not in subject.target.capability().options:
            _refused_by(subject, option, tmp_path, Quantization("int8", **fields))


def diagnoses(subject: Subject, tmp_path: Path) -> None:
    """Layers have a name each, and a loss; a model compared with itself has lost nothing."""
    if subject.target.capability().built_from:
        return
    samples = {name: array[:16] for name, array in subject.native_calibration().items()}
    same = subject.target.diagnose(subject.model_dir, subject.model_dir, samples)
    assert same, "there are no layers"
    assert max(layer.loss for layer in same) == 0, "a model differs from itself"
    subject.quantize(tmp_path)
    found = subject.target.diagnose(subject.model_dir, tmp_path, samples)
    losses = [layer.loss for layer in found]
    assert losses == sorted(losses, reverse=True), "the worst layer does not come first"
    assert 0 < losses[0] < 1, f"a loss of {losses[0]}"
    assert len({layer.name for layer in found}) == len(found), "two layers have one name"
    assert {layer.name for layer in found} <= {layer.name for layer in same}, "a name is new"


def excludes_what_it_names(subject: Subject, tmp_path: Path) -> None:
    """The worst layer can be kept in float by the name it was given, and unknown ones cannot."""
    target = subject.target
    if target.capability().built_from or "exclude" not in target.capability().options:
        return
    samples = {name: array[:16] for name, array in subject.native_calibration().items()}
    for name in ("all", "less"):
        (tmp_path / name).mkdir()
    subject.quantize(tmp_path / "all")
    worst = target.diagnose(subject.model_dir, tmp_path / "all", samples)[0]
    subject.quantize(tmp_path / "less", how=Quantization("int8", exclude=(worst.name,)))
    before, after = (target.applied(tmp_path / name) for name in ("all", "less"))
    more = after["float_weights"] - before["float_weights"]
    assert more > 0, f"{worst.name} is quantised all the same"
    unknown = Quantization("int8", exclude=("edgepack-unknown",))
    refused(UsageError, "an unknown layer", partial(subject.quantize, tmp_path, how=unknown))


def _others(names: Iterable[str], without: set[str]) -> list[Any]:
    return [name for name in names if name not in without]


def _refused_by(subject: Subject, what: str, out_dir: Path, how: Quantization) -> None:
    call = partial(
        subject.target.quantize, subject.model_dir, out_dir, how, subject.native_calibration()
    )
    refused(UnsupportedError, what, call)
    assert not files(out_dir), "something was written"


def _decides(subject: Subject, model_dir: Path, precision: str) -> None:
    """Assert that the model decides like the source, if this machine executes its precision."""
    target = msgspec.structs.replace(
        subject.manifest.target, execution_precision="bf16" if precision == "bf16" else "f32"
    )
    manifest = msgspec.structs.replace(subject.manifest, target=target)
    try:
        session = subject.load(manifest, model_dir)
    except UnsupportedError:
        if precision != "bf16":
            raise
        return  # this machine has no bf16, and says so
    got = run_samples(session, manifest, subject.samples)
    session.close()
    rule = msgspec.structs.replace(manifest.agreement, min_share=MIN_INT8_SHARE, min_cosine=-1.0)
    judged = msgspec.structs.replace(subject.manifest, agreement=rule)
    verdict = agree(judged, subject.expected, got)
    assert verdict.passed, f"only {verdict.share:.0%} of {precision}'s decisions are the source's"
