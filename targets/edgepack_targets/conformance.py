"""The suite that any target plugin, ours or a stranger's, runs against itself. Needs no pytest.

A plugin's author gives a `Subject`: the plugin, a trained fp32 model that it converted, and
what the source model answers. Each check in `CHECKS` takes the subject and an empty directory
and raises AssertionError with a sentence. With pytest:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check, subject, tmp_path):
        check(subject, tmp_path)
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from shutil import copytree
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.errors import EdgepackError, IntegrityError, UnsupportedError, UsageError
from edgepack.manifest import Binding, Manifest, TensorSpec
from edgepack_targets import registry
from edgepack_targets.annotation import facts_of
from edgepack_targets.conformance_precisions import (
    diagnoses,
    excludes_what_it_names,
    makes_every_precision,
    quantizes,
    quantizes_the_same_again,
    refuses_other_precisions,
    refuses_other_settings,
    refuses_wrong_calibration,
)
from edgepack_targets.conformance_subject import (
    Check,
    Subject,
    files,
    refused,
    same_answers,
    same_models,
)
from edgepack_targets.interface import MODEL_FILES, Target
from edgepack_targets.pipeline.agreement import agree
from edgepack_targets.pipeline.feed import run_samples

__all__ = [
    "CHECKS",
    "Check",
    "Subject",
    "quantizes",
    "quantizes_the_same_again",
    "refuses_wrong_calibration",
]

Array = NDArray[Any]
MIN_FP32_COSINE = 0.99999
CALLS = 24


def is_registered(subject: Subject, _: Path) -> None:
    """The plugin is found by its name, and its name is that of its manifests."""
    assert registry.find(subject.target.name) is subject.target, "another plugin has this name"
    assert subject.target.name in MODEL_FILES, "the manifest has no such runtime"


def knows_its_version(subject: Subject, _: Path) -> None:
    """The reported version is the installed distribution's."""
    installed = distribution_version(subject.distribution)
    assert subject.target.version() == installed, f"it is {installed}"
    assert registry.installed()[subject.target.name] == installed, "the inventory differs"


def describes_what_is_bound(subject: Subject, _: Path) -> None:
    """Every native input and the bound outputs are described with the types of the manifest."""
    inputs, outputs = subject.target.describe(subject.model_dir)
    bound = {spec.binding.native_name: spec.dtype for spec in subject.manifest.inputs}
    assert {native.name: native.dtype for native in inputs} == bound, "inputs differ"
    dtypes = {native.name: native.dtype for native in outputs}
    for spec in subject.manifest.outputs:
        assert dtypes.get(spec.binding.native_name) == spec.dtype, f"output {spec.name} differs"


def speaks_public_names_and_layouts(subject: Subject, _: Path) -> None:
    """A session takes and returns the public names, shapes and dtypes."""
    session = subject.load()
    outputs = session.run(subject.first())
    session.close()
    for spec in subject.manifest.outputs:
        got = outputs[spec.name]
        wanted = tuple(max(size, 1) for size in spec.shape)
        assert (got.shape, got.dtype.name) == (wanted, spec.dtype), f"{spec.name}: {got.shape}"
    assert len(outputs) == len(subject.manifest.outputs), "there are more outputs than public ones"


def answers_like_the_source(subject: Subject, _: Path) -> None:
    """fp32 gives the source's answers: the same decisions, nearly the same numbers."""
    session = subject.load()
    got = run_samples(session, subject.manifest, subject.samples)
    session.close()
    rule = msgspec.structs.replace(
        subject.manifest.agreement, min_share=1.0, min_cosine=MIN_FP32_COSINE
    )
    judged = msgspec.structs.replace(subject.manifest, agreement=rule)
    verdict = agree(judged, subject.expected, got)
    assert verdict.passed, f"share {verdict.share}, cosine {verdict.cosine}"


def permutes(subject: Subject, _: Path) -> None:
    """Public layouts that differ from the native ones change nothing but the layout."""
    plain = subject.load()
    expected = plain.run(subject.first())
    plain.close()
    turned = _turned(subject.manifest)
    session = subject.load(turned)
    got = session.run(
        {
            spec.name: np.ascontiguousarray(subject.samples[spec.name][:1].T)
            for spec in subject.manifest.inputs
        }
    )
    session.close()
    for name, array in expected.items():
        assert np.array_equal(got[name].T, array), f"{name} differs"


