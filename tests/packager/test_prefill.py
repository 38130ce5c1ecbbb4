"""What a source says about itself fills in what its user leaves out, and only that."""

from typing import Any

import pytest

from edgepack.manifest import Preprocess
from edgepack_packager.core.binding import Public
from edgepack_packager.core.prefill import prefilled
from edgepack_packager.core.recipe import ModelCard

IMAGE = Public("image", "image", (1, 3, 8, 8), "float32")
SCORES = Public("scores", "scores", (1, 2), "float32")
FACTS: dict[str, Any] = {
    "labels": ["cat", "dog"],
    "license": "MIT",
    "task": "classify",
    "preprocess": {"input": "", "color": "bgr", "scale": 1.0, "mean": [1, 2, 3], "std": [4, 5, 6]},
}


def fill(card: ModelCard, facts: dict[str, Any] = FACTS) -> tuple[ModelCard, list[str]]:
    return prefilled(card, facts, [IMAGE], [SCORES])


def test_what_is_not_said_is_taken_and_told() -> None:
    card, notes = fill(ModelCard())
    assert (card.labels, card.license, card.task) == (("cat", "dog"), "MIT", "classify")
    assert card.preprocess is not None
    assert (card.preprocess.color, card.preprocess.mean) == ("bgr", (1.0, 2.0, 3.0))
    assert len(notes) == 4
    assert all("taken from the model's own metadata" in note for note in notes)


def test_what_the_user_says_wins() -> None:
    mine = ModelCard(
        task="raw", labels=("a", "b"), license="Apache-2.0", preprocess=Preprocess(input="image")
    )
    assert fill(mine) == (mine, [])


def test_a_model_that_says_nothing_changes_nothing() -> None:
    assert fill(ModelCard(), {}) == (ModelCard(), [])


@pytest.mark.parametrize(
    "facts",
    [
        {"labels": ["one", "two", "three"]},
        {"preprocess": {"input": "", "color": "gray"}},
        {"preprocess": {"input": "somewhere", "color": "rgb"}},
        {"preprocess": {"color": "rgb"}},
    ],
)
def test_what_does_not_fit_is_left_out_and_told(facts: dict[str, Any]) -> None:
    card, notes = fill(ModelCard(), facts)
    assert card == ModelCard()
    assert len(notes) == 1
    assert "does not fit" in notes[0]


def test_labels_of_a_detector_are_not_counted_against_its_output() -> None:
    card, _ = fill(ModelCard(), {"task": "detect", "labels": ["one", "two", "three"]})
    assert card.labels == ("one", "two", "three")
