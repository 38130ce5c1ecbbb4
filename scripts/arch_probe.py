"""Run one bundle with the device's own code and say what came out; started under an emulator.

    python arch_probe.py BUNDLE.edgepack SAMPLES.npz OUTPUTS.npz

Prints one line of JSON: whether the golden vectors agree, and what the session runs with.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgepack.bundle import open_bundle
from edgepack_targets import registry
from edgepack_targets.pipeline.feed import run_samples
from edgepack_targets.pipeline.golden import check_golden


def main(bundle: Path, samples: Path, outputs: Path) -> None:
    """Check BUNDLE's golden vectors here, and answer SAMPLES into OUTPUTS."""
    with tempfile.TemporaryDirectory(prefix="edgepack-probe-") as name:
        slot = Path(name)
        with open_bundle(bundle) as opened:
            opened.extract(slot)
            manifest = opened.manifest
        session = registry.find(manifest.target.runtime).load(slot / "model", manifest, threads=1)
        golden = check_golden(session, manifest, slot)
        with np.load(samples) as arrays:
            inputs = {spec.name: arrays[spec.name] for spec in manifest.inputs}
        np.savez(outputs, **run_samples(session, manifest, inputs))
    said = asdict(golden) | {"min_cosine": manifest.agreement.min_cosine}
    sys.stdout.write(json.dumps(said | {"effective": asdict(session.effective)}) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
