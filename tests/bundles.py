"""Small bundles of arbitrary bytes for tests that do not run the model."""

import random
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.bundle import BundleInfo, write_bundle
from edgepack.manifest import (
    Agreement,
    Binding,
    Golden,
    Manifest,
    Provenance,
    Target,
    TensorSpec,
)

KEY = ec.derive_private_key(1234567, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(7654321, ec.SECP256R1())


def manifest(**fields: Any) -> Manifest:
    """Return a valid manifest without files; FIELDS replace what it says."""
    image = TensorSpec(
        name="image",
        shape=(1, 8, 8, 1),
        dtype="float32",
        layout="NHWC",
        binding=Binding(native_name="x", permutation=(0, 3, 1, 2)),
    )
    scores = TensorSpec(
        name="scores", shape=(1, 10), dtype="float32", binding=Binding(native_name="y")
    )
    said: dict[str, Any] = {
        "schema": "edgepack.bundle/v1",
        "name": "digits",
        "version": "1.0.0",
        "build_id": "",
        "task": "classify",
        "target": Target(
            runtime="onnx", min_runtime="1.23", precision="int8", execution_precision="f32"
        ),
        "inputs": (image,),
        "outputs": (scores,),
        "agreement": Agreement(rule="top1", output="scores"),
        "golden": Golden(inputs="golden/inputs.npz", outputs="golden/outputs.npz", samples=4),
        "provenance": Provenance(source_sha256="0" * 64, source_format="onnx"),
        "labels": tuple("0123456789"),
        "files": (),
    }
    return Manifest(**(said | fields))


def sources(directory: Path, model_bytes: int = 64 * 1024 + 1) -> dict[str, Path]:
    """Write the files of a bundle into DIRECTORY and return them by their path in the bundle."""
    contents = {
        "model/model.onnx": random.Random(5).randbytes(model_bytes),
        "golden/inputs.npz": b"what went in",
        "golden/outputs.npz": b"what came out",
        "labels.txt": b"".join(b"%d\n" % digit for digit in range(10)),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        (directory / path.replace("/", "-")).write_bytes(content)
    return {path: directory / path.replace("/", "-") for path in contents}


def write(
    directory: Path,
    *,
    key: ec.EllipticCurvePrivateKey | None = KEY,
    model_bytes: int = 64 * 1024 + 1,
    **fields: Any,
) -> BundleInfo:
    """Write a bundle of arbitrary bytes below DIRECTORY."""
    files = sources(directory / "sources", model_bytes)
    return write_bundle(directory / "dist", manifest(**fields), files, key=key)
