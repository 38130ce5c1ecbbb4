"""How often the drift watch cries wolf, and how soon it sees one: by simulation, seeded.

    python benchmarks/drift/run.py [--trials 400] [--seed 1] [--write-page]

The watch is the device's own (`edgepack_agent.core.drift`), fed with what a runner counts. Every
trial draws a baseline of its own, then windows, with or without a change from the first one on.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgepack_agent.core.drift import Drift, Rule
from edgepack_targets.pipeline.baseline import Baseline, Counted
from edgepack_targets.pipeline.drift_chart import drift_chart

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "drift.md"
PICTURE = ROOT / "docs" / "pictures" / "drift.svg"
EDGES = [index / 4 for index in range(-12, 13)]
WINDOWS = 20
"""A change that is not seen within so many windows counts as missed."""
MIX = [0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01]
Draw = Callable[[random.Random, int], dict[str, Any]]


def values(dice: random.Random, count: int, *, shift: float = 0.0, scale: float = 1.0) -> list[int]:
    """Return COUNT draws of a normal variable, counted between the edges."""
    counts = [0] * (len(EDGES) + 1)
    for _ in range(count):
        place = int((dice.gauss(shift, scale) + 3) * 4) + 1
        counts[min(len(EDGES), max(0, place))] += 1
    return counts


def classes(dice: random.Random, count: int, *, moved: float = 0.0) -> dict[str, int]:
    """Return COUNT decisions, of which the share MOVED goes from the first class to the last."""
    mix = [MIX[0] - moved, *MIX[1:-1], MIX[-1] + moved]
    return {f"c{k}": n for k, n in Counter(dice.choices(range(10), mix, k=count)).items()}


@dataclass(frozen=True)
class Case:
    """A kind of change."""

    name: str
    shift: float = 0.0
    scale: float = 1.0
    moved: float = 0.0

    def stats(self, dice: random.Random, count: int) -> dict[str, Any]:
        """Return what a beat would say of COUNT frames."""
        mean = values(dice, count, shift=self.shift, scale=self.scale)
        spread = values(dice, count)
        return {
            "classes": classes(dice, count, moved=self.moved),
            "values": [["inputs", "x", "mean", mean], ["inputs", "x", "spread", spread]],
        }


CASES = (
    Case("brightness moves by 0.25 sd", shift=0.25),
    Case("brightness moves by 0.5 sd", shift=0.5),
    Case("brightness moves by 1 sd", shift=1.0),
    Case("contrast doubles", scale=2.0),
    Case("5 % of decisions move to a rare class", moved=0.05),
    Case("10 % of decisions move to a rare class", moved=0.10),
    Case("20 % of decisions move to a rare class", moved=0.20),
)


def baseline(dice: random.Random, count: int) -> Baseline:
    """Return a baseline of COUNT samples, as a manifest has it."""
    mean, spread = (Counted(tuple(EDGES), tuple(values(dice, count))) for _ in range(2))
    return Baseline(classes(dice, count), inputs={"x": {"mean": mean, "spread": spread}})


def first_alarm(case: Case, samples: int, rule: Rule, dice: random.Random) -> int | None:
    """Return the number of the window that ended in an alarm."""
    drift = Drift(baseline(dice, samples), rule, 0.0)
    for window in range(1, WINDOWS + 1):
        if any(not alarm.over for alarm in drift.add(case.stats(dice, rule.min_count), window)):
            return window
    return None


def measure(samples: int, rule: Rule, trials: int, seed: int) -> list[str]:
    """Return a row of the table: false alarms per 1,000 windows, windows until each change."""
    dice = random.Random(seed)
    quiet = [first_alarm(Case("none"), samples, rule, dice) for _ in range(trials)]
    false = sum(found is not None for found in quiet)
    seen = sum(found or WINDOWS for found in quiet)
    row = [f"{1000 * false / seen:.2f}"]
    for case in CASES:
        found = [first_alarm(case, samples, rule, dice) for _ in range(max(20, trials // 10))]
        caught = sorted(window for window in found if window is not None)
        share = len(caught) / len(found)
        row.append(f"{caught[len(caught) // 2]} ({share:.0%})" if caught else "never")
    return row


def table(trials: int, seed: int) -> str:
    """Return the measurements as a Markdown table."""
    settings = [
        (samples, Rule(min_count=count, min_s=0, windows=windows))
        for samples in (200, 1000, 5000)
        for count, windows in ((1000, 2),)
    ]
    settings += [(1000, Rule(min_count=1000, min_s=0, windows=1, psi=0.0)),
                 (1000, Rule(min_count=300, min_s=0, windows=2))]  # fmt: skip
    names = [
        f"baseline {samples}, window {rule.min_count}"
        + (", one window, any size" if rule.psi == 0 else "")
        for samples, rule in settings
    ]
    columns = [measure(samples, rule, trials, seed) for samples, rule in settings]
    rows = ["false alarms per 1,000 windows", *(case.name for case in CASES)]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for place, row in enumerate(rows):
        lines.append(f"| {row} | " + " | ".join(column[place] for column in columns) + " |")
    return "\n".join(lines)


def picture(seed: int) -> str:
    """Return the picture of a shift by half a standard deviation."""
    dice, case = random.Random(seed), CASES[1]
    rule = Rule(min_s=0, windows=1)
    drift = Drift(baseline(dice, 1000), rule, 0.0)
    stats = case.stats(dice, 1000)
    drift.add(stats, 1.0)
    name = "inputs.x.mean"
    found, before = drift.last[name], drift.baseline.inputs["x"]["mean"]
    told = f"drifts: PSI {found.psi:.3f}, p {found.p:.2g}, n {found.n}"
    names = [f"<{EDGES[0]:g}", *(f"{edge:g}" for edge in EDGES)]
    return drift_chart(name, told, names, before.counts, stats["values"][0][3])


@click.command()
@click.option("--trials", default=400, help="Fleets of one device, each with 20 windows.")
@click.option("--seed", default=1)
@click.option("--write-page", is_flag=True, help="Put the table and the picture into docs.")
def main(trials: int, seed: int, write_page: bool) -> None:
    """Measure and print."""
    found = table(trials, seed)
    click.echo(found)
    if write_page:
        before, _, rest = PAGE.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->")[2]
        head = f"{trials} devices without a change, {max(20, trials // 10)} with each; seed {seed}:"
        PAGE.write_text(f"{before}<!-- table -->\n{head}\n\n{found}\n\n<!-- end -->{after}")
        PICTURE.write_text(picture(seed))


if __name__ == "__main__":
    main()
