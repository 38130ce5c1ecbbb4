"""Boxes, regions and vectors read from output tensors, in pixels of the picture they are about."""

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from digits_targets import manifest_for
from edgepack.decoders import Detector, Embed, Mask, Postprocess, Ssd, Yolo
from edgepack.manifest import Binding, Manifest, Preprocess, Resize, TensorSpec
from edgepack_targets.pipeline.agreement import alike, f1, frame_agreement, miou
from edgepack_targets.pipeline.annotate import annotate, color_of
from edgepack_targets.pipeline.answer import (
    UNSEEN,
    Classification,
    Detection,
    Detections,
    Embedding,
    Guess,
    Raw,
    Segmentation,
)
from edgepack_targets.pipeline.detect import MAX_CANDIDATES, iou, suppress
from edgepack_targets.pipeline.geometry import place
from edgepack_targets.pipeline.postprocess import decode
from edgepack_targets.pipeline.preprocess import resize
from fuzz import refusal

SIDE = 64
LABELS = ("cat", "dog", "bird")
SSD = Ssd(boxes="boxes", scores="scores", classes="classes", box_format="yxyx", score_threshold=0.5)
FLAT = Ssd(boxes="boxes", scores="scores")
YOLO = Yolo(output="y", score_threshold=0.5)
MASK = Mask(output="y")


def reading(rule: Postprocess, mode: Any = "stretch") -> Manifest:
    """Return a manifest whose pictures become 64 x 64 by MODE and whose outputs RULE reads."""
    spec = TensorSpec(
        name="x", shape=(1, 3, SIDE, SIDE), dtype="float32", layout="NCHW",
        binding=Binding(native_name="x"),
    )  # fmt: skip
    return msgspec.structs.replace(
        manifest_for("onnx"), inputs=(spec,), postprocess=rule, labels=LABELS,
        preprocess=Preprocess(input="x", resize=Resize(mode=mode)),
    )  # fmt: skip


def objects(
    rule: Postprocess, outputs: dict[str, np.ndarray], size: tuple[int, int] | None = None
) -> tuple[Detection, ...]:
    answer = decode(reading(rule), outputs, size)
    assert isinstance(answer, Detections)
    return answer.objects


def ssd_outputs(*rows: tuple[tuple[float, ...], float, int]) -> dict[str, np.ndarray]:
    boxes, scores, classes = zip(*rows, strict=True)
    return {
        "boxes": np.array([boxes], np.float32),
        "scores": np.array([scores], np.float32),
        "classes": np.array([classes], np.float32),
    }


# -- detectors


def test_boxes_of_an_ssd_are_in_pixels_of_the_picture() -> None:
    outputs = ssd_outputs(((8, 16, 24, 48), 0.9, 1), ((0, 0, 9, 9), 0.4, 0))
    (found,) = objects(SSD, outputs, (128, 32))
    assert (found.index, found.label, found.score) == (1, "dog", pytest.approx(0.9))
    assert found.box == pytest.approx((32, 4, 96, 12))
    (in_input,) = objects(SSD, outputs)
    assert in_input.box == pytest.approx((16, 8, 48, 24))


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("xyxy", (16, 8, 48, 24)),
        ("yxyx", (8, 16, 24, 48)),
        ("xywh", (16, 8, 32, 16)),
        ("cxcywh", (32, 16, 32, 16)),
    ],
)
@pytest.mark.parametrize("space", ["pixels", "normalised"])
def test_every_form_of_a_box_is_the_same_box(box_format: Any, box: Any, space: Any) -> None:
    rule = msgspec.structs.replace(SSD, box_format=box_format, box_space=space)
    scale = SIDE if space == "normalised" else 1
    (found,) = objects(rule, ssd_outputs((tuple(n / scale for n in box), 0.9, 0)))
    assert found.box == pytest.approx((16, 8, 48, 24))


