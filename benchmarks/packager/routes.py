"""Build every source for every target in fp32, fp16 and int8, and write what came of it.

    python benchmarks/packager/routes.py --page docs/reference/routes.md

Each cell is a real `edgepack build` of a digits classifier: the size of the model against fp32,
and the top-1 it loses (one image is about 0.002). What is refused stands there with its reason.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from digits import calibration_npz, digits_onnx, evaluation_npz
from digits_torch import torch_digits
from edgepack.bundle import open_bundle
from edgepack_packager.adapters.toolchains import find_toolchain, install
from edgepack_packager.demo.training import train_digits
from packager_rig import COMMAND

TARGETS = ("openvino", "tflite", "onnx", "onnx-mobile")
PRECISIONS = ("fp32", "fp16", "int8")
HEAD = """# Routes

Every source, target and precision, built and proven by `edgepack build` on a digits classifier:
size of the model against fp32 of the same target, and how much top-1 it loses. What has no route
says why.

"""
SAVED = "import keras, sys; keras.saving.load_model(sys.argv[1]).export(sys.argv[2], verbose=False)"


@dataclass(frozen=True)
class Source:
    """What is built, and the data that fits it."""

    name: str
    model: str
    data: Path
    flags: tuple[str, ...] = ()

    def build(self, home: Path) -> dict[str, Any]:
        words = [COMMAND, "build", self.model, *self.flags, "--name", "digits", "--unsigned"]
        words += [word for target in TARGETS for word in ("--target", target)]
        words += [word for precision in PRECISIONS for word in ("--precision", precision)]
        words += ["--calibration", str(self.data / "calibration.npz")]
        words += ["--evaluate", str(self.data / "evaluation.npz"), "--json"]
        words += ["--out", str(home / self.name.split()[0].lower())]
        done = subprocess.run(words, cwd=home, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise SystemExit(f"{self.name}: {done.stderr}")
        return dict(json.loads(done.stdout))


def sources(home: Path) -> Iterator[Source]:
    """Train what is built from; the ready models come out of an ONNX build."""
    keras, torch, onnx = home / "keras", home / "torch", home / "onnx"
    for folder in (keras, torch, onnx):
        folder.mkdir()
    train_digits(keras, epochs=6)
    (keras / "evaluate.npz").rename(keras / "evaluation.npz")
    python, _ = install(find_toolchain("tf"))
    command = [str(python.python), "-c", SAVED, str(keras / "model.keras"), str(keras / "saved")]
    subprocess.run(command, check=True, capture_output=True)
    yield Source("Keras", str(keras / "model.keras"), keras)
    yield Source("SavedModel", str(keras / "saved"), keras)
    torch_digits(torch)
    yield Source("PyTorch program", str(torch / "digits.pt2"), torch)
    weights = ("--weights", str(torch / "weights.safetensors"), "--trust-source")
    yield Source("Module (PyTorch)", f"{torch / 'digits.py'}:make", torch, weights)
    shape = ("--shape", "image=1,1,16,16")
    yield Source("TorchScript", str(torch / "script.pt"), torch, shape)
    digits_onnx(onnx / "digits.onnx")
    calibration_npz(onnx / "calibration.npz")
    evaluation_npz(onnx / "evaluation.npz")
    yield Source("ONNX", str(onnx / "digits.onnx"), onnx)
    for target, file, title in (
        ("tflite", "model.tflite", "TFLite (ready)"), ("openvino", "model.xml", "IR (ready)"),
    ):  # fmt: skip
        ready = home / f"ready-{target}"
        with open_bundle(home / "keras" / f"digits-0.1.0-{target}-fp32.edgepack") as bundle:
            bundle.extract(ready)
        yield Source(title, str(ready / "model" / file), keras)


def cells(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Return what came of each target and precision, in a few words."""
    plain = {b["target"]: b["model_bytes"] for b in document["bundles"] if b["precision"] == "fp32"}
    found = {
        (b["target"], b["precision"]): f"{b['model_bytes'] / plain[b['target']]:.2f} x, "
        f"{b['metrics']['drop']:+.4f}"
        for b in document["bundles"]
    }
    refused = {(f["target"], f["precision"]): f"no: {f['reason']}" for f in document["failed"]}
    return found | refused


def table(home: Path) -> Iterator[str]:
    yield f"| source | target | {' | '.join(PRECISIONS)} |"
    yield "|---|---|" + "---|" * len(PRECISIONS)
    for source in sources(home):
        print(source.name, file=sys.stderr)
        found = cells(source.build(home))
        for target in TARGETS:
            row = " | ".join(found.get((target, precision), "?") for precision in PRECISIONS)
            yield f"| {source.name} | {target} | {row} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, required=True)
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory(prefix="edgepack-routes-") as folder:
        rows = list(table(Path(folder)))
    page.write_text(HEAD + "\n".join(rows) + "\n\nMade by `benchmarks/packager/routes.py`.\n")


if __name__ == "__main__":
    main()
