"""Write a folder that another server can serve a model from. Decides nothing; see `core.emit`."""

import shutil
import tempfile
from pathlib import Path

from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Manifest
from edgepack_packager.core.emit import Emission, emission
from edgepack_targets import registry
from edgepack_targets.interface import MODEL_FILES

__all__ = ["emit"]


def emit(kind: str, manifest: Manifest, model_dir: Path, out_dir: Path) -> Path:
    """Write what KIND needs to serve the model in MODEL_DIR; return the folder.

    It is called like the bundle, with the consumer at the end: `NAME-VERSION-VARIANT.KIND`. An
    older one is replaced, all or nothing.

    Args:
        kind: One of `core.emit.KINDS`.
        manifest: Of the bundle.
        model_dir: Its model's files.
        out_dir: Where the bundle is.

    Raises:
        UsageError: there is no such consumer, or OUT_DIR cannot be written.
        UnsupportedError: the consumer cannot take this model.
    """
    wanted = emission(kind, manifest, _aliases(manifest, model_dir))
    _check_types(manifest, model_dir)
    target = out_dir / f"{manifest.file_name.removesuffix('.edgepack')}.{kind}"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=out_dir) as name:
            _fill(Path(name) / "new", wanted, manifest, model_dir)
            if target.exists():
                target.rename(Path(name) / "old")
            (Path(name) / "new").rename(target)
    except OSError as error:
        raise UsageError(
            f"cannot write {target}", why=error.strerror or str(error), reason="unwritable"
        ) from error
    return target


def _fill(folder: Path, wanted: Emission, manifest: Manifest, model_dir: Path) -> None:
    models = folder / wanted.models
    models.mkdir(parents=True)
    for path, text in wanted.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for name in MODEL_FILES[manifest.target.runtime]:
        shutil.copyfile(model_dir / name, models / name)


def _aliases(manifest: Manifest, model_dir: Path) -> dict[str, str]:
    """Return the tensors' names by native name: to LiteRT, those of the signature count."""
    if manifest.target.runtime != "tflite":
        return {}
    registry.find("tflite").version()
    from edgepack_targets import tflite_session

    model = tflite_session.open_model(model_dir / MODEL_FILES["tflite"][0], 1)
    sides = tflite_session.tensors(model)
    return {name: str(detail["name"]) for side in sides for name, detail in side.items()}


def _check_types(manifest: Manifest, model_dir: Path) -> None:
    """Refuse a model whose own tensors have other types than the public ones.

    Sessions of ours quantise for it; nobody else does.
    """
    sides = registry.find(manifest.target.runtime).describe(model_dir)
    native = {tensor.name: tensor.dtype for side in sides for tensor in side}
    for spec in (*manifest.inputs, *manifest.outputs):
        dtype = native.get(spec.binding.native_name, spec.dtype)
        if dtype != spec.dtype:
            raise UnsupportedError(
                f"`{spec.name}` is {dtype} in the model, and {spec.dtype} outside of it",
                why="other servers feed the model as it is",
                fix="build it with float inputs and outputs (io: float)",
                reason="not_for_consumer",
            )