def test_scores_for_each_class_take_the_best_but_the_background() -> None:
    rule = msgspec.structs.replace(FLAT, background=0, activation="softmax", score_threshold=0.6)
    logits = np.array([[[9, 0, 0], [0, 0, 9], [0, 0.1, 0]]], np.float32)
    boxes = np.array([[[0, 0, 8, 8], [8, 8, 16, 16], [4, 4, 8, 8]]], np.float32)
    found = objects(rule, {"boxes": boxes, "scores": logits})
    assert [(one.label, one.box) for one in found] == [("bird", (8, 8, 16, 16))]


def test_a_count_says_how_many_boxes_are_meant() -> None:
    rule = msgspec.structs.replace(SSD, count="count", nms_iou=None)
    rows = [((i, i, i + 4, i + 4), 0.9, 0) for i in range(5)]
    outputs = ssd_outputs(*rows) | {"count": np.array([2], np.float32)}
    assert len(objects(rule, outputs)) == 2


@pytest.mark.parametrize("channels", ["first", "last"])
@pytest.mark.parametrize("objectness", [False, True])
def test_a_yolo_is_read_whichever_way_its_channels_lie(channels: Any, objectness: bool) -> None:
    rows = np.zeros((1, 4 + objectness + 3, 50), np.float32)
    rows[0, :4, 7] = 32, 16, 32, 16
    rows[0, -3:, 7] = 0.1, 0.2, 0.9
    if objectness:
        rows[0, 4, 7] = 0.8
    rule = msgspec.structs.replace(YOLO, channels=channels, objectness=objectness)
    outputs = {"y": rows if channels == "first" else rows.transpose(0, 2, 1)}
    (found,) = objects(rule, outputs)
    assert found.label == "bird"
    assert found.score == pytest.approx(0.72 if objectness else 0.9)
    assert found.box == pytest.approx((16, 8, 48, 24))


def corner_boxes(count: int) -> Any:
    corner = st.tuples(*[st.integers(0, 20)] * 2)
    size = st.tuples(*[st.integers(1, 12)] * 2)
    box = st.builds(lambda c, s: (*c, c[0] + s[0], c[1] + s[1]), corner, size)
    return st.lists(st.tuples(box, st.integers(0, 2)), max_size=count)


def slow_iou(one: Any, other: Any) -> float:
    """Count the cells of both boxes: no formula to share a mistake with."""
    left, right = (
        set(itertools.product(range(b[0], b[2]), range(b[1], b[3]))) for b in (one, other)
    )
    return len(left & right) / len(left | right)


@given(corner_boxes(8), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 8))
def test_suppression_keeps_what_the_definition_keeps(
    drawn: list[Any], limit: float, most: int
) -> None:
    kept: list[int] = []
    for index, (box, label) in enumerate(drawn):
        worse = any(drawn[k][1] == label and slow_iou(drawn[k][0], box) > limit for k in kept)
        if not worse and len(kept) < most:
            kept.append(index)
    boxes = np.array([box for box, _ in drawn], np.float64).reshape(-1, 4)
    classes = np.array([label for _, label in drawn], np.int64)
    assert suppress(boxes, classes, limit, most).tolist() == kept


@given(corner_boxes(4), corner_boxes(4))
def test_iou_counts_cells(left: list[Any], right: list[Any]) -> None:
    one, other = ([box for box, _ in side] for side in (left, right))
    got = iou(*(np.array(side, np.float64).reshape(-1, 4) for side in (one, other)))
    expected = [[slow_iou(a, b) for b in other] for a in one]
    assert got == pytest.approx(np.array(expected).reshape(got.shape))


def test_a_flood_of_boxes_ends_in_bounded_work() -> None:
    flood = np.random.default_rng(0).uniform(0, 1, (1, 4 + 3, 20_000)).astype(np.float32)
    rule = Yolo(output="y", score_threshold=0.0, nms_iou=None, max_detections=1000)
    assert len(objects(rule, {"y": flood})) <= MAX_CANDIDATES


# -- where things lie


