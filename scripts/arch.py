"""Prove bundles built here on other classes of CPU; scripts/test-arch sets up and starts this.

For every target and precision: the golden vectors must pass, and the decision on each of some
hundred images must be the one that this machine makes. A control, ONNX with all 8 bits of the
weights, must decide differently with AVX2 alone: it shows that a fault would be seen.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import arch_system
import click
import msgspec
import numpy as np
from arch_system import CPUS, RUNTIMES, Cpu

from edgepack.bundle import open_bundle, write_bundle
from edgepack_packager.demo.training import train_digits
from edgepack_targets import registry
from edgepack_targets.binding import native_layout
from edgepack_targets.interface import Quantization
from edgepack_targets.pipeline.agreement import cosine, top1

HERE = Path(__file__).resolve().parent
PRECISIONS = ("fp32", "fp16", "int8")
CONTROL = "int8, 8-bit weights"
VNNI = "avx512_vnni"
PAGE = HERE.parent / "docs" / "how-to" / "test-other-cpus.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Row:
    """One bundle on one CPU."""

    cpu: Cpu
    target: str
    precision: str
    passed: bool
    """Of the golden vectors, by the rule in the manifest."""
    golden: float
    """Lowest cosine of the golden vectors."""
    same: float
    """Share of images with the same decision as on this machine."""
    cosine: float
    """Lowest of all images, to what this machine answered."""
    identical: float
    """Share of images with the same bits in all outputs."""
    fault: str = ""

    @property
    def good(self) -> bool:
        """Whether this is what must be."""
        if self.precision == CONTROL:
            return (self.same < 1) == self.cpu.saturates
        return not self.fault and self.passed and self.same == 1

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        first = (self.cpu.name, self.cpu.says, self.target, self.precision)
        if self.fault:
            return (*first, self.fault, "", "", "")
        golden = "-" if self.precision == CONTROL else "passed" if self.passed else "failed"
        numbers = (f"{self.same:.4f}", f"{1 - self.cosine:.1e}", f"{self.identical:.0%}")
        return (*first, golden, *numbers)


HEAD = ("CPU", "class", "target", "precision", "golden", "same decision", "1 - cosine", "identical")


def build(home: Path, targets: tuple[str, ...]) -> list[Path]:
    """Train a digits CNN in HOME and build it for TARGETS; return the bundles."""
    train_digits(home, epochs=6)
    edgepack = Path(sys.executable).with_name("edgepack")
    data = ("--calibration", "calibration.npz", "--evaluate", "evaluate.npz")
    for target in targets:
        can = registry.find(target).capability().precisions
        chosen = [w for p in PRECISIONS if p in can for w in ("--precision", p)]
        subprocess.run(
            [edgepack, "build", "model.keras", "--target", target, *chosen, *data,
             "--unsigned", "--out", "dist"],
            cwd=home, check=True, stdout=sys.stderr,
        )  # fmt: skip
    return sorted((home / "dist").glob("*.edgepack"))


def build_control(home: Path) -> Path:
    """Write ONNX int8 with 8-bit weights, as for a CPU with VNNI; golden vectors stay fp32's."""
    slot, model = home / "control", home / "control-model"
    with open_bundle(next((home / "dist").glob("*-onnx-fp32*.edgepack"))) as opened:
        opened.extract(slot)
        manifest = opened.manifest
    model.mkdir()
    with np.load(home / "calibration.npz") as arrays:
        samples = {
            spec.binding.native_name: native_layout(spec, arrays[spec.name])
            for spec in manifest.inputs
        }
    how = Quantization("int8", cpu_features=(VNNI,))
    registry.find("onnx").quantize(slot / "model", model, how, samples)
    golden = (manifest.golden.inputs, manifest.golden.outputs)
    files = {path: slot / path for path in golden}
    files |= {f"model/{path.name}": path for path in model.iterdir()}
    renamed = msgspec.structs.replace(manifest, name="control", files=(), labels=())
    return write_bundle(home / "dist", renamed, files, key=None).path


def judge(cpu: Cpu, bundle: Path, work: Path, samples: Path) -> Row:
    """Run BUNDLE on CPU and compare it with what it answers here."""
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    control = manifest.name == "control"
    precision = CONTROL if control else manifest.target.precision
    here, there = (work / f"{bundle.stem}-{name}.npz" for name in ("here", cpu.name))
    probe = (HERE / "arch_probe.py", bundle, samples)
    try:
        if not here.exists():
            arch_system.run(None, work, *probe, here)
        said = json.loads(arch_system.run(cpu, work, *probe, there))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Row(cpu, manifest.target.runtime, precision, False, 0, 0, 0, 0, fault=str(error))
    with np.load(here) as left, np.load(there) as right:
        ours, theirs = (side[manifest.agreement.output] for side in (left, right))
    same = float((top1(ours) == top1(theirs)).mean())
    identical = float((ours == theirs).reshape(len(ours), -1).all(axis=1).mean())
    return Row(
        cpu, manifest.target.runtime, precision, said["passed"], said["cosine"], same,
        float(cosine(ours, theirs).min()), identical,
    )  # fmt: skip


def in_columns(rows: list[Row]) -> Iterator[str]:
    """Yield ROWS as lines of a table for a terminal."""
    lines = [HEAD, *(row.cells for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    notes = ["", *("" if row.good else "  <- WRONG" for row in rows)]
    for line, note in zip(lines, notes, strict=True):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip() + note


def write_page(rows: list[Row]) -> None:
    """Put ROWS into the documentation between its two marks."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


def _wheel(work: Path) -> Path:
    """Build edgepack's own wheel: what a device would install."""
    words = ("wheel", "-qq", "--disable-pip-version-check", "--no-deps", "-w", work / "wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", *words, HERE.parent], check=True, stdout=sys.stderr
    )
    return next((work / "wheel").glob("edgepack-*.whl"))


def _say(text: str) -> None:
    print(f"test-arch: {text}", file=sys.stderr, flush=True)


@click.command()
@click.option("--cpu", "names", multiple=True, type=click.Choice([cpu.name for cpu in CPUS]))
@click.option("--target", "targets", multiple=True, type=click.Choice(tuple(RUNTIMES)))
@click.option("--write-page", "page", is_flag=True, help="Put the table into the documentation.")
def main(names: tuple[str, ...], targets: tuple[str, ...], page: bool) -> None:
    """Build bundles and judge them on emulated CPUs; exit 1 on a wrong decision."""
    arch_system.require_x86()
    start = time.monotonic()
    cpus = [cpu for cpu in CPUS if not names or cpu.name in names]
    with tempfile.TemporaryDirectory(prefix="edgepack-arch-") as name:
        work = Path(name)
        bundles = build(work, targets or tuple(RUNTIMES))
        if "onnx" in (targets or RUNTIMES):
            bundles.append(build_control(work))
        if any(cpu.machine == "aarch64" for cpu in cpus):
            _say("fetching an ARM system and the runtimes for it")
            arch_system.make_arm_system(work, _wheel(work))
        rows: list[Row] = []
        for cpu in cpus:
            _say(f"{cpu.name}: {cpu.says}")
            rows += [judge(cpu, bundle, work, work / "evaluate.npz") for bundle in bundles]
    print("\n".join(in_columns(rows)))
    wrong = [row for row in rows if not row.good]
    _say(f"{len(rows)} checks, {len(wrong)} wrong, {time.monotonic() - start:.0f} s")
    if page and not wrong:
        write_page(rows)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
