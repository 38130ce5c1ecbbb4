"""The step cache: found by what a step was made from, and by nothing else."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepack_packager.adapters.cache import StepCache
from edgepack_packager.adapters.steps import Done, Steps
from edgepack_packager.adapters.worker import WorkerError, host_interpreter
from packager_rig import OnnxDigits, bundles, edgepack


def steps(work: Path, cache: Path | None, name: str) -> Steps:
    home = work / name
    home.mkdir()
    return Steps(
        home, StepCache(cache) if cache else None, {"host": host_interpreter()}, timeout_s=60,
        progress=lambda *_: None,
    )  # fmt: skip


def probe(where: Steps, digest: str, parents: tuple[Done, ...] = ()) -> Done:
    names = {"names": ["click"]}
    return where.run("host", "probe.versions", names, parents=parents, facts={"digest": digest})


def test_same_making_is_found_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = probe(steps(tmp_path, cache, "a"), "1")
    again = probe(steps(tmp_path, cache, "b"), "1")
    assert again.result == first.result
    assert again.kept


def test_other_facts_or_parents_are_another_step(tmp_path: Path) -> None:
    where = steps(tmp_path, tmp_path / "cache", "a")
    one, two = probe(where, "1"), probe(where, "2")
    child = probe(where, "1", parents=(two,))
    assert len({one.key, two.key, child.key}) == 3


def test_what_was_measured_on_another_machine_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache may lie in a home that several machines share."""

    def measured(name: str) -> Done:
        where = steps(tmp_path, tmp_path / "cache", name)
        args = {"names": ["click"]}
        return where.run("host", "probe.versions", args, facts={}, alone=True)

    measured("a")
    assert measured("b").kept
    (tmp_path / "cpuinfo").write_text("model name : another\n")
    monkeypatch.setattr("edgepack_targets.machine.PROC", tmp_path)
    assert not measured("c").kept


def test_damaged_entry_is_made_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = probe(steps(tmp_path, cache, "a"), "1")
    (cache / first.key / "out" / "extra").write_text("not ours")
    again = probe(steps(tmp_path, cache, "b"), "1")
    assert not again.kept
    assert not (cache / first.key / "out" / "extra").exists()
    for name, text in (("c", "{"), ("d", "[]"), ("e", "{}")):
        (cache / first.key / "step.json").write_text(text)
        assert not probe(steps(tmp_path, cache, name), "1").kept
        assert json.loads((cache / first.key / "step.json").read_text())["sha256"]


def test_damaged_result_is_made_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = probe(steps(tmp_path, cache, "a"), "1")
    said = cache / first.key / "step.json"
    said.write_text(said.read_text().replace('"click": "', '"click": "9'))
    again = probe(steps(tmp_path, cache, "b"), "1")
    assert not again.kept
    assert again.result == first.result


def test_what_another_build_keeps_meanwhile_stays(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "cache")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    first = cache.keep("key", tmp_path / "one", {})
    assert cache.keep("key", tmp_path / "two", {}) == tmp_path / "two"
    assert (first / "file").read_text() == "one"


def test_what_a_killed_build_half_copied_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / ".step-old", tmp_path / ".step-new"
    for left in (old, new):
        (left / "step").mkdir(parents=True)
    os.utime(old, (0, 0))
    StepCache(tmp_path).prune()
    assert list(tmp_path.iterdir()) == [new]


def test_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = probe(steps(tmp_path, tmp_path / "file" / "cache", "a"), "1")
    assert done.result["versions"]


@pytest.mark.scale
@pytest.mark.parametrize("precision", ["int8"])
def test_cached_build_gives_the_same_bundle(
    digits: OnnxDigits, tmp_path: Path, precision: str
) -> None:
    build = [
        "build", digits.model, "--target", "onnx", "--precision", precision, "--unsigned",
        "--calibration", digits.calibration, "--evaluate", digits.evaluation, "--json", "--out",
    ]  # fmt: skip
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first, again = (edgepack(*build, tmp_path / n, cwd=tmp_path, env=env) for n in ("one", "two"))
    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert first.document["steps"]["run"] > 0
    assert again.document["steps"] == {"run": 0, "cached": first.document["steps"]["run"]}
    fresh = edgepack(*build, tmp_path / "three", "--no-cache", cwd=tmp_path, env=env)
    assert fresh.code == 0, fresh.err
    assert bundles(tmp_path / "one") == bundles(tmp_path / "two") == bundles(tmp_path / "three")
    assert list((tmp_path / "cache" / "edgepack" / "steps").iterdir())


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    where = steps(tmp_path, cache, "a")
    old, new = probe(where, "1"), probe(where, "2")
    os.utime(cache / old.key, (1, 1))
    StepCache(cache, room=_size(cache / new.key)).prune()
    assert [path.name for path in cache.iterdir()] == [new.key]


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_the_same_step_asked_for_twice_at_once_runs_once(tmp_path: Path) -> None:
    where = steps(tmp_path, None, "a")
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: probe(where, "1"), range(2))
    assert one is two
    assert where.started == 1


def test_a_stopped_build_ends_its_workers(tmp_path: Path) -> None:
    where = steps(tmp_path, None, "a")
    where.stop()
    with pytest.raises(WorkerError, match="was stopped"):
        probe(where, "1")
