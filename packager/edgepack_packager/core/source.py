"""What kind of model a path is, judged by its name and first bytes. Opens nothing."""

from dataclasses import dataclass

from edgepack.errors import UnsupportedError, UsageError

__all__ = ["SourceKind", "recognise"]


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of model that can be built from."""

    name: str
    """`keras`, `saved_model` or `onnx`."""
    title: str


KERAS = SourceKind("keras", "Keras model")
SAVED_MODEL = SourceKind("saved_model", "TensorFlow SavedModel")
ONNX = SourceKind("onnx", "ONNX model")

KNOWN = {".keras": KERAS, ".onnx": ONNX}
NOT_YET = {
    ".tflite": ("a TFLite model", "build from the Keras model, SavedModel or ONNX it came from"),
    ".pt2": ("a PyTorch exported program", "export it as ONNX: torch.onnx.export(...)"),
    ".pt": ("a PyTorch file", "export the model as ONNX: torch.onnx.export(...)"),
    ".pth": ("a PyTorch file", "export the model as ONNX: torch.onnx.export(...)"),
    ".safetensors": ("weights without a model", "export the model as ONNX"),
    ".h5": ("a Keras 2 file", "save it again with Keras 3: model.save('model.keras')"),
    ".hdf5": ("a Keras 2 file", "save it again with Keras 3: model.save('model.keras')"),
    ".xml": ("an OpenVINO IR", "build from the model it came from"),
    ".pb": ("a frozen TensorFlow graph", "export it as a SavedModel directory"),
    ".py": ("a Python module", "save the model it defines as .keras or .onnx"),
    ".gguf": ("a GGUF model", "build from an ONNX export of the model"),
    ".ort": ("an ONNX Runtime model", "build from the .onnx it came from"),
}


def recognise(name: str, *, entries: frozenset[str] | None, head: bytes) -> SourceKind:
    """Return the kind of the model called NAME.

    Args:
        name: File or directory name.
        entries: Names in the directory; None for a file.
        head: The first bytes of the file; empty for a directory.

    Raises:
        UnsupportedError: a known kind that cannot be built from yet.
        UsageError: not a model, empty, or not what its name says.
    """
    suffix = "." + name.rpartition(".")[2].lower() if "." in name else ""
    if entries is not None:
        return _directory(name, entries)
    if suffix in NOT_YET:
        title, fix = NOT_YET[suffix]
        raise UnsupportedError(
            f"{name} is {title}, and that route is not there yet", fix=fix, reason="source_kind"
        )
    if suffix not in KNOWN:
        raise UsageError(
            f"{name} is not a model that can be built from",
            fix="give a .keras file, a SavedModel directory or an .onnx file",
            reason="unknown_source",
        )
    if not head or (KNOWN[suffix] is KERAS and not head.startswith(b"PK")):
        why = "the file is empty" if not head else "it is not a zip archive"
        raise UsageError(f"{name} cannot be opened", why=why, reason="corrupt_model")
    return KNOWN[suffix]


def _directory(name: str, entries: frozenset[str]) -> SourceKind:
    if "saved_model.pb" in entries:
        return SAVED_MODEL
    raise UsageError(
        f"{name} is a directory, but not a SavedModel",
        why="there is no saved_model.pb in it",
        fix="give a .keras file, a SavedModel directory or an .onnx file",
        reason="unknown_source",
    )