def reports_what_it_runs_with(subject: Subject, _: Path) -> None:
    """`effective` has the version, the precision that was asked for, a device and threads."""
    session = subject.load()
    effective = session.effective
    session.close()
    assert effective.version == subject.target.version(), "the version differs"
    assert effective.precision == subject.manifest.target.execution_precision, effective.precision
    assert effective.device, "no device"
    assert effective.threads == 1, "the number of threads was not set"


def refuses_wrong_inputs(subject: Subject, _: Path) -> None:
    """A wrong name, shape, dtype or kind is one error that lists what is expected."""
    session = subject.load()
    spec, good = subject.manifest.inputs[0], subject.first()
    array = good[spec.name]
    other = "uint8" if spec.dtype != "uint8" else "float32"
    wrong: dict[str, dict[str, Any]] = {
        "a missing input": {},
        "an unknown input": good | {"edgepack-unknown": array},
        "a wrong shape": good | {spec.name: array[..., None]},
        "a wrong size": good | {spec.name: np.concatenate([array, array], axis=-1)},
        "a wrong dtype": good | {spec.name: array.astype(other)},
        "a list": good | {spec.name: array.tolist()},
    }
    for what, inputs in wrong.items():
        error = refused(UsageError, what, partial(session.run, inputs))
        for part in (spec.name, spec.dtype, str(spec.shape[-1])):
            assert part in error.fix, f"{what}: the message does not say `{part}`"
    session.run(good)
    session.close()


def is_deterministic(subject: Subject, _: Path) -> None:
    """Two sessions give the same bits, in any order of samples."""
    first, second = subject.load(), subject.load()
    once = run_samples(first, subject.manifest, subject.samples)
    flipped = {name: array[::-1] for name, array in subject.samples.items()}
    again = run_samples(second, subject.manifest, flipped)
    first.close()
    second.close()
    for name, array in once.items():
        assert np.array_equal(array, again[name][::-1]), f"{name} differs"


def keeps_earlier_answers(subject: Subject, _: Path) -> None:
    """An answer is the caller's own: the next call does not change it, nor the input."""
    session = subject.load()
    inputs = subject.first()
    before = {name: array.copy() for name, array in inputs.items()}
    answer = session.run(inputs)
    kept = {name: array.copy() for name, array in answer.items()}
    session.run({name: array[1:2] for name, array in subject.samples.items()})
    session.close()
    assert all(np.array_equal(kept[name], array) for name, array in answer.items()), "it changed"
    assert all(np.array_equal(before[n], array) for n, array in inputs.items()), "input changed"


def takes_any_memory_order(subject: Subject, _: Path) -> None:
    """Inputs that are views, transposed or read-only give the same answer."""
    session = subject.load()
    expected = session.run(subject.first())
    odd = {name: np.asfortranarray(array[:1]) for name, array in subject.samples.items()}
    for array in odd.values():
        array.flags.writeable = False
    got = session.run(odd)
    session.close()
    assert all(np.array_equal(got[name], array) for name, array in expected.items()), "it differs"


