"""Toolchains: pinned, isolated, whole or not there. pip is real; the packages are tiny."""

import base64
import hashlib
import json
import subprocess
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.errors import UnreachableError, UsageError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.toolchains import MARKER, TOOLCHAINS, Toolchain
from packager_rig import edgepack

INFO = "edgepack_tiny-1.0.dist-info"
TINY = Toolchain("tiny", "nothing", ("edgepack-tiny==1.0",))


def write_wheel(directory: Path) -> None:
    """Write the smallest wheel that pip installs."""
    files = {
        "edgepack_tiny.py": "ANSWER = 42\n",
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: edgepack-tiny\nVersion: 1.0\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record.append(f"{name},sha256={digest.decode()},{len(text)}")
    files[f"{INFO}/RECORD"] = "\n".join(record) + "\n"
    with zipfile.ZipFile(directory / "edgepack_tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where toolchains go; pip finds the tiny wheel through the user's own settings."""
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("EDGEPACK_TOOLCHAINS", str(tmp_path / "toolchains"))
    monkeypatch.delenv("EDGEPACK_TF_PYTHON", raising=False)
    return tmp_path / "toolchains"


def test_a_place_that_depends_on_where_one_stands_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEPACK_TOOLCHAINS", "toolchains")
    with pytest.raises(UsageError) as caught:
        toolchains.interpreter(TINY)
    assert caught.value.reason == "relative_path"


def test_interrupted_installation_does_not_count_and_a_whole_one_does(home: Path) -> None:
    half = home / TINY.key / "bin"
    half.mkdir(parents=True)
    (half / "python").write_text("#!/bin/sh\nexit 1\n")
    assert toolchains.interpreter(TINY) is None
    assert toolchains.size_bytes(TINY) is None
    told: list[str] = []
    where, fresh = toolchains.install(TINY, told.append)
    assert fresh
    assert told
    assert where.isolated
    answer = subprocess.run(
        [where.python, "-c", "import edgepack_tiny; print(edgepack_tiny.ANSWER)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout == "42\n"
    assert toolchains.install(TINY) == (where, False)
    assert [path.name for path in home.iterdir()] == [TINY.key]
    assert (home / TINY.key / MARKER).is_file()
    size = toolchains.size_bytes(TINY)
    assert size is not None
    (home / TINY.key / "more").write_bytes(bytes(1 << 20))
    assert toolchains.size_bytes(TINY) == size + (1 << 20)


def test_failed_installation_leaves_nothing(home: Path) -> None:
    with pytest.raises(UnreachableError) as caught:
        toolchains.install(replace(TINY, pins=("edgepack-tiny==2.0",)))
    assert "edgepack-tiny==2.0" in caught.value.why
    assert "edgepack toolchain install tiny" in caught.value.fix
    assert list(home.iterdir()) == []


@pytest.mark.scale
def test_two_installations_at_once_agree(home: Path) -> None:
    threads = [threading.Thread(target=toolchains.install, args=(TINY,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in home.iterdir()] == [TINY.key]
    assert toolchains.interpreter(TINY) is not None


def test_other_pins_are_another_place() -> None:
    assert replace(TINY, pins=("edgepack-tiny==1.1",)).key != TINY.key
    assert replace(TINY, purpose="other").key == TINY.key


def test_every_pin_is_exact() -> None:
    for known in TOOLCHAINS.values():
        assert all("==" in pin for pin in known.pins)


def test_override_names_a_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\n")
    monkeypatch.setenv("EDGEPACK_TF_PYTHON", str(tmp_path / "python"))
    found = toolchains.interpreter(TOOLCHAINS["tf"])
    assert found is not None
    assert found.python == tmp_path / "python"


def test_unknown_toolchain() -> None:
    with pytest.raises(UsageError, match="there is no toolchain caffe"):
        toolchains.find_toolchain("caffe")


def test_list_says_what_is_missing(home: Path, tmp_path: Path) -> None:
    done = edgepack("toolchain", "list", "--json", cwd=tmp_path)
    listed = json.loads(done.out)["toolchains"]
    assert [one["name"] for one in listed] == list(TOOLCHAINS)
    for one in listed:
        assert (one["installed"], one["python"], one["size_bytes"]) == (False, None, None)
    assert "tf         missing" in edgepack("toolchain", "list", cwd=tmp_path).out


def test_what_cannot_be_installed_is_a_usage_error(home: Path, tmp_path: Path) -> None:
    for arguments in (["caffe"], [], ["tf", "--all"]):
        refused = edgepack("toolchain", "install", *arguments, cwd=tmp_path)
        assert refused.code == 2
        assert "Traceback" not in refused.err
    assert not home.exists()


def test_torch_is_pinned_first_of_its_companions() -> None:
    """Whatever depends on torch takes the one that is pinned; an unpinned one is gigabytes."""
    assert TOOLCHAINS["torch"].pins[0] == "torch==2.13.0"
