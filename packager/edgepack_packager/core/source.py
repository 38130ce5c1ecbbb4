"""What kind of model a path is, judged by its name and first bytes. Opens nothing."""

from dataclasses import dataclass

from edgepack.errors import UnsupportedError, UsageError

__all__ = ["SourceKind", "recognise", "split_factory"]


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of model that can be built from."""

    name: str
    """As in the manifest's provenance: `keras`, `onnx`, `torch_program`, ..."""
    title: str


KERAS = SourceKind("keras", "Keras model")
SAVED_MODEL = SourceKind("saved_model", "TensorFlow SavedModel")
ONNX = SourceKind("onnx", "ONNX model")
TORCH_PROGRAM = SourceKind("torch_program", "PyTorch exported program")
TORCHSCRIPT = SourceKind("torchscript", "TorchScript")
TORCH_MODULE = SourceKind("torch_module", "PyTorch module")
TFLITE = SourceKind("tflite", "TFLite model")
OPENVINO = SourceKind("openvino", "OpenVINO IR")

KNOWN = {
    ".keras": KERAS, ".onnx": ONNX, ".pt2": TORCH_PROGRAM, ".pt": TORCHSCRIPT, ".pth": TORCHSCRIPT,
    ".py": TORCH_MODULE, ".tflite": TFLITE, ".xml": OPENVINO,
}  # fmt: skip
ZIPPED = frozenset({KERAS, TORCH_PROGRAM})
WEIGHTS = ("weights without a model", "build from the code: module.py:factory --weights FILE")
NOT_YET = {
    ".safetensors": WEIGHTS,
    ".ckpt": WEIGHTS,
    ".bin": ("the weights of an OpenVINO IR, or of something else", "give the .xml beside it"),
    ".h5": ("a Keras 2 file", "save it again with Keras 3: model.save('model.keras')"),
    ".hdf5": ("a Keras 2 file", "save it again with Keras 3: model.save('model.keras')"),
    ".pb": ("a frozen TensorFlow graph", "export it as a SavedModel directory"),
    ".gguf": ("a GGUF model", "build from an ONNX export of the model"),
    ".ort": ("an ONNX Runtime model", "build from the .onnx it came from"),
    ".pte": ("an ExecuTorch program", "build from the exported program (.pt2) it came from"),
    ".mlmodel": ("a Core ML model", "build from the model it came from"),
}
ALL = (
    "a .keras, .onnx, .pt2, .tflite or OpenVINO .xml file, a TorchScript .pt, module.py:factory, "
    "or a SavedModel directory"
)


def split_factory(text: str) -> tuple[str, str | None]:
    """Return path and factory of `module.py:factory`; any other TEXT is all path.

    Raises:
        UsageError: a Python file without a factory.
    """
    path, colon, factory = text.rpartition(":")
    if colon and path.endswith(".py") and factory.isidentifier():
        return path, factory
    if text.endswith((".py", ".py:")):
        raise UsageError(
            f"{text} does not say which function makes the model",
            fix="give module.py:factory; factory() returns the torch.nn.Module",
            reason="no_factory",
        )
    return text, None


def recognise(
    name: str,
    *,
    entries: frozenset[str] | None,
    head: bytes,
    members: frozenset[str] = frozenset(),
) -> SourceKind:
    """Return the kind of the model called NAME.

    Args:
        name: File or directory name.
        entries: Names in the directory; None for a file.
        head: The first 64 bytes of the file; empty for a directory.
        members: What is in the file, if it is a zip archive.

    Raises:
        UnsupportedError: a known kind that cannot be built from.
        UsageError: not a model, empty, or not what its name says.
    """
    suffix = "." + name.rpartition(".")[2].lower() if "." in name else ""
    if entries is not None:
        return _directory(name, entries)
    if suffix in NOT_YET:
        title, fix = NOT_YET[suffix]
        raise UnsupportedError(f"{name} is {title}", fix=fix, reason="source_kind")
    if suffix not in KNOWN:
        raise UsageError(
            f"{name} is not a model that can be built from",
            fix=f"give {ALL}",
            reason="unknown_source",
        )
    kind = KNOWN[suffix]
    wrong = _wrong(kind, head)
    if wrong:
        raise UsageError(f"{name} cannot be opened", why=wrong, reason="corrupt_model")
    return _torch_archive(name, members) if kind is TORCHSCRIPT else kind


def _wrong(kind: SourceKind, head: bytes) -> str:
    """Return why a file that starts with HEAD is not of KIND; empty if it may be."""
    if not head:
        return "the file is empty"
    if kind in ZIPPED and not head.startswith(b"PK"):
        return "it is not a zip archive"
    if kind is TFLITE and head[4:8] != b"TFL3":
        return "it does not start as a TFLite model does"
    if kind is OPENVINO and b"<net" not in head and b"<?xml" not in head:
        return "it does not start as an OpenVINO IR does"
    return ""


def _torch_archive(name: str, members: frozenset[str]) -> SourceKind:
    """Tell TorchScript from what else is called `.pt`: programs, weights, pickled modules."""
    inner = {member.partition("/")[2] for member in members}
    if "constants.pkl" in inner:
        return TORCHSCRIPT
    if "models/model.json" in inner:
        return TORCH_PROGRAM
    raise UsageError(
        f"{name} is a pickle of weights or objects, not a model",
        why="there is no TorchScript in it, so it does not say what is computed",
        fix=f"build from the code: module.py:factory --weights {name} --trust-source, "
        "or save torch.export.export(model.eval(), inputs) as .pt2",
        reason="pickled_model",
    )


def _directory(name: str, entries: frozenset[str]) -> SourceKind:
    if "saved_model.pb" in entries:
        return SAVED_MODEL
    raise UsageError(
        f"{name} is a directory, but not a SavedModel",
        why="there is no saved_model.pb in it",
        fix=f"give {ALL}",
        reason="unknown_source",
    )
