"""What takes long to make and is the same for every test: made once for all that want it."""

import fcntl
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from platformdirs import user_cache_path

T = TypeVar("T")


def kept_arrays(
    name: str, source: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return what MAKE returned the first time on this machine, as long as nothing has changed.

    Args:
        name: What it is.
        source: The file whose content decides, with the versions of numpy and scikit-learn.
        make: Deterministic.
    """
    facts = [Path(source).read_bytes(), *(version(p).encode() for p in ("numpy", "scikit-learn"))]
    digest = hashlib.sha256(b"\0".join(facts)).hexdigest()[:16]
    path = user_cache_path("edgepack") / "tests" / f"{name}-{digest}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, **make())
            part.replace(path)
    with np.load(path) as found:
        return dict(found)


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T], *, home: str = ""
) -> T:
    """Return what MAKE returns, called by the first of the processes of this run to ask for NAME.

    The others wait for it and get a copy. Nobody may change what is in the directory afterwards.

    Args:
        factory: Of this process.
        name: What is made.
        make: Gets an empty directory.
        home: The directory of something made before, to be added to; empty: a new one.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    directory = root / f"once-{home or name}"
    result = root / f"once-{name}.pickle"
    with _locked(root / f"once-{name}.lock"):
        if not result.exists():
            directory.mkdir(exist_ok=bool(home))
            made = make(directory)
            part = result.with_suffix(".part")
            part.write_bytes(pickle.dumps(made))
            part.replace(result)
    found: Any = pickle.loads(result.read_bytes())
    return found  # type: ignore[no-any-return]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
