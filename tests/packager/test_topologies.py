"""Real topologies, from the wheel of `onnx`, on every target: fp32 like the source, int8 that runs.

The oddest of them, with grouped convolutions and shuffled channels, is part of every run. The rest
is marked: `scale` takes minutes, `onnx2tf` needs the toolchain of that name.
"""

from pathlib import Path

import numpy as np
import pytest

from light_models import NAMES, answers, light_model, pictures
from packager_rig import Done, edgepack

ODDEST = "shufflenet"
WANTED = ("squeezenet", ODDEST, "inception_v1")
OTHERS = tuple(name for name in NAMES if name not in WANTED)
SAMPLES = 4


def sets() -> list[object]:
    """Return (topology, targets) of every build, marked by what it costs."""
    plain = ("onnx", "openvino")
    slow = pytest.mark.scale
    return [
        pytest.param(ODDEST, plain, id=ODDEST, marks=slow),
        *(
            pytest.param(name, plain, id=name, marks=slow)
            for name in (*WANTED, *OTHERS)
            if name != ODDEST
        ),
        *(
            pytest.param(name, ("tflite",), id=f"{name}-tflite", marks=pytest.mark.onnx2tf)
            for name in WANTED
        ),
        *(
            pytest.param(name, ("tflite",), id=f"{name}-tflite", marks=[pytest.mark.onnx2tf, slow])
            for name in OTHERS
        ),
    ]


def with_cost(names: tuple[str, ...]) -> list[object]:
    return [n if n in WANTED else pytest.param(n, marks=pytest.mark.scale) for n in names]


@pytest.mark.parametrize("name", with_cost(NAMES))
def test_seeded_weights_tell_pictures_and_classes_apart(name: str) -> None:
    model = light_model(name)
    rows = answers(model, pictures(SAMPLES)).reshape(SAMPLES, -1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = (unit @ unit.T)[np.triu_indices(SAMPLES, 1)]
    assert np.median(likeness) < 0.95
    assert (rows.max(axis=1) > 1.3 * rows.mean(axis=1)).all()
    assert len(set(rows.argmax(axis=1))) > 1
    assert model.SerializeToString() == light_model(name).SerializeToString()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "targets"), sets())
def test_topology_builds_and_runs(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    model = light_model(name)
    (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    asked = pictures(SAMPLES)
    key = next(v.name for v in model.graph.input if v.name.endswith("data_0"))
    np.savez(tmp_path / "x.npz", **{key: asked})
    np.savez(tmp_path / "calibration.npz", **{key: pictures(8, seed=5)})
    words = [word for target in targets for word in ("--target", target)]
    done = edgepack(
        "build", f"{name}.onnx", *words, "--precision", "fp32", "--precision", "int8",
        "--calibration", "calibration.npz", "--unsigned", "--no-cache", "--json", cwd=tmp_path,
        timeout=800,
    )  # fmt: skip
    assert done.code == 0, done.err
    truth = answers(model, asked).reshape(SAMPLES, -1)
    for target in targets:
        check(done, target, truth, tmp_path)


def check(done: Done, target: str, truth: np.ndarray, home: Path) -> None:
    """Check that fp32 of TARGET answers as the source does, and that int8 is small and runs."""
    plain, small = done.bundle(target, "fp32"), done.bundle(target, "int8")
    assert plain["parity"]["cosine"] >= 0.9999
    assert small["model_bytes"] < 0.45 * plain["model_bytes"]
    # Weights that nobody trained decide by a hair: how far int8 is away differs by CPU and release.
    for bundle, lowest in ((plain, 0.9999), (small, 0.2)):
        ran = edgepack("run", bundle["path"], "--input", "x.npz", "--out", "y.npz", cwd=home)
        assert ran.code == 0, ran.err
        with np.load(home / "y.npz") as data:
            rows = next(iter(data.values())).reshape(SAMPLES, -1)
        assert np.isfinite(rows).all()
        size = np.linalg.norm(rows, axis=1) * np.linalg.norm(truth, axis=1)
        assert ((rows * truth).sum(axis=1) / size).mean() >= lowest
