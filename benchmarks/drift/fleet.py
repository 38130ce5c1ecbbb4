"""How often the fleet's look at drift cries wolf, and what it sees: by simulation, seeded.

    python benchmarks/drift/fleet.py [--trials 200] [--seed 1] [--write-page]

The rule is the fleet's own (`edgepack_fleet.core.drifting`) over four input features and classes of
twenty devices together. Every trial draws a baseline of its own. Where devices differ, each sees a
little else all the time, and nothing has changed.
"""

import math
import random
from collections import Counter
from pathlib import Path

import click

from edgepack_fleet.core.drifting import Rule, Seen, verdicts

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "monitoring.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"
EDGES = 24
BINS = range(EDGES + 2)
MIX = [0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01]
DEVICES, FEATURES = 20, 4
BASELINE = 1000
CHANGES = {
    "nothing has changed": {},
    "one feature moves by 0.25 sd": {"shift": 0.25},
    "one feature moves by 0.5 sd": {"shift": 0.5},
    "one feature moves by 1 sd": {"shift": 1.0},
    "10 % of decisions move to a rare class": {"moved": 0.1},
    "20 % of decisions move to a rare class": {"moved": 0.2},
}
COLUMNS = {
    "1,000 values": (1000, 0.0),
    "10,000 values": (10_000, 0.0),
    "10,000 values, devices differ by 0.2 sd": (10_000, 0.2),
    "10,000 values, devices differ by 0.5 sd": (10_000, 0.5),
}


def binned(dice: random.Random, count: int, shift: float, spread: float) -> tuple[int, ...]:
    """Return COUNT values of all devices in bins; each device is SPREAD away by chance."""
    counts: Counter[int] = Counter()
    devices = DEVICES if spread else 1
    for _ in range(devices):
        middle = shift + dice.gauss(0, spread)
        counts.update(dice.choices(BINS, cum_weights=below(middle), k=count // devices))
    return tuple(counts[place] for place in BINS)


def below(middle: float) -> list[float]:
    """Return the chance of a normal value below each edge, and 1."""
    edges = (-3 + place / 4 for place in range(EDGES + 1))
    return [*((1 + math.erf((edge - middle) / math.sqrt(2))) / 2 for edge in edges), 1.0]


def labels(dice: random.Random, count: int, moved: float) -> tuple[int, ...]:
    weights = [weight * (1 - moved) for weight in MIX]
    weights[-1] += moved
    found = Counter(dice.choices(range(len(MIX)), weights, k=count))
    return tuple(found[place] for place in range(len(MIX)))


def alarm(dice: random.Random, count: int, spread: float, change: dict[str, float]) -> bool:
    """Return whether one look says that something drifts."""
    bins = tuple(str(place) for place in BINS)
    seen = [
        Seen(
            f"inputs.x.{n}",
            bins,
            binned(dice, BASELINE, 0.0, 0.0),
            binned(dice, count, 0.0 if n else change.get("shift", 0.0), spread),
        )
        for n in range(FEATURES)
    ]
    names = tuple(map(str, range(len(MIX))))
    now = labels(dice, count, change.get("moved", 0.0))
    seen.append(Seen("classes", names, labels(dice, BASELINE, 0.0), now))
    return any(drift.verdict == "drift" for drift in verdicts(seen, Rule()))


def table(trials: int, seed: int) -> str:
    """Return the shares of looks that alarm."""
    rows = [
        f"{trials} looks a cell, a baseline of {BASELINE} samples; seed {seed}:",
        "",
        "| looks that alarm | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for name, change in CHANGES.items():
        cells = []
        for count, spread in COLUMNS.values():
            dice = random.Random(f"{seed} {name} {count} {spread}")
            found = sum(alarm(dice, count, spread, change) for _ in range(trials))
            cells.append(f"{100 * found / trials:.3g} %")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


@click.command()
@click.option("--trials", default=200, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--write-page", is_flag=True, help="Put the table into the reference.")
def main(trials: int, seed: int, write_page: bool) -> None:
    """Measure, and print the table."""
    found = table(trials, seed)
    print(found)
    if write_page:
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
