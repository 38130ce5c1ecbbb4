"""Detect, segment, embed: from a recipe to answers, the same on the host and on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepack.bundle import open_bundle
from edgepack_agent.runner.model import LoadedModel
from edgepack_agent.runner.setup import Setup
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.runner.statistics import Statistics
from edgepack_targets.pipeline.baseline import read_baseline
from packager_rig import edgepack
from task_models import SIDE, blob_detector, describing, recipe_of, segmenter

MODELS = {
    "detect": lambda path: blob_detector(path, (1 / 3, 1 / 3, 1 / 3)),
    "segment": segmenter,
    "embed": describing,
}
TARGETS = ("onnx", "openvino")


def scene(path: Path, *, size: tuple[int, int] = (400, 300)) -> Path:
    """Write a dark picture with two bright squares and a red one."""
    picture = Image.new("RGB", size, (16, 16, 16))
    for left, top, side, color in (
        (40, 50, 76, (250, 250, 250)), (220, 150, 126, (240, 240, 240)), (300, 20, 60, (200, 0, 0)),
    ):  # fmt: skip
        picture.paste(color, (left, top, left + side, top + side))
    picture.save(path)
    return path


@pytest.fixture(scope="module", params=sorted(MODELS))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Path]]:
    home = tmp_path_factory.mktemp(request.param)
    task = request.param
    model = MODELS[task](home / "model.onnx")
    words = [word for target in TARGETS for word in ("--target", target)]
    done = edgepack(
        "build", model, "--recipe", recipe_of(task, home / "recipe.yaml"), "--name", task,
        *words, "--unsigned", "--out", home, "--json", cwd=home,
    )  # fmt: skip
    assert done.code == 0, done.err
    return task, {target: Path(done.bundle(target, "fp32")["path"]) for target in TARGETS}


def on_host(bundle: Path, picture: Path, home: Path) -> dict[str, Any]:
    seen = home / "seen"
    words = ("--source", picture, "--annotate", seen, "--threads", "1")
    done = edgepack("run", bundle, *words, "--json", cwd=home)
    assert done.code == 0, done.err
    (result,) = done.document["results"]
    with Image.open(result["annotated"]) as drawn, Image.open(picture) as plain:
        assert drawn.size == plain.size
    answer: dict[str, Any] = result["answer"]
    return answer


def on_device(bundle: Path, picture: Path, home: Path) -> dict[str, Any]:
    with open_bundle(bundle) as opened:
        opened.extract(home / "slot")
    model = LoadedModel(open_slot(home / "slot"), Setup(threads=1), Statistics(), lambda: None)
    said = model.look(picture.read_bytes())
    assert said.pop("digest") == model.digest
    assert said.pop("ms") > 0
    return said


def test_host_and_device_say_exactly_the_same(
    built: tuple[str, dict[str, Path]], tmp_path: Path
) -> None:
    task, bundles = built
    picture = scene(tmp_path / "scene.png")
    answers = {}
    for target, bundle in bundles.items():
        home = tmp_path / target
        home.mkdir()
        answers[target] = on_host(bundle, picture, home)
        assert on_device(bundle, picture, home) == answers[target]
    CHECKS[task](answers["onnx"])
    CHECKS[task](answers["openvino"])


def check_objects(answer: dict[str, Any]) -> None:
    """Two squares, each found once, within half a step of the detector's grid on the picture."""
    step = 8 * 400 / SIDE
    boxes = sorted(one["box"] for one in answer["objects"])
    assert len(boxes) == 2
    for box, expected in zip(boxes, ([40, 50, 116, 126], [220, 150, 346, 276]), strict=True):
        assert np.abs(np.array(box) - expected).max() <= step / 2 + 2
    assert {one["label"] for one in answer["objects"]} == {"spot"}


def check_regions(answer: dict[str, Any]) -> None:
    assert answer["size"] == [400, 300]
    shares = {region["label"]: region["share"] for region in answer["regions"]}
    assert shares["bright"] == pytest.approx((76**2 + 126**2) / 120_000, abs=0.01)
    assert shares["red"] == pytest.approx(60**2 / 120_000, abs=0.01)


def check_vector(answer: dict[str, Any]) -> None:
    assert answer["size"] == 48
    assert np.linalg.norm(answer["vector"]) == pytest.approx(1, abs=1e-4)


CHECKS = {"detect": check_objects, "segment": check_regions, "embed": check_vector}


def test_the_manifest_judges_by_the_rule_of_its_task(built: tuple[str, dict[str, Path]]) -> None:
    task, bundles = built
    with open_bundle(bundles["onnx"]) as bundle:
        agreement, baseline = bundle.manifest.agreement, read_baseline(bundle.manifest.drift)
    assert agreement.rule == {"detect": "f1", "segment": "miou", "embed": "cosine"}[task]
    assert baseline
    assert baseline.inputs["image"]["mean"].counts, "a device can hold what it sees against it"
    assert sum(baseline.inputs["image"]["sharpness"].counts) == sum(
        baseline.inputs["image"]["mean"].counts
    )


@pytest.mark.parametrize(
    ("task", "postprocess", "reason"),
    [
        ("detect", "", "nothing says how the outputs"),
        ("detect", "{decoder: yolo, output: nowhere}", "which is not there"),
        ("detect", "{decoder: ssd, boxes: found, scores: nowhere}", "which is not there"),
        ("detect", "{decoder: yolo, nms: 3}", "nms"),
        ("segment", "{output: found, threshold: 7}", "threshold"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_with_what_to_do(
    tmp_path: Path, task: str, postprocess: str, reason: str
) -> None:
    model = blob_detector(tmp_path / "model.onnx", (1, 0, 0))
    recipe = tmp_path / "recipe.yaml"
    said = f"  postprocess: {postprocess}\n" if postprocess else ""
    recipe.write_text(f"model:\n  task: {task}\n{said}")
    words = ("--recipe", recipe, "--target", "onnx", "--unsigned", "--out", tmp_path / "out")
    done = edgepack("build", model, *words, cwd=tmp_path)
    assert done.code == 2
    assert reason in done.err
    assert not list(tmp_path.rglob("*.edgepack"))
