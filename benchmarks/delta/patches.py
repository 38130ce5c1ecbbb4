"""Measure patches between two versions of a model: bytes, time and memory, beside other tools.

    python benchmarks/delta/patches.py [--hidden 1024] [--write-page]

Everything is run as a process of its own, applying as the agent does it. `xdelta3`, `bsdiff`,
`zstd` and `xz` are the command-line tools where they are installed. `--write-page` writes the
table of docs/reference/delta.md.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from edgepack.patch import CODECS  # noqa: E402
from edgepack_packager.adapters.patch_workshop import Workshop  # noqa: E402
from edgepack_packager.core.deltas import Pair  # noqa: E402
from tuned_digits import KINDS, files, net  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "delta.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MEMORY = 128 * 2**20
MIB = 2**20


LAUNCH = """
import os, subprocess, sys
handles = [int(word) for word in sys.argv[1].split(",") if word]
process = subprocess.Popen(sys.argv[2:], pass_fds=handles, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, file=sys.stderr)
"""
"""Starts a command from a small process: the kernel counts the memory of who starts one, too."""


def run(
    command: Sequence[str | Path], handles: Sequence[int] = (), stdout: IO[bytes] | None = None
) -> tuple[float, float]:
    """Run COMMAND and return its CPU seconds and its largest resident memory in MiB."""
    launcher = [sys.executable, "-S", "-c", LAUNCH, ",".join(map(str, handles)), *command]
    done = subprocess.run(
        launcher, pass_fds=handles, stdout=stdout, stderr=subprocess.PIPE, check=True
    )
    code, cpu, rss = done.stderr.split()
    assert int(code) == 0, command
    return float(cpu), float(rss) / 1024


def ours(home: Path, old: Path, new: Path) -> dict[str, tuple[int, float, float, float]]:
    """Return bytes, seconds to make, CPU seconds and MiB to apply, by codec."""
    pair = Pair("a@1", "a@2", new.name, _sha(old), _size(old), _sha(new), _size(new))
    found = {}
    with Workshop(lambda *_: None) as workshop:
        shutil.copyfile(old, workshop.file(pair.base))
        shutil.copyfile(new, workshop.file(pair.target))
        for codec in CODECS:
            started = time.perf_counter()
            made = workshop.make(pair, codec)
            seconds = time.perf_counter() - started
            assert made is not None
            workshop.prove(pair, made)
            with (
                old.open("rb") as base,
                made.path.open("rb") as patch,
                (home / "out").open("wb") as out,
            ):
                numbers = [base.fileno(), patch.fileno(), out.fileno()]
                words = [*numbers, pair.target_size, MEMORY, 600]
                # The launcher is its parent, which it has to know.
                start = f"exec {sys.executable} -P -m edgepack_agent.patcher {{}} $PPID"
                command = ["sh", "-c", start.format(" ".join(map(str, words)))]
                cpu, rss = run(command, numbers)
            assert (home / "out").read_bytes() == new.read_bytes()
            found[codec] = (made.size, seconds, cpu, rss)
    return found


def peers(home: Path, old: Path, new: Path) -> dict[str, tuple[int, float, float]]:
    """Return bytes, CPU seconds and MiB to apply, by tool."""
    patch, out = home / "peer", home / "peer.out"
    commands: dict[str, tuple[list[str | Path], list[str | Path]]] = {
        "xdelta3": (
            ["xdelta3", "-e", "-f", "-9", "-S", "lzma", "-s", old, new, patch],
            ["xdelta3", "-d", "-f", "-s", old, patch, out],
        ),
        "bsdiff": (["bsdiff", old, new, patch], ["bspatch", old, out, patch]),
        "zstd": (
            ["zstd", "-q", "-f", "-19", "--long=27", f"--patch-from={old}", new, "-o", patch],
            ["zstd", "-q", "-f", "-d", "--long=27", f"--patch-from={old}", patch, "-o", out],
        ),
    }
    found = {}
    for tool, (make, apply) in commands.items():
        if shutil.which(tool):
            run(make)
            size = _size(patch)
            found[tool] = (size, *run(apply))
            assert out.read_bytes() == new.read_bytes()
    return found


def whole(home: Path, new: Path) -> dict[str, int]:
    """Return the bytes of the whole file, compressed."""
    found = {}
    for tool, words in (("xz", ["-9e"]), ("zstd", ["-19"])):
        copy = home / f"whole.{tool}"
        with copy.open("wb") as out:
            run([tool, "-q", *words, "-c", new], stdout=out)
        found[tool] = _size(copy)
    return found


def measure(hidden: int) -> tuple[list[str], list[str]]:
    """Return the rows of the table of bytes, and of that of what applying costs."""
    wire, cost = [], []
    with tempfile.TemporaryDirectory(prefix="edgepack-delta-") as name:
        home = Path(name)
        first = files(home / "first", net(hidden))
        for kind in KINDS:
            for form, new in files(home / kind, net(hidden, kind)).items():
                old, size = first[form], _size(new)
                made, rivals, full = ours(home, old, new), peers(home, old, new), whole(home, new)
                shares = [
                    *(full[tool] / size for tool in ("xz", "zstd")),
                    *(made[codec][0] / size for codec in CODECS),
                    *(rivals[tool][0] / size if tool in rivals else None
                      for tool in ("zstd", "xdelta3", "bsdiff")),
                ]  # fmt: skip
                wire.append(_row(kind, form, f"{size / 1e6:.2f}", *map(_share, shares)))
                if kind == "tuned":
                    for tool, facts in _applied(made, rivals).items():
                        cost.append(_row(form, tool, *facts))
                print(wire[-1], file=sys.stderr)
    return wire, cost


def _applied(
    made: dict[str, tuple[int, float, float, float]], rivals: dict[str, tuple[int, float, float]]
) -> dict[str, tuple[str, ...]]:
    found = {
        f"ours, {codec}": (f"{seconds:.1f}", f"{cpu:.2f}", f"{rss:.0f}")
        for codec, (_, seconds, cpu, rss) in made.items()
    }
    return found | {
        tool: ("", f"{cpu:.2f}", f"{rss:.0f}") for tool, (_, cpu, rss) in rivals.items()
    }


def tables(hidden: int) -> str:
    """Return both tables as Markdown."""
    wire, cost = measure(hidden)
    tools = ("xz", "zstd", "zstd patch", "bsdiff patch", "`zstd --patch-from`", "`xdelta3`",
             "`bsdiff`")  # fmt: skip
    lines = [
        _row("change", "file", "MB", *tools),
        "|---" * (3 + len(tools)) + "|",
        *wire,
        "",
        "| file | tool | make, s | apply, CPU s | apply, MiB |",
        "|---|---|---|---|---|",
        *cost,
    ]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _size(path: Path) -> int:
    return path.stat().st_size


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--write-page", action="store_true")
    given = parser.parse_args()
    text = tables(given.hidden)
    print(text)
    if given.write_page:
        page = PAGE.read_text()
        inner = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
        PAGE.write_text(inner.sub(f"{BEGIN}\n{text}\n{END}", page))


if __name__ == "__main__":
    main()
