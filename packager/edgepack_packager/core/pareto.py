"""The picture of a build: quality against latency, bubbles as large as the model. Pure.

SVG without scripts, fonts or links, the same bytes for the same points; it follows the viewer's
light or dark scheme. Labels are placed where they cover neither a bubble nor each other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Point", "front", "pareto_svg"]

WIDTH, HEIGHT = 880, 540
LEFT, RIGHT, TOP, BOTTOM = 84, 30, 96, 80
LARGEST, SMALLEST = 24.0, 5.0
LETTER, BOLD, LINE = 7.1, 1.1, 16.0
WIDE = 8.0
"""Ratio of the slowest to the fastest from which on the latency axis is logarithmic."""
COLOURS = {
    "openvino": ("#2563c9", "#7fb0ff"),
    "tflite": ("#c2570c", "#ffa657"),
    "onnx": ("#157f4e", "#5fd39a"),
    "onnx-mobile": ("#7a3fb8", "#c79bff"),
}
LEGEND = (
    "area: bytes of the model; line: nothing else is faster and better; "
    "pale: another one is as fast, as good and as small"
)
OTHER = ("#5c6470", "#a9b1bd")
STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;fill:#1f2328;
paint-order:stroke;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round}
.bg{fill:#ffffff}.title{font-size:17px;font-weight:600}.quiet{fill:#59636e;font-size:12px}
.grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#8c959f;stroke-width:1}
.front{fill:none;stroke:#59636e;stroke-width:1.5;stroke-dasharray:none}
.reference{stroke:#8c959f;stroke-width:1;stroke-dasharray:5 4}
.limit{stroke:#cf222e;stroke-width:1;stroke-dasharray:2 3}.limit-text{fill:#cf222e;font-size:12px}
.lead{stroke:#8c959f;stroke-width:.8}.dot{stroke-width:1.5}.off{fill-opacity:.22}.on{fill-opacity:.75}
.best{font-weight:700}"""
DARK = """
text{fill:#e6edf3;stroke:#0d1117}.bg{fill:#0d1117}.quiet{fill:#9198a1}.grid{stroke:#2a313a}
.axis,.lead,.reference{stroke:#6e7781}.front{stroke:#c9d1d9}
.limit{stroke:#ff7b72}.limit-text{fill:#ff7b72}"""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One variant: its label, what colours it, and its three numbers."""

    label: str
    group: str
    latency_ms: float
    quality: float
    """Higher is better: the metric, or the cosine to the source."""
    model_bytes: int
    best: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """From a value to a place on the picture."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


@dataclass(frozen=True, slots=True)
class _Bubble:
    """A point with its place, radius and label."""

    point: Point
    x: float
    y: float
    radius: float
    efficient: bool

    @property
    def text(self) -> str:
        """The label."""
        star = "\u2605 " if self.point.best else ""
        return f"{star}{self.point.label}, {_size(self.point.model_bytes)}"


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in latency and quality, fastest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.quality, p.model_bytes, p.label)):
        if not found or point.quality > found[-1].quality:
            found.append(point)
    return found


def _beaten(point: Point, points: Sequence[Point]) -> bool:
    """Say whether another one is as fast, as good and as small, and better in one of these."""
    own = (point.latency_ms, -point.quality, point.model_bytes)
    others = [(p.latency_ms, -p.quality, p.model_bytes) for p in points]
    return any(o != own and all(a <= b for a, b in zip(o, own, strict=True)) for o in others)


def pareto_svg(
    points: Sequence[Point],
    *,
    title: str,
    quality: str,
    reference: float | None = None,
    limit: float | None = None,
    note: str = "",
) -> str:
    """Return the picture of POINTS as an SVG document.

    Args:
        points: At least one; latencies above 0.
        title: Of the picture.
        quality: Name of the vertical axis.
        reference: Quality of the source: a dashed line.
        limit: Lowest quality that was allowed: a dotted line.
        note: Where it was measured.
    """
    best = front(points)
    x, y = _scales(points, [v for v in (reference, limit) if v is not None])
    largest = max(p.model_bytes for p in points)
    bubbles = [
        _Bubble(p, x(p.latency_ms), y(p.quality), _radius(p, largest), not _beaten(p, points))
        for p in sorted(points, key=lambda p: (-p.model_bytes, p.label))
    ]
    body = [
        *_head(points, title, note),
        *_axes(x, y, quality),
        *_levels(y, reference, limit),
        *_front_line([(x(p.latency_ms), y(p.quality)) for p in best]),
        *(_dot(bubble) for bubble in bubbles),
        *_labels(bubbles),
    ]
    return "\n".join([*_opening(title, points), *body, "</svg>"]) + "\n"