@given(
    st.sampled_from(["stretch", "letterbox", "crop"]),
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.integers(8, 100), st.integers(8, 100)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_point_comes_back_from_the_input_to_where_it_was(
    mode: Any, picture: tuple[int, int], canvas: tuple[int, int], share: tuple[float, float]
) -> None:
    placed = place(Resize(mode=mode), picture, canvas)
    point = np.array(share) * np.array(picture)
    assert placed.backward(placed.forward(point)) == pytest.approx(point, abs=1e-6)


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(160, 96), (90, 200), (64, 64)])
def test_the_geometry_is_that_of_the_resizer(mode: Any, size: tuple[int, int]) -> None:
    """A bright square in the middle is where the placement says that it is, within a pixel."""
    box = (size[0] // 2 - 12, size[1] // 2 - 12, size[0] // 2 + 12, size[1] // 2 + 12)
    image = Image.new("L", size, 0)
    image.paste(255, box)
    rule = Resize(mode=mode, pad=0)
    seen = np.asarray(resize(image, SIDE, SIDE, rule)) > 127
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    corners = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], np.float64)
    placed = place(rule, size, (SIDE, SIDE))
    pixel = np.array(placed.picture) / np.array(placed.inner)
    far = np.abs(placed.backward(corners).ravel() - np.array(box))
    assert (far <= np.tile(np.maximum(pixel, 1.0), 2)).all()


# -- regions, vectors


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "crop"])
def test_a_region_has_the_pictures_size_and_place(mode: Any) -> None:
    size = (120, 80)
    picture = Image.new("RGB", size, 0)
    picture.paste((255, 255, 255), (30, 20, 90, 60))
    brightness = np.asarray(resize(picture.convert("L"), SIDE, SIDE, Resize(mode=mode, pad=0)))
    logits = np.stack([127.5 - brightness, brightness - 127.5])[None].astype(np.float32)
    answer = decode(reading(MASK, mode), {"y": logits}, size)
    assert isinstance(answer, Segmentation)
    assert answer.classes.shape == (80, 120)
    expected = np.zeros((80, 120), np.int32)
    expected[20:60, 30:90] = 1
    seen = answer.classes != UNSEEN
    assert (answer.classes == expected)[seen].mean() > 0.97
    assert seen.mean() == (1.0 if mode != "crop" else pytest.approx(2 / 3, abs=0.02))


def test_all_forms_of_a_class_map_are_the_same() -> None:
    classes = np.random.default_rng(1).integers(0, 3, (8, 8)).astype(np.int32)
    planes = np.eye(3, dtype=np.float32)[classes]
    forms = {
        "first": planes.transpose(2, 0, 1)[None], "last": planes[None], "none": classes[None],
    }  # fmt: skip
    for channels, array in forms.items():
        rule = Mask(output="y", channels=channels)  # type: ignore[arg-type]
        answer = decode(reading(rule), {"y": array})
        assert isinstance(answer, Segmentation)
        assert np.array_equal(answer.classes, classes)
    one = Mask(output="y", activation="sigmoid", threshold=0.5)
    answer = decode(reading(one), {"y": np.where(classes == 1, 2.0, -2.0)[None, None]})
    assert isinstance(answer, Segmentation)
    assert np.array_equal(answer.classes == 1, classes == 1)


