"""Every state that a power cut may leave, one after the other. Checks none of them.

For every moment between two operations: the four extremes (see `Disk.crash`), a plain kill
among them, and some seeded accidents. A `Cut` can be made again from its moment, seed and
`ordered` alone. The same image may be right after one moment and wrong after another, where
something has been promised since; so it comes again, with the same `mark`, by which what was
found out about it can be remembered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crashstates.disk import Disk, Image
from crashstates.trace import Op

__all__ = ["EXTREMES", "Cut", "cuts"]

EXTREMES = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left when the power goes after MOMENT operations."""

    moment: int
    seed: int
    ordered: bool
    mark: int
    image: Image
    last: str

    def __str__(self) -> str:
        names = "ordered" if self.ordered else "posix"
        return f"cut {self.moment} ({self.last}), seed {self.seed}, {names}"


def cuts(
    before: Image, ops: Sequence[Op], *, ordered: bool, seeds: int, first: int = 0
) -> Iterator[Cut]:
    """Yield the cuts of OPS on a disk that held BEFORE, those of one moment all different.

    Args:
        before: What is durable at first.
        ops: What was done then.
        ordered: How the disk treats names.
        seeds: Accidents per moment, besides the extremes.
        first: The first accident's number; another one gives other accidents.
    """
    disk = Disk(before, ordered=ordered)
    for moment, op in enumerate((None, *ops)):
        if op is not None:
            disk.apply(op)
        met = set[int]()
        accidents = range(EXTREMES + first, EXTREMES + first + seeds) if disk.unsettled else ()
        for seed in (*range(EXTREMES), *accidents):
            image = disk.crash(seed if seed < EXTREMES else seed * 1_000_003 + moment)
            # Contents are shared between images and remember their hash, so this is quick.
            mark = hash(frozenset(image.items()))
            if mark not in met:
                met.add(mark)
                yield Cut(moment, seed, ordered, mark, image, str(op or "nothing"))
