"""Time the load of a MobileNetV2 (int8) by OpenVINO without, and with, what was compiled before.

    python benchmarks/inference/load_time.py [--rounds 15]

Each load has a fresh process; the three kinds take turns, so that a slow moment hits all of them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import rmtree

import click
import run

from edgepack.bundle import open_bundle
from edgepack.manifest import read_manifest
from edgepack_targets import registry
from edgepack_targets.interface import Placement


def load(slot: Path, home: Path | None) -> float:
    """Return the milliseconds that a session of SLOT took, the runtime being imported."""
    import openvino  # noqa: F401

    manifest, place = read_manifest((slot / "manifest.json").read_bytes()), Placement(kept=home)
    begin = time.perf_counter()
    registry.find("openvino").load(slot / "model", manifest, threads=1, place=place)
    return (time.perf_counter() - begin) * 1e3


def fresh(slot: Path, home: Path | None) -> float:
    """Do `load` in a process of its own."""
    line = [sys.executable, __file__, "--slot", slot, *(("--home", home) if home else ())]
    return float(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


@click.command()
@click.option("--rounds", default=15)
@click.option("--slot", type=click.Path(path_type=Path), hidden=True)
@click.option("--home", type=click.Path(path_type=Path), hidden=True)
def main(rounds: int, slot: Path | None, home: Path | None) -> None:
    """Print medians."""
    if slot:
        print(load(slot, home), flush=True)
        os._exit(0)
    times: dict[str, list[float]] = {"without": [], "first": [], "kept": []}
    with tempfile.TemporaryDirectory() as name:
        place, kept = Path(name), Path(name) / "kept"
        with open_bundle(run.build(place)["openvino"]) as bundle:
            bundle.extract(place / "slot")
        for _ in range(rounds):
            rmtree(kept, ignore_errors=True)
            kept.mkdir(mode=0o700)
            times["without"].append(fresh(place / "slot", None))
            times["first"].append(fresh(place / "slot", kept))
            times["kept"].append(fresh(place / "slot", kept))
    for kind, found in times.items():
        print(f"{kind:<8} {statistics.median(found):.0f} ms ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    main()
