"""Recipe files, labels and preprocessing settings: read strictly, no key ignored."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.errors import EdgepackError, UsageError
from edgepack_packager.adapters import cards

RECIPE = """
model:
  task: classify
  labels: names.txt
  license: Apache-2.0
  preprocess: {input: image, color: gray, mean: 0.5, std: [0.25]}
  postprocess: {decoder: softmax, output: logits, activation: softmax, top_k: 3}
"""

STEPS = """
train: train.npz
steps:
  - cluster: {clusters: 16}
  - prune: {kind: magnitude, sparsity: 0.5}
  - quantize: {ranges: entropy, exclude: [first, last]}
  - low_rank: {rank: 0.5, epochs: 1}
"""


def test_whole_recipe(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\n dog \n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    card = cards.read_recipe(tmp_path / "r.yaml").card
    assert card.task == "classify"
    assert card.labels == ("cat", "dog")
    assert card.license == "Apache-2.0"
    assert card.preprocess is not None
    assert card.preprocess.mean == (0.5,)
    assert card.preprocess.color == "gray"
    assert card.postprocess is not None
    assert card.postprocess.top_k == 3


def test_labels_may_be_a_list(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {labels: [0, 1, two]}")
    assert cards.read_recipe(tmp_path / "r.yaml").card.labels == ("0", "1", "two")


@pytest.mark.parametrize(
    "text",
    [
        "model: {colour: gray}",
        "models: {}",
        "model: [1]",
        "[1, 2]",
        "model: {task: guess}",
        "model: {preprocess: {color: pink}}",
        "model: {preprocess: {input: x, extra: 1}}",
        "model: {preprocess: 3}",
        "model: {preprocess: {input: x, scale: 0}}",
        "model: {preprocess: {input: x, std: [1, 0, 1]}}",
        "model: {preprocess: {input: x, mean: .nan}}",
        "model: {preprocess: {input: x, scale: .inf}}",
        "model: {preprocess: {input: x, mean: [1, 2]}}",
        "model: {preprocess: {input: x, color: gray, std: [1, 2, 3]}}",
        "model: {postprocess: {top_k: 0}}",
        "model: {labels: nowhere.txt}",
        "model: {a: b: c}",
        "model: {license: [1]}",
        "steps: [prune]",
        "steps: {prune: {}}",
        "steps: [{prune: {}}]",
        "steps: [{shrink: {}}]",
        "steps: [{cluster: {clusters: 16}}, {cluster: {clusters: 8}}]",
        "steps: [{quantize: {}}, {quantize: {}}]",
        "steps: [{quantize: {ranges: widest}}]",
        "steps: [{quantize: {precision: int8}}]",
        "train: [a.npz]",
        "model: {labels: {a: 1}}",
        "just text",
        "",
    ],
)
def test_bad_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError):
        cards.read_recipe(tmp_path / "r.yaml")


def test_steps_are_read_in_the_order_that_works(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(STEPS)
    recipe = cards.read_recipe(tmp_path / "r.yaml")
    assert [step.kind for step in recipe.compression] == ["low_rank", "prune_magnitude", "cluster"]
    assert recipe.train == tmp_path / "train.npz"
    assert recipe.settings == {"ranges": "entropy", "exclude": ("first", "last")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text, newline="")
    for read in (cards.read_recipe, cards.read_labels):
        try:
            read(tmp_path / "r.yaml")
        except EdgepackError:
            continue


def test_preprocess_from_a_flag_or_a_file(tmp_path: Path) -> None:
    said = '{"color": "gray", "scale": 1}'
    (tmp_path / "p.json").write_text(said)
    assert cards.preprocess(said) == cards.preprocess(str(tmp_path / "p.json"))
    with pytest.raises(UsageError):
        cards.preprocess('{"color": ')


def test_empty_labels(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="no labels"):
        cards.read_labels(tmp_path / "l.txt")


@pytest.mark.parametrize(
    "text",
    [
        "steps: [{quantize: {ranges: entropy}, cluster: {clusters: 16}}]",
        "steps: [{}]",
        "model: {task: classify, task: raw}",
        "model: {labels: [yes, no]}",
        "model: {labels: [cat, ]}\nsteps: [{a: 1, b: 2}]",
        "model: {labels: [cat, null]}",
        'model: {labels: ["two\\nlines"]}',
        'model: {labels: [""]}',
    ],
)
def test_what_would_be_dropped_or_misread_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        cards.read_recipe(tmp_path / "r.yaml")
    assert caught.value.reason == "bad_recipe"
