"""The configuration and the commands that need no running agent: clear errors, no traceback."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent_rig import AGENT
from edgepack.errors import UnreachableError, UsageError
from edgepack_agent.adapters.control import call
from edgepack_agent.cli import COMMANDS, root
from edgepack_agent.config import Config
from edgepack_agent.settings import load_config


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    found = load_config(
        config(
            tmp_path,
            """
            data_dir: /srv/data
            run_dir: /srv/run
            listen: 127.0.0.1:8080
            poll_s: 5
            telemetry: {level: health, interval_s: 2}
            sources: [{name: door, source: "dir:/srv/door", every_s: 0.5}]
            threads: 2
            runtimes: [onnx, openvino]
            allow_local_install: true
            broker: 127.0.0.1:8884
            log_level: debug
            """,
        )
    )
    assert found.data_dir == Path("/srv/data")
    assert found.control_socket == Path("/srv/run/control.sock")
    assert (found.telemetry.level, found.telemetry.interval_s) == ("health", 2.0)
    assert found.sources[0].every_s == 0.5
    assert found.runtimes == ("onnx", "openvino")
    assert found.allow_local_install
    assert found.broker == "127.0.0.1:8884"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(config(tmp_path, "")) == Config()
    assert Config().listen is None
    assert not Config().allow_local_install


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("modle: x", "modle"),
        ("telemetry: {levle: off}", "levle"),
        ("telemetry: {level: everything}", "everything"),
        ("poll_s: 0", "poll_s"),
        ("threads: none", "threads"),
        ("data_dir: 3", "3"),
        ("listen: 0.0.0.0:80", "0.0.0.0"),
        ("listen: 8080", "listen"),
        ("listen: '127.0.0.1:99999'", "99999"),
        ("broker: nowhere", "nowhere"),
        ("sources: [{name: a}]", "source"),
        ("- a list", "object"),
        ("{", "agent.yaml"),
        ("[" * 5000, "agent.yaml"),
        ("!!python/object/apply:os.system [true]", "agent.yaml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UsageError) as found:
        load_config(config(tmp_path, text))
    assert found.value.reason == "bad_config"
    assert word in found.value.diagnostics()


def agent(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AGENT, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )


def test_errors_have_their_codes_and_no_traceback(tmp_path: Path) -> None:
    path = config(tmp_path, f"data_dir: {tmp_path / 'data'}\nrun_dir: {tmp_path / 'run'}\n")
    for words, code, reason in (
        (("--config", tmp_path / "none.yaml", "config", "check"), 2, "none.yaml"),
        (("--config", path, "run"), 2, "not enrolled"),
        (("--config", path, "status"), 7, "does not answer"),
        (("--config", path, "enroll", "nonsense", "--root", path), 2, "token"),
        (("--config", path, "enroll", "nonsense"), 2, "--root"),
        (("--config", path, "install", tmp_path / "no.edgepack"), 2, "no.edgepack"),
        (("--config", path, "dance"), 2, "dance"),
    ):
        done = agent(*words)
        assert done.returncode == code, (words, done.stderr)
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
    done = agent("--config", path, "config", "check")
    assert (done.returncode, "is valid" in done.stdout) == (0, True)


def test_every_command_has_help() -> None:
    shown = CliRunner().invoke(root, ["--help"])
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert name in shown.output
        assert CliRunner().invoke(root, [name, "--help"]).exit_code == 0


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        call(tmp_path / "control.sock", "status", timeout_s=1)
