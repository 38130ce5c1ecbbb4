"""A picture of a baseline and a window as SVG. Decides nothing, and loads nothing to draw."""

from collections.abc import Sequence
from html import escape

__all__ = ["drift_chart"]

WIDTH, HEIGHT, MARGIN = 720, 260, 44
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #33373d }
  .title { font-weight: 600; font-size: 15px }
  .before { fill: #9aa4b2 } .now { fill: #d9543f; fill-opacity: .75 } .axis { stroke: #c4cad2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #d7dce2 } .before { fill: #667080 } .axis { stroke: #454c56 }
  }
"""


def drift_chart(
    title: str, told: str, names: Sequence[str], baseline: Sequence[int], window: Sequence[int]
) -> str:
    """Return an SVG document: what share of values lies in each bin, then and now.

    Args:
        title: The feature.
        told: A sentence about the comparison.
        names: Of the bins; written where there is room.
        baseline: Counts, one for each name.
        window: Counts, one for each name.
    """
    sides = [_shares(baseline), _shares(window)]
    most = max([*sides[0], *sides[1], 1e-9])
    room = (WIDTH - 2 * MARGIN) / max(1, len(names))
    bars = [
        _bar(MARGIN + place * room, room, share / most, kind)
        for side, kind in zip(sides, ("before", "now"), strict=True)
        for place, share in enumerate(side)
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(f'{title}: {told}')}</title><style>{STYLE}</style>",
        f'<text x="{MARGIN}" y="22" class="title">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="40">{escape(told)}</text>',
        *_legend(),
        *bars,
        f'<path d="M{MARGIN} {HEIGHT - 30}H{WIDTH - MARGIN}" class="axis"/>',
        *_ticks(names, room),
        "</svg>\n",
    ])  # fmt: skip


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bar(x: float, room: float, height: float, kind: str) -> str:
    # The baseline is wide, the window narrow before it: both can be read where they overlap.
    share, shift = (0.86, 0.07) if kind == "before" else (0.5, 0.25)
    tall = height * (HEIGHT - 100)
    return (
        f'<rect x="{x + room * shift:.1f}" y="{HEIGHT - 30 - tall:.1f}" '
        f'width="{room * share:.1f}" height="{tall:.1f}" class="{kind}"/>'
    )


def _legend() -> list[str]:
    left = WIDTH - MARGIN - 170
    return [
        f'<rect x="{left}" y="12" width="12" height="12" class="before"/>',
        f'<text x="{left + 18}" y="22">baseline</text>',
        f'<rect x="{left + 94}" y="12" width="12" height="12" class="now"/>',
        f'<text x="{left + 112}" y="22">window</text>',
    ]


def _ticks(names: Sequence[str], room: float) -> list[str]:
    widest = max((len(name) for name in names), default=1)
    every = max(1, round(widest * 8 / room + 0.5))
    return [
        f'<text x="{MARGIN + (place + 0.5) * room:.1f}" y="{HEIGHT - 12}" text-anchor="middle">'
        f"{escape(name)}</text>"
        for place, name in enumerate(names)
        if place % every == 0
    ]
