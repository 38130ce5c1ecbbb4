"""Write a bundle's model for an app: its files, labels and `model.json`, in one folder."""

import shutil
from pathlib import Path, PurePosixPath

import msgspec

from edgepack.bundle import Bundle
from edgepack.errors import UsageError
from edgepack_packager.core.embedding import Steps, embedded
from edgepack_targets import registry
from edgepack_targets.interface import MODEL_FILES

__all__ = ["write_flat"]

FLAT_ROLES = frozenset({"model", "labels", "asset"})
DOCUMENT = "model.json"


def write_flat(bundle: Bundle, directory: Path) -> None:
    """Write model, labels, assets and `model.json` of BUNDLE to DIRECTORY, without folders.

    Raises:
        UsageError: two files would have the same name.
        IntegrityError: the model cannot be read.
        UnsupportedError: the runtime, which knows the scales of an int8 model, is not here.
    """
    flat = [entry for entry in bundle.manifest.files if entry.role in FLAT_ROLES]
    for entry in flat:
        target = directory / PurePosixPath(entry.path).name
        if target.exists() or target.name == DOCUMENT:
            raise UsageError(f"two files would be called {target.name}", fix="leave out --flat")
        with bundle.open_blob(entry.sha256) as blob, target.open("wb") as file:
            shutil.copyfileobj(blob, file)
    if bundle.manifest.labels and not any(entry.role == "labels" for entry in flat):
        text = "".join(f"{name}\n" for name in bundle.manifest.labels)
        (directory / "labels.txt").write_text(text, encoding="utf-8")
    said = embedded(bundle.manifest, bundle.digest, _integers(bundle, directory))
    data = msgspec.json.format(msgspec.json.encode(said), indent=2)
    (directory / DOCUMENT).write_bytes(data + b"\n")


def _integers(bundle: Bundle, directory: Path) -> dict[str, tuple[str, Steps]]:
    """Return type and steps of what is quantised in the model and float in the manifest.

    Only TFLite has that; there the session of ours does what an app has to do itself.
    """
    target = bundle.manifest.target
    if (target.runtime, target.precision) != ("tflite", "int8"):
        return {}
    registry.find("tflite").version()
    from edgepack_targets import tflite_session

    model = tflite_session.open_model(directory / MODEL_FILES["tflite"][0], 1)
    return {
        name: (str(scale.dtype), Steps(scale=float(scale.step), zero_point=int(scale.zero)))
        for side in tflite_session.tensors(model)
        for name, detail in side.items()
        if (scale := tflite_session.scale_of(detail)) is not None
    }
