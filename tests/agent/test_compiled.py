"""What a runtime compiled stays with its model: used by the next runner, gone with the slot."""

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from digits import INPUT, OUTPUT, digits_data
from digits_targets import converted, manifest_for, source_answers
from edgepack.bundle import open_bundle, write_bundle
from edgepack_agent.adapters.compiled import Compiled
from edgepack_agent.core.state import Model, Slot
from edgepack_agent.runner.setup import Setup
from slots import Heard


def openvino_slot(directory: Path) -> Path:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        np.savez(home / "inputs.npz", **{INPUT: digits_data()[1].head(8).inputs})
        np.savez(home / "outputs.npz", **{OUTPUT: source_answers(8)})
        files = {f"model/{file.name}": file for file in converted("openvino").iterdir()}
        files |= {f"golden/{file}": home / file for file in ("inputs.npz", "outputs.npz")}
        manifest = msgspec.structs.replace(manifest_for("openvino"), build_id="", labels=())
        with open_bundle(write_bundle(home, manifest, files).path) as bundle:
            bundle.extract(directory)
    return directory


def compiled_by(slot: Path, home: Path) -> tuple[int, int]:
    """Run a runner of SLOT that proves itself; return inode and time of change of what is kept."""
    with Heard(slot, setup=Setup(threads=1, compiled=str(home))) as heard:
        facts = heard.wait("loaded")
        assert (facts["device"], facts["hint"]) == ("CPU", "latency")
        heard.tell("check", exam=None, min_score=0.0)
        assert heard.wait("checked")["golden"]["passed"]
    (blob,) = home.rglob("*.blob")
    (listed,) = home.rglob("whole.json")
    assert blob.name in listed.read_text()
    return blob.stat().st_ino, blob.stat().st_mtime_ns


def test_the_next_runner_uses_what_the_first_compiled_and_a_damaged_one_is_made_anew(
    tmp_path: Path,
) -> None:
    slot, home = openvino_slot(tmp_path / "slot"), tmp_path / "compiled"
    home.mkdir(mode=0o700)
    first = compiled_by(slot, home)
    assert compiled_by(slot, home) == first
    (blob,) = home.rglob("*.blob")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0xFF
    blob.write_bytes(data)
    damaged = blob.stat().st_ino, blob.stat().st_mtime_ns
    assert compiled_by(slot, home) != damaged


def slot_of(sha256: str) -> Slot:
    return Slot("a", Model("digits@1.0.0", "digits/1", sha256, 1))


def test_it_is_ours_alone_and_goes_with_its_model(tmp_path: Path) -> None:
    compiled = Compiled(tmp_path / "compiled")
    compiled.collect()
    places = {name: compiled.place(slot_of(name)) for name in ("one", "two", "three")}
    for place in (tmp_path / "compiled", *places.values()):
        assert place is not None
        assert place.stat().st_mode & 0o777 == 0o700
    compiled.collect(slot_of("one"), None, slot_of("three"))
    assert sorted(path.name for path in (tmp_path / "compiled").iterdir()) == ["one", "three"]


def test_a_disk_that_has_no_place_costs_only_the_time(tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("a file is in the way")
    assert Compiled(tmp_path / "compiled").place(slot_of("one")) is None
