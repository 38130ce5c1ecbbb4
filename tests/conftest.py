"""What every test gets: no access to the user's keys, a broker if one is installed, and a check
that no test leaves a process behind."""

import contextlib
import gc
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test file imports onnxruntime, which would report to its maker at once.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# jsonschema loads it for one format (iri), and it compiles a grammar for ten seconds each time.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
REQUIRED = os.environ.get("EDGEPACK_REQUIRE_MOSQUITTO") == "1"
# A busy machine is no failure; in CI the examples are the same every time.
settings.register_profile("edgepack", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("edgepack")


LONGEST = (
    "test_build_refusals", "test_supervisor", "test_build_routes", "test_pages",
    "test_torch_source", "test_service", "test_schemas", "test_ready_sources",
    "test_processes", "test_compression", "test_doctor", "test_tasks", "test_renewal",
    "test_odd_models", "test_by_hand", "test_bad_input", "test_network_faults", "test_tutorial",
    "test_power_cuts", "test_instances",
)  # fmt: skip
"""Files of half a minute or more begin first, so that no process is left with one at the end.
Those that load the machine and those that wait take turns."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = Counter(item.nodeid for item in items)
    twice = [name for name, count in names.items() if count > 1]
    # Of tests with one name, those that run side by side run one.
    assert not twice, f"these name several tests each: {twice}"
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection() -> None:
    gc.disable()  # what is collected stays: it need not be looked through again and again


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.enable()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mosquitto") and not MOSQUITTO and not REQUIRED:
        pytest.skip("the mosquitto broker is not installed (apt-get install mosquitto)")
    if item.get_closest_marker("strace") and not REQUIRED and not _traces():
        pytest.skip("strace is not installed (apt-get install strace) or not allowed here")


@cache
def _traces() -> bool:
    """Say whether a process can be watched with strace."""
    words = ["strace", "-f", "-o", os.devnull, "true"]
    with contextlib.suppress(OSError):
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the run if a child of it is still alive at the end."""
    yield
    left = [pid for pid in _pids() if _is_ours(pid)]
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left]
    assert not left, f"processes left behind: {list(zip(left, commands, strict=True))}"


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_ours(pid: int) -> bool:
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    state, parent = rest.split()[:2]
    return int(parent) == os.getpid() and state != "Z"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's keys and settings; caches of toolchains stay shared."""
    fleet = [f"EDGEPACK_FLEET_{name}" for name in ("URL", "TOKEN", "DATABASE", "CONTENT")]
    for name in ("EDGEPACK_KEY", "EDGEPACK_PASSPHRASE", *fleet):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="session")
def keras_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with model.keras, its data, and x.npz: 50 unlabelled samples."""
    import numpy as np

    from edgepack_packager.demo.training import train_digits
    from kept import made_once

    def make(home: Path) -> Path:
        train_digits(home, epochs=6)
        with np.load(home / "evaluate.npz") as data:
            np.savez(home / "x.npz", image=data["image"][:50])
        return home

    return made_once(tmp_path_factory, "keras", make)
