"""Samples as a folder of pictures: the same numbers as the npz of the same samples."""

from pathlib import Path

import numpy as np
from PIL import Image

from packager_rig import OnnxDigits, edgepack


def as_folder(npz: Path, home: Path) -> tuple[Path, Path]:
    """Write the samples of NPZ as pictures by class, and as an npz of what the pictures hold."""
    with np.load(npz) as data:
        images, labels = data["image"], data["labels"]
    pixels = np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = home / "pictures" / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(folder / f"{index:04d}.png")
    np.savez(home / "same.npz", image=(pixels / np.float32(255)).astype(np.float32), labels=labels)
    return home / "pictures", home / "same.npz"


def test_a_folder_of_pictures_is_a_dataset(digits: OnnxDigits, tmp_path: Path) -> None:
    folder, npz = as_folder(digits.evaluation, tmp_path)
    card = ["--preprocess", '{"color": "gray"}']
    scores = []
    for given in (folder, npz):
        done = edgepack(
            "build", digits.model, "--target", "onnx", "--precision", "int8", "--calibration",
            given, "--evaluate", given, *card, "--unsigned", "--json", "--out", tmp_path / "dist",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.code == 0, done.err
        scores.append(done.document["bundles"][0]["metrics"])
    assert scores[0] == scores[1]
    assert scores[0]["reference"] > 0.9


def test_subfolders_are_named_like_labels(digits: OnnxDigits, tmp_path: Path) -> None:
    folder, _ = as_folder(digits.evaluation, tmp_path)
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(10))))
    done = edgepack(
        "build", digits.model, "--target", "onnx", "--evaluate", folder, "--labels", "labels.txt",
        "--preprocess", '{"color": "gray"}', "--unsigned", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 2
    assert "not a label: digit-0" in done.err