def may_be_called_from_threads(subject: Subject, _: Path) -> None:
    """Calls from several threads give the answers of calls one after the other."""
    session = subject.load()
    count = len(next(iter(subject.samples.values())))
    feeds = [
        {name: array[i % count : i % count + 1] for name, array in subject.samples.items()}
        for i in range(CALLS)
    ]
    expected = [session.run(feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(session.run, feeds))
    session.close()
    for one, other in zip(expected, got, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one), "an answer differs"


def closes(subject: Subject, _: Path) -> None:
    """A closed session can be closed again and refuses to run."""
    session = subject.load()
    session.close()
    session.close()
    try:
        session.run(subject.first())
    except RuntimeError:
        return
    raise AssertionError("a closed session ran")


def refuses_what_it_cannot_run(subject: Subject, tmp_path: Path) -> None:
    """A damaged or missing model, a foreign binding, a too old runtime: one clear error each."""
    target = subject.manifest.target
    newer = msgspec.structs.replace(target, min_runtime="99999.0")
    other = msgspec.structs.replace(target, execution_precision="no-such")
    stranger = Binding(native_name="edgepack-unknown")
    unbound = msgspec.structs.replace(subject.manifest.outputs[0], binding=stranger)
    replace = msgspec.structs.replace
    cases: list[tuple[str, type[EdgepackError], Manifest, Path]] = [
        ("missing", IntegrityError, subject.manifest, tmp_path),
        ("damaged", IntegrityError, subject.manifest, _damaged(subject, tmp_path / "damaged")),
        ("too old", UnsupportedError, replace(subject.manifest, target=newer), subject.model_dir),
        ("precision", UnsupportedError, replace(subject.manifest, target=other), subject.model_dir),
        (
            "unbound",
            IntegrityError,
            replace(subject.manifest, outputs=(unbound,)),
            subject.model_dir,
        ),
    ]
    for what, kind, manifest, model_dir in cases:
        refused(kind, what, partial(subject.load, manifest, model_dir))


def carries_facts(subject: Subject, tmp_path: Path) -> None:
    """Facts written into a model are read back, change no answer, and can be replaced."""

    def annotate(facts: Mapping[str, Any], target: Target, old: Path, new: Path) -> None:
        copytree(old, new, dirs_exist_ok=True)
        target.annotate(new, {"name": "older", "labels": ["x"]})
        target.annotate(new, facts)

    facts = facts_of(subject.manifest) | {"license": "Apache-2.0", "labels": ["a b", "\u00e9"]}
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        subject.make(tmp_path / name, partial(annotate, facts))
    main = MODEL_FILES[subject.target.name][0]
    assert subject.target.annotations(tmp_path / "once" / main) == facts, "they are not read back"
    assert "name" not in subject.target.annotations(subject.model_dir / main), "facts of nobody"
    same_models(subject, tmp_path / "once", tmp_path / "again")
    same_answers(subject, subject.model_dir, tmp_path / "once")


def refuses_a_route_it_has_not(subject: Subject, tmp_path: Path) -> None:
    """A source format that is not in `capability` is refused, and nothing is written."""
    source = subject.model_dir / MODEL_FILES[subject.target.name][0]
    refused(
        UnsupportedError,
        "an unknown route",
        partial(subject.target.convert, source, "no-such-format", tmp_path),
    )
    assert not files(tmp_path), "something was written"


CHECKS: tuple[Check, ...] = (
    is_registered,
    knows_its_version,
    describes_what_is_bound,
    speaks_public_names_and_layouts,
    answers_like_the_source,
    permutes,
    reports_what_it_runs_with,
    refuses_wrong_inputs,
    is_deterministic,
    keeps_earlier_answers,
    takes_any_memory_order,
    may_be_called_from_threads,
    closes,
    refuses_what_it_cannot_run,
    quantizes,
    quantizes_the_same_again,
    refuses_wrong_calibration,
    makes_every_precision,
    refuses_other_precisions,
    refuses_other_settings,
    diagnoses,
    excludes_what_it_names,
    carries_facts,
    refuses_a_route_it_has_not,
)


def _turned(manifest: Manifest) -> Manifest:
    """Return MANIFEST with all axes of all public tensors in reverse order."""
    return msgspec.structs.replace(
        manifest,
        inputs=tuple(_turn(spec) for spec in manifest.inputs),
        outputs=tuple(_turn(spec) for spec in manifest.outputs),
    )


def _turn(spec: TensorSpec) -> TensorSpec:
    last = len(spec.shape) - 1
    order = spec.binding.permutation or tuple(range(last + 1))
    binding = Binding(
        native_name=spec.binding.native_name, permutation=tuple(last - axis for axis in order)
    )
    return msgspec.structs.replace(spec, shape=spec.shape[::-1], binding=binding)


def _damaged(subject: Subject, directory: Path) -> Path:
    """Return DIRECTORY with a model of which the main file is cut in half."""
    directory.mkdir()
    names = MODEL_FILES[subject.target.name]
    for name in names:
        data = (subject.model_dir / name).read_bytes()
        (directory / name).write_bytes(data[: len(data) // 2] if name == names[0] else data)
    return directory
