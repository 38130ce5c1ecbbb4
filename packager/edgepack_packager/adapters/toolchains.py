"""Toolchains: isolated, pinned environments for converters that do not live together.

One directory per set of pins, named by their hash. An environment is installed beside its
place, marked as complete and then renamed, so that an interrupted installation never counts.
Converts nothing.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgepack.errors import UnreachableError, UnsupportedError, UsageError
from edgepack_packager.adapters.worker import Interpreter

__all__ = [
    "TOOLCHAINS", "Toolchain", "find_toolchain", "install", "interpreter", "size_bytes",
    "toolchains_dir",
]  # fmt: skip

MARKER = "edgepack-toolchain"


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A named set of pinned packages."""

    name: str
    purpose: str
    pins: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the name of its directory: pins and Python decide."""
        said = "\n".join((*sorted(self.pins), f"python{sys.version_info[0]}.{sys.version_info[1]}"))
        return f"{self.name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    @property
    def override(self) -> str:
        """Return the environment variable that names a Python to use instead."""
        return f"EDGEPACK_{self.name.upper()}_PYTHON"


TOOLCHAINS = {
    "tf": Toolchain(
        name="tf",
        purpose="Keras and SavedModel to TFLite, ONNX and OpenVINO",
        pins=(
            "tensorflow-cpu==2.21.0",
            "keras==3.15.1",
            "tf2onnx==1.17.0",
            "onnx==1.23.2",
            "numpy==2.4.6",
        ),
    ),
    "torch": Toolchain(
        name="torch",
        purpose="PyTorch to TFLite and ONNX; pruning, low rank, distillation",
        # litert-torch alone would bring a newer torch with gigabytes of CUDA; what it needs is
        # pinned too, because a new converter is another model.
        pins=(
            "torch==2.13.0",
            "litert-torch==0.10.0",
            "litert-converter==0.5.0",
            "ai-edge-litert==2.3.0",
            "ai-edge-quantizer==0.10.0",
            "torchao==0.18.0",
            "jax==0.10.2",
            "jaxlib==0.10.2",
            "transformers==5.24.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "onnxscript==0.7.2",
            "torch-pruning==1.6.1",
            "scikit-learn==1.9.1",
            "safetensors==0.8.0",
            "scipy==1.17.1",
            "numpy==2.4.6",
            "protobuf==7.36.2",
            "ml-dtypes==0.6.0",
        ),
    ),
    "onnx2tf": Toolchain(
        name="onnx2tf",
        purpose="ONNX to TFLite",
        # What onnx2tf itself pins is repeated: its exact pins are why it lives alone.
        pins=(
            "onnx2tf==1.29.24",
            "tensorflow==2.19.0",
            "tf-keras==2.19.0",
            "ai-edge-litert==2.1.0",
            "onnxruntime==1.23.0",
            "onnx==1.19.1",
            "onnxsim==0.4.36",
            "onnxoptimizer==0.4.2",
            "numpy==1.26.4",
            "protobuf==4.25.5",
            "h5py==3.11.0",
            "ml-dtypes==0.5.1",
            "opencv-python==4.11.0.86",
            "psutil==5.9.5",
        ),
    ),
}


def toolchains_dir() -> Path:
    """Return where toolchains live: EDGEPACK_TOOLCHAINS, else the user's cache directory.

    Raises:
        UsageError: EDGEPACK_TOOLCHAINS is no absolute path (reason `relative_path`).
    """
    named = os.environ.get("EDGEPACK_TOOLCHAINS")
    if named and not Path(named).is_absolute():
        raise UsageError(
            f"EDGEPACK_TOOLCHAINS is no absolute path: {named}",
            why="every directory that edgepack is called in would get toolchains of its own",
            fix="write the whole path, from / on",
            reason="relative_path",
        )
    return Path(named) if named else Path(platformdirs.user_cache_dir("edgepack")) / "toolchains"


def find_toolchain(name: str) -> Toolchain:
    """Return the toolchain NAME.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in TOOLCHAINS:
        raise UsageError(
            f"there is no toolchain {name}",
            fix=f"choose one of: {', '.join(TOOLCHAINS)}",
            reason="unknown_toolchain",
        )
    return TOOLCHAINS[name]


def interpreter(toolchain: Toolchain) -> Interpreter | None:
    """Return the Python of TOOLCHAIN, or None if it is not installed.

    Raises:
        UsageError: the environment names a Python that is not there.
    """
    named = os.environ.get(toolchain.override)
    if named:
        if not Path(named).is_file():
            raise UsageError(
                f"{toolchain.override} names {named}, which is not there",
                fix=f"name a Python with the packages of toolchain {toolchain.name}, or unset it",
                reason="toolchain_python",
            )
        return Interpreter(toolchain.name, Path(named).absolute())
    home = toolchains_dir() / toolchain.key
    return Interpreter(toolchain.name, _python(home)) if (home / MARKER).is_file() else None


def size_bytes(toolchain: Toolchain) -> int | None:
    """Return how much disk TOOLCHAIN takes; None if it is not installed in its own place."""
    home = toolchains_dir() / toolchain.key
    if not (home / MARKER).is_file():
        return None
    size, left = 0, [str(home)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
    return size


def install(
    toolchain: Toolchain, say: Callable[[str], None] = lambda _: None
) -> tuple[Interpreter, bool]:
    """Return the Python of TOOLCHAIN, installing it first if need be, and whether that was needed.

    Raises:
        UnreachableError: pip could not install the pins.
        UnsupportedError: the directory cannot be written.
    """
    found = interpreter(toolchain)
    if found:
        return found, False
    home = toolchains_dir() / toolchain.key
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".installing-", dir=home.parent) as folder:
            _fill(toolchain, Path(folder) / "env", say)
            _place(Path(folder) / "env", home)
    except OSError as error:
        raise UnsupportedError(
            f"the toolchain {toolchain.name} cannot be written to {home.parent}",
            why=str(error),
            fix="set EDGEPACK_TOOLCHAINS to the whole path of a directory with 3 GB of room",
            reason="toolchain_directory",
        ) from error
    return Interpreter(toolchain.name, _python(home)), True


def _fill(toolchain: Toolchain, env: Path, say: Callable[[str], None]) -> None:
    say(f"creating the environment of toolchain {toolchain.name}")
    venv.create(env, with_pip=True, symlinks=True)
    _pip(env, ("install", *toolchain.pins), toolchain, say)
    _pip(env, ("check",), toolchain, say)
    (env / MARKER).write_text("\n".join(toolchain.pins) + "\n")


def _pip(env: Path, args: Sequence[str], toolchain: Toolchain, say: Callable[[str], None]) -> None:
    """Run the environment's pip with the user's own index settings."""
    command = [str(_python(env)), "-m", "pip", "--disable-pip-version-check", "--no-input", *args]
    tail: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                tail = [*tail[-5:], line.strip()]
                say(line.strip()[:100])
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UnreachableError(
            f"pip could not install the toolchain {toolchain.name}",
            why=" | ".join(tail),
            fix="check pip's index settings and the network, then: "
            f"edgepack toolchain install {toolchain.name}",
            reason="toolchain_install",
        )


def _place(env: Path, home: Path) -> None:
    """Move the finished environment to its place; another process may have been faster."""
    if not (home / MARKER).is_file():
        shutil.rmtree(home, ignore_errors=True)
    try:
        env.rename(home)
    except OSError:
        if not (home / MARKER).is_file():
            raise


def _python(env: Path) -> Path:
    return env / "bin" / "python"