def _radius(point: Point, largest: int) -> float:
    return max(SMALLEST, LARGEST * math.sqrt(point.model_bytes / largest))


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


# -- scales


def _scales(points: Sequence[Point], levels: Sequence[float]) -> tuple[_Scale, _Scale]:
    times = [p.latency_ms for p in points]
    low, high = min(times), max(times)
    wide = high / low > WIDE
    if wide:
        low, high = low / 1.35, high * 1.6
    else:
        pad = max(0.18 * (high - low), 0.06 * high)
        low, high = max(0.0, low - pad), high + 1.5 * pad
    values = [p.quality for p in points]
    own = max(values) - min(values)
    # A level far below everything would squeeze the points into a line.
    shown = [v for v in levels if abs(v - max(values)) <= max(4 * own, 0.05)]
    bottom, top = min([*values, *shown]), max([*values, *shown])
    room = max(0.16 * (top - bottom), 0.002)
    return (
        _Scale(low, high, LEFT, WIDTH - RIGHT, logarithmic=wide),
        _Scale(bottom - room, top + room, HEIGHT - BOTTOM, TOP),
    )


def _ticks(scale: _Scale) -> list[float]:
    """Return round values within SCALE, about six of them."""
    if scale.logarithmic:
        first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
        every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        return [v for v in every if scale.low <= v <= scale.high]
    rough = (scale.high - scale.low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(scale.low / step)
    return [n * step for n in range(first, int(scale.high / step + 1e-9) + 1)]


# -- parts of the picture


def _opening(title: str, points: Sequence[Point]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    )
    yield f"<title>{escape(title)}</title>"
    told = "; ".join(f"{p.label}: {p.quality:.4g} at {p.latency_ms:.4g} ms" for p in points)
    yield f"<desc>{escape(told)}</desc>"
    light = "".join(_coloured(index, pair[0]) for index, pair in enumerate(_palette()))
    dark = "".join(_coloured(index, pair[1]) for index, pair in enumerate(_palette()))
    yield f"<style>{STYLE}{light}\n@media(prefers-color-scheme:dark){{{DARK}{dark}}}</style>"
    yield f'<rect class="bg" width="{WIDTH}" height="{HEIGHT}"/>'


def _palette() -> list[tuple[str, str]]:
    return [*COLOURS.values(), OTHER]


def _coloured(index: int, colour: str) -> str:
    return f".c{index}{{fill:{colour};stroke:{colour}}}"


def _colour(group: str) -> str:
    names = list(COLOURS)
    return f"c{names.index(group) if group in names else len(names)}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{of_kind}>{escape(text)}</text>'


def _line(a: tuple[float, float], b: tuple[float, float], kind: str) -> str:
    return f'<line class="{kind}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>'


def _head(points: Sequence[Point], title: str, note: str) -> Iterator[str]:
    yield _text(24, 32, title, "title")
    yield _text(24, 52, note, "quiet")
    place = 24.0
    for group in dict.fromkeys(p.group for p in points):
        yield f'<circle class="dot on {_colour(group)}" cx="{place + 6:.1f}" cy="74" r="6"/>'
        yield _text(place + 17, 78, group)
        place += 17 + LETTER * len(group) + 20
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, LEGEND, "quiet", "middle")


def _axes(x: _Scale, y: _Scale, quality: str) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    for value in _ticks(x):
        yield _line((x(value), TOP), (x(value), floor), "grid")
        yield _text(x(value), floor + 20, f"{value:.4g}", "quiet", "middle")
    for value in _ticks(y):
        yield _line((LEFT, y(value)), (WIDTH - RIGHT, y(value)), "grid")
        yield _text(LEFT - 8, y(value) + 4, f"{value:.5g}", "quiet", "end")
    yield _line((LEFT, floor), (WIDTH - RIGHT, floor), "axis")
    yield _line((LEFT, TOP), (LEFT, floor), "axis")
    told = "latency p50, ms" + (" (logarithmic)" if x.logarithmic else "") + ": left is faster"
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 34, told, "", "middle")
    middle = (TOP + floor) / 2
    yield (
        f'<text transform="translate(22 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(quality)}</text>"
    )


