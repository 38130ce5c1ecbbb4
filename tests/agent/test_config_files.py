"""The files of a configuration: merged in order, values and mistakes with their line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_agent.cli import root
from edgepack_agent.core.layers import Layer, Origin, merge
from edgepack_agent.settings import load_config, read_config


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    path = tmp_path / "agent.yaml"
    path.write_text("poll_s: 60\ntelemetry:\n  level: health\n  interval_s: 5\nruntimes: [onnx]\n")
    return path


def drop_in(main: Path, name: str, text: str) -> Path:
    path = main.parent / "conf.d" / name
    path.write_text(text)
    return path


def test_later_files_win_mappings_merge_and_lists_are_replaced(main: Path) -> None:
    drop_in(main, "20-site.yaml", "telemetry: {level: metrics}\nruntimes: [openvino, onnx]\n")
    drop_in(main, "10-base.yaml", "telemetry:\n  level: 'off'\npoll_s: 30\n")
    found, files = read_config(main)
    assert [path.name for path in files.read] == ["agent.yaml", "10-base.yaml", "20-site.yaml"]
    assert (found.telemetry.level, found.telemetry.interval_s) == ("metrics", 5.0)
    assert found.poll_s == 30
    assert found.runtimes == ("openvino", "onnx")


def test_only_yaml_is_read_and_the_rest_is_told(main: Path) -> None:
    drop_in(main, "old.yaml.bak", "nonsense: [")
    drop_in(main, "x.yml", "poll_s: 1")
    drop_in(main, ".hidden.yaml", "nonsense: [")
    done = CliRunner().invoke(root, ["--config", str(main), "config", "check"])
    assert done.exit_code == 0
    assert [line for line in done.stderr.splitlines() if "x.yml is not read" in line]
    assert "hidden" not in done.output
    assert load_config(main).poll_s == 60


def test_files_of_conf_d_hold_without_a_main_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.yaml").write_text("threads: 2")
    monkeypatch.setattr("edgepack_agent.settings.DEFAULT_PATH", tmp_path / "agent.yaml")
    assert load_config(None).threads == 2


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("threads: 2\nmodle: x\n", 2, ["modle", "the keys are data_dir"]),
        ("telemetry:\n  level: health\n  levle: off\n", 3, ["levle", "did you mean `level`"]),
        ("telemetry:\n  level: health\n\n  level: metrics\n", 4, ["twice", "line 2"]),
        ("threads: 2\nthreads: 3\n", 2, ["twice", "line 1"]),
        ("sources:\n- {name: a, source: 'dir:/a'}\n- name: b\n", 3, ["sources[1]", "source"]),
        ("sources:\n- {name: a, source: 'dir:/a', evry_s: 1}\n", 2, ["did you mean `every_s`"]),
        ("threads: 2\npoll_s: -1\n", 2, ["poll_s", "> 0.0"]),
        ("threads: 2\nlisten: 0.0.0.0:80\n", 2, ["listen", "no TLS"]),
        ("threads: 2\nbroker: nowhere\n", 2, ["broker", "HOST:PORT"]),
        ("threads: 2\nrun_dir:\n  - a\n", 2, ["run_dir"]),
        ("threads: 2\nrun_dir: [\n", 3, ["not YAML"]),
        ("threads: 2\n\tx: 3\n", 2, ["not YAML"]),
        ("threads: !!python/name:os.system\n", 1, ["not YAML"]),
        ("threads: 1\nsources: !!set {a}\n", 2, ["set"]),
        ("- a\n- b\n", 1, ["object"]),
        ("a: &a [*a]\n", 1, ["not YAML"]),
    ],
)
def test_a_mistake_names_its_file_and_line(
    main: Path, text: str, line: int, words: list[str]
) -> None:
    path = drop_in(main, "50-mistake.yaml", text)
    drop_in(main, "90-fine.yaml", "log_level: debug\n")
    with pytest.raises(UsageError) as found:
        load_config(main)
    assert found.value.reason == "bad_config"
    assert f"{path}, line {line}: " in found.value.what
    for word in words:
        assert word in found.value.diagnostics()


def test_a_few_aliases_cannot_stand_for_billions_of_values(main: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    drop_in(main, "bomb.yaml", "\n".join(lines))
    with pytest.raises(UsageError, match="not YAML"):
        load_config(main)


def test_a_mistake_that_a_later_file_replaces_is_no_mistake_of_the_whole(main: Path) -> None:
    main.write_text("poll_s: never\n")
    drop_in(main, "fix.yaml", "poll_s: 7\n")
    assert load_config(main).poll_s == 7


def test_what_holds_is_shown_with_the_line_that_says_so(main: Path) -> None:
    site = drop_in(
        main, "site.yaml", "# cameras\nsources:\n- {name: a, source: 'rtsp://u:p@h/1'}\n"
    )
    found = _json(main, "show")
    assert found["schema"] == "edgepack.agent.config-show/v1"
    settings = found["settings"]
    assert settings["telemetry.level"] == {"value": "health", "file": str(main), "line": 3}
    assert settings["poll_s"] == {"value": 60.0, "file": str(main), "line": 1}
    assert settings["listen"] == {"value": None, "file": None, "line": None}
    (row,) = settings["sources"]["value"]
    assert row["source"] == "rtsp://***@h/1"
    assert (settings["sources"]["file"], settings["sources"]["line"]) == (str(site), 2)
    shown = CliRunner().invoke(root, ["--config", str(main), "config", "show"]).output
    assert f"# {main}, line 3" in shown
    assert "u:p@" not in shown


def test_check_lists_the_files(main: Path) -> None:
    site = drop_in(main, "site.yaml", "threads: 2\n")
    found = _json(main, "check")
    assert found == {
        "schema": "edgepack.agent.config-check/v1",
        "valid": True,
        "files": [str(main), str(site)],
        "ignored": [],
    }


def _json(main: Path, command: str) -> dict[str, Any]:
    done = CliRunner().invoke(root, ["--config", str(main), "config", command, "--json"])
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


values = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


def layer(value: Any, file: str) -> Layer:
    origin = Origin(Path(file), 1)
    if isinstance(value, dict):
        return Layer({key: layer(below, file) for key, below in value.items()}, origin)
    if isinstance(value, list):
        return Layer([layer(below, file) for below in value], origin)
    return Layer(value, origin)


@given(mappings, mappings)
def test_the_upper_one_always_holds_and_what_it_does_not_touch_stays(
    a: dict[str, Any], b: dict[str, Any]
) -> None:
    one, two = layer(a, "a"), layer(b, "b")
    told = dict(merge(one, two).leaves())
    for name, leaf in two.leaves():
        assert told[name].plain() == leaf.plain()
        assert told[name].origin.file == Path("b")
    for name, leaf in one.leaves():
        touched = two.at(name.split(".")) is not two
        assert touched or told[name] == leaf
