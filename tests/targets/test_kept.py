"""What OpenVINO compiled is used again if it is whole and for this machine, and never otherwise."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import OUTPUT
from digits_targets import subject
from edgepack.errors import EdgepackError
from edgepack_targets import kept
from edgepack_targets.interface import Placement


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir(mode=0o700)
    return place


def load(home: Path | None, threads: int = 1) -> tuple[bool, float]:
    """Load the digits; return whether what is in HOME was used, and how wrong the answers are."""
    one = subject("openvino")
    place = Placement(kept=home)
    session: Any = one.target.load(one.model_dir, one.manifest, threads=threads, place=place)
    answers = session.run(one.first())[OUTPUT]
    used = session._request.get_compiled_model().get_property("LOADED_FROM_CACHE")
    session.close()
    return bool(used), float(np.abs(answers - one.expected[OUTPUT][:1]).max())


def blob(home: Path) -> Path:
    (found,) = home.rglob("*.blob")
    return found


def test_the_second_start_uses_what_the_first_compiled(home: Path) -> None:
    for wanted in (False, True, True):
        used, wrong = load(home)
        assert used is wanted
        assert wrong < 1e-4
    assert all(not path.stat().st_mode & 0o077 for path in home.iterdir())


@pytest.mark.parametrize("place", [0.001, 0.3, 0.5, 0.7, 0.99])
def test_a_damaged_byte_leads_to_an_ordinary_compilation(home: Path, place: float) -> None:
    load(home)
    data = bytearray(blob(home).read_bytes())
    data[int(place * len(data))] ^= 0xFF
    blob(home).write_bytes(data)
    used, wrong = load(home)
    assert not used
    assert wrong < 1e-4
    assert load(home)[0]


def test_openvino_alone_does_not_notice_a_damaged_weight(home: Path) -> None:
    """What the list of sums is for: without it the model would answer otherwise, in silence."""
    load(home)
    path = blob(home)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 4000] = os.urandom(4000)
    path.write_bytes(data)
    (listed,) = home.rglob(kept.LIST)
    listed.write_text(json.dumps(kept._sums(listed.parent)))
    used, wrong = load(home)
    assert used
    assert not wrong < 1e-4


@pytest.mark.parametrize("damage", ["gone", "torn", "empty", "nonsense", "nested", "extra"])
def test_whatever_is_wrong_with_the_files_it_is_compiled_again(home: Path, damage: str) -> None:
    load(home)
    path, (listed,) = blob(home), home.rglob(kept.LIST)
    match damage:
        case "gone":
            path.unlink()
        case "torn":
            path.write_bytes(path.read_bytes()[:1000])
        case "empty":
            listed.write_text("{}")
        case "nonsense":
            listed.write_bytes(b"\xff")
        case "nested":
            listed.write_text("[" * 100_000)
        case "extra":
            path.with_name("other.blob").write_bytes(b"x")
    used, wrong = load(home)
    assert not used
    assert wrong < 1e-4


def test_other_settings_are_compiled_anew_and_replace_it(home: Path) -> None:
    load(home)
    before = blob(home)
    assert load(home, threads=2)[0] is False
    assert not before.exists()
    assert load(home, threads=2)[0] is True


def test_another_cpu_or_version_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    here = kept._key({"version": "1"})
    assert kept._key({"version": "1"}) == here != kept._key({"version": "2"})
    monkeypatch.setattr("edgepack_targets.cpu.features", lambda: frozenset({"avx9"}))
    assert kept._key({"version": "1"}) != here


def test_a_directory_that_others_may_write_to_is_not_trusted(home: Path, tmp_path: Path) -> None:
    load(home)
    home.chmod(0o770)
    assert load(home)[0] is False
    home.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(home)
    assert load(link)[0] is False
    assert load(tmp_path / "nowhere")[0] is False
    assert load(home)[0] is True
    if os.getuid() == 0:
        os.chown(home, 65534, 65534)
        assert load(home)[0] is False


def build(size: int, fails: bool = False) -> Any:
    def made(place: Path | None) -> str:
        if place is None:
            return "without"
        (place / "file").write_bytes(b"x" * size)
        if fails:
            raise RuntimeError("this runtime cannot keep it")
        return "kept"

    return made


def test_what_is_too_large_or_cannot_be_kept_leaves_nothing(home: Path) -> None:
    assert kept.compiled(home, {}, build(2 * 2**20), limit_mb=1) == "kept"
    assert not list(home.iterdir())
    assert kept.compiled(home, {}, build(10, fails=True)) == "without"
    assert not list(home.iterdir())


def test_what_takes_the_process_along_is_not_loaded_twice(home: Path) -> None:
    kept.compiled(home, {}, build(10))
    pid = os.fork()
    if pid == 0:
        kept.compiled(home, {}, lambda _: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    seen: list[bool] = []

    def look(place: Path | None) -> str:
        assert place is not None
        seen.append((place / "file").exists())
        return build(10)(place)

    kept.compiled(home, {}, look)
    kept.compiled(home, {}, look)
    assert seen == [False, True]


def test_a_model_that_cannot_be_run_says_so_as_without(home: Path) -> None:
    def fails(_: Path | None) -> str:
        raise EdgepackError("no such model")

    with pytest.raises(EdgepackError, match="no such model"):
        kept.compiled(home, {}, fails)
