"""A folder of images as a source: each one once, in order, whatever lies in it."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from digits import digits_folder
from edgepack_agent.runner.sources import Results
from fleet_rig import wait
from slots import Client, Heard, digits_slot, listen, results


def rows(state: Path, count: int) -> list[dict[str, Any]]:
    """Return the rows once there are COUNT of them: what is counted is written down after that."""
    return wait(f"{count} rows", lambda: len(found := results(state)) >= count and found)


def feed(heard: Heard, folder: Path) -> None:
    source = {"name": "door", "source": f"dir:{folder}", "every_s": 0.05}
    heard.tell("sources", sources=[source])


def gather(heard: Heard, inferences: int, **errors: int) -> None:
    """Wait until that many inferences and errors have been reported; fail if there are more."""
    total: Counter[str] = Counter()
    wanted = Counter({"inferences": inferences, **errors})

    def enough(event: dict[str, Any]) -> bool:
        total.update({"inferences": event["stats"]["inferences"], **event["stats"]["errors"]})
        return all(total[name] >= count for name, count in wanted.items())

    heard.wait("beat", enough)
    assert +total == +wanted


def test_each_image_is_seen_once_in_order_and_new_ones_as_they_come(tmp_path: Path) -> None:
    folder, state = digits_folder(tmp_path / "pictures", 12), tmp_path / "state"
    late = tmp_path / "0003-late.png"
    shutil.copy(min(folder.iterdir()), late)
    with Heard(digits_slot(tmp_path / "slot"), state=state) as heard:
        digest = heard.wait("loaded")["digest"]
        feed(heard, folder)
        heard.wait("beat", lambda e: e["stats"]["inferences"] == 0)
        heard.tell("accept")
        gather(heard, 12)
        late.rename(folder / late.name)
        gather(heard, 1)
        heard.tell("drain")
        heard.wait("drained")
        found = rows(state, 13)
    names = sorted(path.name for path in folder.iterdir() if path.name != late.name)
    assert [row["file"] for row in found] == [*names, late.name]
    assert {row["digest"] for row in found} == {digest}
    assert {row["source"] for row in found} == {"door"}
    assert all(len(row["top"]) == 3 and row["ms"] > 0 for row in found)
    right = [row["top"][0]["label"] == row["file"][5] for row in found[:12]]
    assert sum(right) >= 10


def test_what_is_no_image_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder, state = digits_folder(tmp_path / "pictures", 4), tmp_path
    whole = min(folder.iterdir()).read_bytes()
    (folder / "0000-torn.png").write_bytes(whole[:60])
    (folder / "0002-text.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("not even named like one")
    with listen() as tcp, Heard(digits_slot(tmp_path / "slot"), [tcp], state) as heard:
        feed(heard.accepting(), folder)
        gather(heard, 4, bad_image=2)
        (tmp_path / "whole").write_bytes(whole)
        (tmp_path / "whole").rename(folder / "0002-text.jpg")  # so that nobody sees half of it
        gather(heard, 1)
        assert len(rows(state, 5)) == 5


def test_how_a_folder_is_doing_is_told_beside_the_cameras(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    with listen() as tcp, Heard(digits_slot(tmp_path / "slot"), [tcp]) as heard:
        feed(heard.accepting(), folder)

        def told() -> dict[str, Any]:
            with Client(tcp.getsockname()) as client:
                found = json.loads(client.ask("GET", "/v2/edgepack/cameras")[2])
            assert found["cameras"] == {}
            how: dict[str, Any] = found["folders"].get("door", {})
            return how

        wait("it to be missed", lambda: told().get("reason") == "missing")
        assert not told()["online"]
        elsewhere = digits_folder(tmp_path / "elsewhere", 3)
        (elsewhere / "0000-text.jpg").write_text("not a picture")
        elsewhere.rename(folder)  # so that nobody sees half of it
        wait("its pictures", lambda: told()["pictures"] == 3)
        wait("the one that is none", lambda: told()["failed"] == 1)
        last = {"kind": "dir", "online": True, "reason": "", "pictures": 3, "failed": 1}
        assert told() == last
        heard.wait("beat", lambda event: event["folders"] == {"door": last})


def test_a_missing_folder_is_counted_until_it_is_there(tmp_path: Path) -> None:
    with listen() as tcp, Heard(digits_slot(tmp_path / "slot"), [tcp]) as heard:
        feed(heard.accepting(), tmp_path / "pictures")
        heard.wait("beat", lambda e: e["stats"]["errors"].get("source_missing", 0) > 0)
        digits_folder(tmp_path / "elsewhere", 3).rename(tmp_path / "pictures")
        seen: list[dict[str, Any]] = []

        def all_seen(event: dict[str, Any]) -> bool:
            seen.append(event["stats"])
            return sum(stats["inferences"] for stats in seen) >= 3

        heard.wait("beat", all_seen)
    assert sum(stats["inferences"] for stats in seen) == 3
    assert {name for stats in seen for name in stats["errors"]} <= {"source_missing"}


def test_a_drained_runner_looks_at_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = digits_folder(tmp_path / "pictures", 3)
    with listen() as tcp, Heard(digits_slot(tmp_path / "slot"), [tcp]) as heard:
        feed(heard.accepting(), folder)
        gather(heard, 3)
        heard.tell("drain")
        heard.wait("drained")
        digits_folder(folder, 5)
        gather(heard, 0)
        heard.tell("accept")
        heard.wait("beat", lambda e: e["stats"]["inferences"] > 0)
        heard.tell("sources", sources=[])
        heard.wait("beat", lambda e: e["stats"]["inferences"] == 0)
        digits_folder(folder, 7)
        gather(heard, 0)


def test_what_was_seen_before_a_clean_end_is_counted(tmp_path: Path) -> None:
    folder, state = digits_folder(tmp_path / "pictures", 400), tmp_path / "state"
    with listen() as tcp, Heard(digits_slot(tmp_path / "slot"), [tcp], state) as heard:
        feed(heard.accepting(), folder)
        wait("the first to be seen", (state / "results.jsonl").exists)
        heard.tell("stop")
        heard.last()
    counted = sum(e["stats"]["inferences"] for e in heard.past if e["evt"] == "beat")
    assert 0 < counted == len(results(state)) < 400


def test_the_results_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results = Results(path, limit=1000)
    for number in range(200):
        results.append({"n": number})
    kept = path.read_text() + path.with_name("results.jsonl.1").read_text()
    assert len(kept) < 2100
    assert '{"n": 199}' in kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.jsonl", "results.jsonl.1"]
