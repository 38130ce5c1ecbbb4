"""Patches between two versions of real models, as the runtimes read them."""

import hashlib
from pathlib import Path

import pytest

from edgepack.patch import CODECS
from edgepack_packager.adapters.patch_workshop import Workshop
from edgepack_packager.core.deltas import Pair
from tuned_digits import files, net

LARGEST = {"int8.onnx": 0.45, "fp32.onnx": 0.97, "fp32.tflite": 0.97, "fp16.bin": 0.95}
"""Share of the whole file that the better patch may take, by format, after little tuning."""


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    home = tmp_path_factory.mktemp("tuned")
    return files(home / "one", net(64)), files(home / "two", net(64, "tuned"))


@pytest.mark.parametrize("name", sorted(LARGEST))
def test_a_patch_makes_the_very_model(
    versions: tuple[dict[str, Path], dict[str, Path]], name: str
) -> None:
    old, new = (version[name].read_bytes() for version in versions)
    pair = Pair("digits@1", "digits@2", name, _sha(old), len(old), _sha(new), len(new))
    sizes = {}
    with Workshop(lambda *_: None) as workshop:
        workshop.file(pair.base).write_bytes(old)
        workshop.file(pair.target).write_bytes(new)
        for codec in CODECS:
            made = workshop.make(pair, codec)
            assert made is not None
            workshop.prove(pair, made)
            sizes[codec] = made.size
    assert min(sizes.values()) < LARGEST[name] * len(new), sizes


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
