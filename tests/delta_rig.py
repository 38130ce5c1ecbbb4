"""Bundles of one line whose model changes a little from version to version."""

import random
from pathlib import Path

import bundles
from edgepack.bundle import write_bundle

SIZE = 300_000


def model(changes: int = 0, *, size: int = SIZE, seed: int = 5) -> bytes:
    """Return a model of SIZE bytes of noise, CHANGES of them others than in the first."""
    content = bytearray(random.Random(seed).randbytes(size))
    for place in random.Random(changes).sample(range(size), changes):
        content[place] = (content[place] + 1) % 256
    return bytes(content)


def release(home: Path, version: str, content: bytes) -> Path:
    """Write a signed bundle of VERSION below HOME, whose model is CONTENT."""
    files = bundles.sources(home / f"sources-{version}")
    files["model/model.onnx"].write_bytes(content)
    return write_bundle(
        home / "dist", bundles.manifest(version=version), files, key=bundles.KEY
    ).path