def _levels(y: _Scale, reference: float | None, limit: float | None) -> Iterator[str]:
    for value, kind, told in (
        (reference, "reference", "source"),
        (limit, "limit", "lowest allowed"),
    ):
        if value is None or not y.low <= value <= y.high:
            continue
        yield _line((LEFT, y(value)), (WIDTH - RIGHT, y(value)), kind)
        style = "limit-text" if kind == "limit" else "quiet"
        yield _text(WIDTH - RIGHT - 4, y(value) - 5, f"{told} {value:.4g}", style, "end")


def _front_line(places: Sequence[tuple[float, float]]) -> Iterator[str]:
    if len(places) > 1:
        told = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="front" points="{told}"/>'


def _dot(bubble: _Bubble) -> str:
    kind = "on" if bubble.efficient else "off"
    point = bubble.point
    numbers = (f"{point.quality:.4f}", f"{point.latency_ms:.4g} ms", _size(point.model_bytes))
    told = f"{point.label}: {', '.join(numbers)}"
    return (
        f'<circle class="dot {kind} {_colour(point.group)}" cx="{bubble.x:.1f}" '
        f'cy="{bubble.y:.1f}" r="{bubble.radius:.1f}"><title>{escape(told)}</title></circle>'
    )


# -- labels


def _labels(bubbles: Sequence[_Bubble]) -> list[str]:
    """Return the labels, and the lines that lead to those that had to move away."""
    placed: list[Box] = []
    leads, texts = [], []
    for bubble in sorted(bubbles, key=lambda b: (-b.point.best, b.x, b.y, b.point.label)):
        box = min(_places(bubble), key=lambda box: _cost(box, bubble, placed, bubbles))
        placed.append(box)
        near = _nearest(box, bubble)
        gap = math.dist(near, (bubble.x, bubble.y))
        if gap > bubble.radius + 12:
            share = bubble.radius / gap
            begin = [c + (n - c) * share for c, n in zip((bubble.x, bubble.y), near, strict=True)]
            leads.append(_line((begin[0], begin[1]), near, "lead"))
        texts.append(_text(box[0], box[3] - 4, bubble.text, "best" if bubble.point.best else ""))
    return [*leads, *texts]


def _nearest(box: Box, bubble: _Bubble) -> tuple[float, float]:
    """Return the place of BOX that is nearest to BUBBLE."""
    left, top, right, bottom = box
    return min(max(bubble.x, left), right), min(max(bubble.y, top), bottom)


def _places(bubble: _Bubble) -> Iterator[Box]:
    """Yield boxes for the label, the nearest first."""
    width = LETTER * len(bubble.text) * (BOLD if bubble.point.best else 1) + 4
    for away in (6.0, 20.0, 38.0, 60.0, 90.0, 130.0, 180.0, 240.0):
        for step in range(16):
            angle = (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)[step] * math.pi / 8
            reach = bubble.radius + away
            x = bubble.x + reach * math.cos(angle)
            y = bubble.y - reach * math.sin(angle)
            left = x - width * (1 - math.cos(angle)) / 2
            top = y - LINE * (1 + math.sin(angle)) / 2
            yield (left, top, left + width, top + LINE)


def _cost(box: Box, own: _Bubble, placed: Sequence[Box], bubbles: Sequence[_Bubble]) -> float:
    """Return how bad BOX is for the label of OWN: what it covers, then how far away it is."""
    left, top, right, bottom = box
    outside = max(0.0, LEFT + 3 - left) + max(0.0, right - (WIDTH - RIGHT))
    outside += max(0.0, TOP - top) + max(0.0, bottom - (HEIGHT - BOTTOM))
    covered = sum(_overlap(box, other) for other in placed)
    for bubble in bubbles:
        gap = math.dist(_nearest(box, bubble), (bubble.x, bubble.y))
        covered += max(0.0, bubble.radius + 2 - gap) * LINE
    # A line to the label must not run through another label.
    near = _nearest(box, own)
    apart = (near[0] - own.x, near[1] - own.y)
    way = [(own.x + apart[0] * t / 8, own.y + apart[1] * t / 8) for t in range(8)]
    crossed = sum(_inside(step, other) for other in placed for step in way)
    middle = ((left + right) / 2, (top + bottom) / 2)
    return 1e4 * outside + 100 * covered + 40 * crossed + math.dist(middle, (own.x, own.y))


def _inside(place: tuple[float, float], box: Box) -> bool:
    return box[0] < place[0] < box[2] and box[1] < place[1] < box[3]


def _overlap(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