@given(hnp.arrays(np.float32, (1, 6), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_a_vector_has_length_one_or_is_nothing(vector: np.ndarray) -> None:
    answer = decode(reading(Embed(output="y")), {"y": vector})
    assert isinstance(answer, Embedding)
    length = np.linalg.norm(answer.vector)
    assert length == pytest.approx(1, abs=1e-5) or not vector.any()


# -- agreement


detections = st.lists(
    st.tuples(st.sampled_from(LABELS), st.integers(0, 40), st.integers(0, 40)), max_size=5
).map(
    lambda rows: Detections(
        tuple(Detection(0, label, 0.9, (x, y, x + 10, y + 10)) for label, x, y in rows)
    )
)
maps = hnp.arrays(np.int32, (6, 6), elements=st.integers(-1, 2)).map(
    lambda array: Segmentation(array, LABELS)
)


@given(detections, detections)
def test_f1_is_bounded_and_full_for_the_same(left: Detections, right: Detections) -> None:
    assert 0.0 <= f1(left, right) <= 1.0
    assert f1(left, left) == 1.0
    labels = [{one.label for one in side.objects} for side in (left, right)]
    if (left.objects or right.objects) and not labels[0] & labels[1]:
        assert f1(left, right) == 0.0


@given(maps, maps)
def test_miou_is_symmetric_and_bounded(left: Segmentation, right: Segmentation) -> None:
    assert 0.0 <= miou(left, right) <= 1.0
    assert miou(left, right) == pytest.approx(miou(right, left))
    assert miou(left, left) == 1.0


def test_nothing_seen_by_both_is_agreement_and_by_one_is_none() -> None:
    nothing = {"y": np.zeros((1, 7, 5), np.float32)}
    something = {"y": np.ones((1, 7, 5), np.float32)}
    assert frame_agreement(reading(YOLO), nothing, nothing) == 1.0
    assert frame_agreement(reading(YOLO), nothing, something) == 0.0
    assert frame_agreement(reading(YOLO), nothing, {"z": nothing["y"]}) == 0.0


def test_answers_of_two_kinds_do_not_agree() -> None:
    kinds = [
        Classification((Guess(0, "cat", 0.9),)), Detections(()), Embedding(np.ones(2, np.float32)),
        Segmentation(np.zeros((2, 2), np.int32), LABELS), Raw({"y": np.ones(3)}),
    ]  # fmt: skip
    for left, right in itertools.product(kinds, kinds):
        assert alike(left, right) == (1.0 if left is right else 0.0)


# -- outputs of a stranger


hostile = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=8),
)
RULES: list[Postprocess] = [
    SSD, msgspec.structs.replace(SSD, count="count"), FLAT, YOLO, MASK, Embed(output="y"),
    Yolo(output="y", channels="last", objectness=True, activation="sigmoid", score_threshold=0),
    Mask(output="y", channels="none"), Mask(output="y", channels="last", activation="sigmoid"),
]  # fmt: skip


@given(
    st.sampled_from(RULES),
    st.dictionaries(
        st.sampled_from(["y", "boxes", "scores", "classes", "count"]), hostile, max_size=5
    ),
    st.none() | st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_hostile_outputs_are_refused_or_read_within_the_picture(
    rule: Postprocess, outputs: dict[str, np.ndarray], size: tuple[int, int] | None
) -> None:
    answers: list[Any] = []
    refused = refusal(lambda: answers.append(decode(reading(rule), outputs, size)))
    assert refused in {None, "bad_output"}
    if refused:
        return
    answer = answers[0]
    msgspec.json.encode(answer.plain())
    assert all(isinstance(label, str) and np.isfinite(score) for label, score in answer.top())
    if isinstance(answer, Detections):
        width, height = size or (SIDE, SIDE)
        for found in answer.objects:
            assert 0 <= found.box[0] < found.box[2] <= width
            assert 0 <= found.box[1] < found.box[3] <= height


# -- pictures


@pytest.mark.parametrize(
    "answer",
    [
        Classification((Guess(1, "dog", 0.9),)),
        Detections((Detection(2, "bird", 0.7, (10, 20, 60, 70)),)),
        Segmentation(np.pad(np.ones((50, 60), np.int32), ((30, 20), (20, 20))), LABELS),
    ],
)
def test_what_is_seen_is_drawn_in_the_colour_of_its_class(answer: Any) -> None:
    plain = Image.new("RGB", (100, 100), (128, 128, 128))
    drawn = annotate(plain, answer)
    assert plain.getextrema() == ((128, 128),) * 3, "the picture itself is left alone"
    index = {Classification: 1, Detections: 2, Segmentation: 1}[type(answer)]
    assert color_of(index) in {color for _, color in drawn.getcolors(1 << 20)}


@pytest.mark.parametrize("answer", [Raw({}), Embedding(np.ones(3, np.float32)), Detections(())])
def test_where_there_is_nothing_to_draw_the_picture_stays(answer: Any) -> None:
    plain = Image.new("RGB", (40, 30), (1, 2, 3))
    assert annotate(plain, answer).tobytes() == plain.tobytes()


def test_every_detector_has_the_common_fields() -> None:
    assert issubclass(Ssd, Detector)
    assert issubclass(Yolo, Detector)
