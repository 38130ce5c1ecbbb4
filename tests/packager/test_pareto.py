"""The picture of a build: what it shows is right, readable and the same every time."""

import random
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_packager.core.pareto import Point, front, pareto_svg

SVG = "{http://www.w3.org/2000/svg}"
SOME = [
    Point("onnx fp32", "onnx", 0.025, 0.9685, 664_100),
    Point("onnx int8", "onnx", 0.026, 0.9685, 173_900, best=True),
    Point("openvino fp32", "openvino", 0.067, 0.9685, 671_200),
    Point("openvino int8", "openvino", 0.056, 0.9667, 185_800),
]


def picture(points: list[Point], **settings: object) -> str:
    given = {"title": "digits 1.0.0", "quality": "top1"} | settings
    return pareto_svg(points, **given)  # type: ignore[arg-type]


def texts(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(f"{SVG}text"))


def boxes(svg: str, points: list[Point]) -> list[tuple[float, float, float, float]]:
    """Return the place of every label, judged by an average letter of the font."""
    names = {p.label for p in points}
    found = []
    for text in texts(svg):
        told = (text.text or "").removeprefix("\u2605 ")
        if told.rpartition(", ")[0] in names:
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            found.append((x, y - 11, x + 6.6 * len(text.text or ""), y + 2))
    return found


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_front_is_what_nothing_else_beats() -> None:
    assert [p.label for p in front(SOME)] == ["onnx fp32"]
    slower_and_better = Point("tflite fp32", "tflite", 0.2, 0.99, 1)
    assert [p.label for p in front([slower_and_better, *SOME])] == ["onnx fp32", "tflite fp32"]


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 1)), min_size=1, max_size=12))
def test_front_is_never_beaten(places: list[tuple[float, float]]) -> None:
    points = [Point(str(i), "onnx", x, y, 1) for i, (x, y) in enumerate(places)]
    for kept in front(points):
        assert not [
            p for p in points
            if p.latency_ms <= kept.latency_ms and p.quality >= kept.quality
            and (p.latency_ms, p.quality) != (kept.latency_ms, kept.quality)
        ]  # fmt: skip


def test_every_variant_has_a_bubble_and_a_label_with_its_size() -> None:
    svg = picture(SOME, reference=0.9685, limit=0.9585, note="540 samples")
    titles = [t.text for t in ET.fromstring(svg).iter(f"{SVG}title")]
    assert titles[0] == "digits 1.0.0"
    assert "onnx int8: 0.9685, 0.026 ms, 174 kB" in titles
    said = {t.text for t in texts(svg)}
    assert {"\u2605 onnx int8, 174 kB", "source 0.9685", "lowest allowed 0.9585"} <= said
    assert len(boxes(svg, SOME)) == len(SOME)


def test_area_is_proportional_to_bytes() -> None:
    root = ET.fromstring(picture([
        Point("a", "onnx", 1, 0.5, 4_000_000), Point("b", "onnx", 2, 0.6, 1_000_000),
    ]))  # fmt: skip
    radii = sorted(float(c.get("r", "")) for c in root.iter(f"{SVG}circle") if len(c))
    assert radii[1] == pytest.approx(2 * radii[0], rel=0.01)


@pytest.mark.parametrize("count", [1, 4, 12])
def test_labels_cover_neither_each_other_nor_leave_the_picture(count: int) -> None:
    chance = random.Random(count)
    points = [
        Point(f"openvino fp{i}", "openvino", chance.uniform(1, 3), chance.uniform(0.9, 0.93), 10**6)
        for i in range(count)
    ]
    places = boxes(picture(points), points)
    assert len(places) == count
    for index, one in enumerate(places):
        assert one[0] >= 84
        assert one[2] <= 850
        assert all(apart(one, other) for other in places[:index])


def test_the_same_points_give_the_same_bytes_in_any_order() -> None:
    assert picture(SOME) == picture(list(SOME))
    assert ET.fromstring(picture(SOME[::-1])) is not None


def test_light_and_dark_without_scripts_or_anything_from_outside() -> None:
    svg = picture(SOME)
    assert "@media(prefers-color-scheme:dark)" in svg
    assert not re.search(r"<script|href|url\(|@import|on\w+=", svg)
    assert svg.count("http") == 1


def test_names_are_text_never_markup() -> None:
    svg = picture([Point("<b>&\"'", "new & other", 1, 1, 1)], title="<script>", note="a<b")
    assert "<script>" not in svg
    assert "<script>" in {t.text for t in texts(svg)}


@pytest.mark.parametrize(
    ("times", "logarithmic"), [((1.0, 1.1), False), ((0.02, 4.0), True), ((2.0, 2.0), False)]
)
def test_far_apart_latencies_get_a_logarithmic_axis(
    times: tuple[float, float], *, logarithmic: bool
) -> None:
    points = [Point(str(i), "onnx", t, 0.9, 1000) for i, t in enumerate(times)]
    assert ("logarithmic" in picture(points)) == logarithmic
