"""The suite would notice: plugins that are wrong in one way each fail the check for it."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import OUTPUT
from digits_targets import subject
from edgepack_targets import conformance
from edgepack_targets.conformance import Check
from edgepack_targets.interface import Effective, Session

Arrays = dict[str, np.ndarray]


class Wrong:
    """A session that is right in everything that a test does not change."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.calls = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.calls += 1
        return self.inner.run(inputs)

    @property
    def effective(self) -> Effective:
        return self.inner.effective

    def close(self) -> None:
        self.inner.close()


class Drifts(Wrong):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        noise = np.float32(1e-6 * self.calls)
        return {name: array + noise for name, array in super().run(inputs).items()}


class Reuses(Wrong):
    buffer: Arrays | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        answer = super().run(inputs)
        self.buffer = self.buffer or answer
        for name, array in answer.items():
            self.buffer[name][...] = array
        return self.buffer


class Casts(Wrong):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return super().run({name: np.asarray(a, np.float32) for name, a in inputs.items()})


class Mixes(Wrong):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return {name: array[:, ::-1] for name, array in super().run(inputs).items()}


class Flat(Wrong):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return {name: array[0] for name, array in super().run(inputs).items()}


class Talks(Wrong):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return super().run(inputs) | {"debug": np.zeros(1)}


class Lies(Wrong):
    @property
    def effective(self) -> Effective:
        return replace(self.inner.effective, precision="bf16")


class NeverCloses(Wrong):
    def close(self) -> None:
        return None


class Plugin:
    """The onnx target with one thing wrong."""

    def __init__(self, wrong: type[Wrong] = Wrong) -> None:
        self.inner, self.wrong = subject("onnx").target, wrong

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def load(self, *args: Any, **kwargs: Any) -> Wrong:
        return self.wrong(self.inner.load(*args, **kwargs))


class OnlyCopies(Plugin):
    def quantize(self, model_dir: Path, out_dir: Path, *_: object, **__: object) -> dict[str, Any]:
        shutil.copytree(model_dir, out_dir, dirs_exist_ok=True)
        return {"method": "none", "samples": 1, "seed": 0, "tools": {}}


class Random(Plugin):
    def quantize(self, model_dir: Path, out_dir: Path, *args: Any, **kw: Any) -> dict[str, Any]:
        done: dict[str, Any] = self.inner.quantize(model_dir, out_dir, *args, **kw)
        (out_dir / "stamp").write_bytes(np.random.default_rng().bytes(8))
        return done


class TakesAnything(Plugin):
    def convert(self, source: Path, _: str, out_dir: Path, **__: object) -> None:
        shutil.copy(source, out_dir)

    def quantize(self, *_: object, **__: object) -> dict[str, Any]:
        return {}

    def version(self) -> str:
        return "0.0"


@pytest.mark.parametrize(
    ("plugin", "check"),
    [
        (Plugin(Drifts), conformance.is_deterministic),
        (Plugin(Drifts), conformance.may_be_called_from_threads),
        (Plugin(Reuses), conformance.keeps_earlier_answers),
        (Plugin(Casts), conformance.refuses_wrong_inputs),
        (Plugin(Mixes), conformance.answers_like_the_source),
        (Plugin(Flat), conformance.speaks_public_names_and_layouts),
        (Plugin(Talks), conformance.speaks_public_names_and_layouts),
        (Plugin(Lies), conformance.reports_what_it_runs_with),
        (Plugin(NeverCloses), conformance.closes),
        (OnlyCopies(), conformance.quantizes),
        (Random(), conformance.quantizes_the_same_again),
        (TakesAnything(), conformance.refuses_a_route_it_has_not),
        (TakesAnything(), conformance.refuses_wrong_calibration),
        (TakesAnything(), conformance.knows_its_version),
        (Plugin(), conformance.is_registered),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_wrong_plugin_fails(plugin: Any, check: Check, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(replace(subject("onnx"), target=plugin), tmp_path)


def test_a_right_plugin_behind_another_passes(tmp_path: Path) -> None:
    behind = replace(subject("onnx"), target=Plugin())
    for check in conformance.CHECKS:
        if check is not conformance.is_registered:
            (tmp_path / check.__name__).mkdir()
            check(behind, tmp_path / check.__name__)


def test_answers_of_another_model_fail(tmp_path: Path) -> None:
    expected = {OUTPUT: np.roll(subject("onnx").expected[OUTPUT], 1, axis=0)}
    with pytest.raises(AssertionError):
        conformance.answers_like_the_source(replace(subject("onnx"), expected=expected), tmp_path)


def test_a_binding_that_does_not_turn_back_fails(tmp_path: Path) -> None:
    one = subject("tflite")
    target = Plugin(Wrong)
    target.inner = one.target

    class Stays(Wrong):
        def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
            return {name: np.sort(array.ravel()) for name, array in super().run(inputs).items()}

    target.wrong = Stays
    with pytest.raises(AssertionError):
        conformance.speaks_public_names_and_layouts(replace(one, target=target), tmp_path)
