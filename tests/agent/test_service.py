"""The systemd service: judged by systemd itself, installed, kept, removed, and never half."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_rig import AGENT
from edgepack_agent.adapters import service
from edgepack_agent.adapters.instances import find_instances
from edgepack_agent.adapters.service import Place, hidden
from edgepack_agent.adapters.units import SLICE
from edgepack_agent.config import Config
from edgepack_agent.settings import load_config

UNIT = Path(__file__).parents[2] / "agent" / "systemd" / "edgepack-agent.service"
PROGRAM = "/opt/edgepack/bin/edgepack-agent"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def agent(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AGENT, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | env,
    )


def installed(root: Path, *words: str) -> dict[str, Any]:
    done = agent("service", "install", "--root", root, "--program", PROGRAM, "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """The unit as it is printed."""
    path = tmp_path / "edgepack-agent.service"
    path.write_text(agent("service", "print").stdout)
    return path


def test_the_unit_that_is_printed_runs_this_installation(printed: Path) -> None:
    assert f"ExecStart={AGENT.resolve()} run\n" in printed.read_text()
    assert "/usr/bin/edgepack-agent" not in printed.read_text()
    assert printed.read_text().count("\n") == UNIT.read_text().count("\n")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The unit of an instance, by a name that systemd would run."""
    path = tmp_path / "edgepack-agent@plates.service"
    path.write_text(agent("--instance", "plates", "service", "print").stdout)
    return path


@needs_systemd
@pytest.mark.parametrize("unit", ["printed", "template"])
def test_systemd_finds_nothing_wrong_with_the_unit(
    unit: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(unit)
    path.with_name("system-edgepack.slice").write_text(SLICE)
    verdict = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path.with_name("system-edgepack.slice"), path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verdict.returncode, verdict.stdout, verdict.stderr) == (0, "", "")


def test_the_template_differs_in_what_an_instance_has_of_its_own(
    printed: Path, template: Path
) -> None:
    lines = zip(printed.read_text().splitlines(), template.read_text().splitlines(), strict=True)
    changed = {new for old, new in lines if old != new and not new.startswith("#")}
    assert changed == {
        "Description=edgepack agent for %i",
        "ConditionPathExists=/var/lib/edgepack-%i/identity/device.json",
        f"ExecStart={AGENT.resolve()} --instance %i run",
        "StateDirectory=edgepack-%i",
        "RuntimeDirectory=edgepack-%i",
        "NoExecPaths=/var/lib/edgepack-%i",
    }


@needs_systemd
@pytest.mark.parametrize("unit", ["printed", "template"])
def test_the_exposure_is_at_most_2_with_access_to_cameras(
    unit: str, request: pytest.FixtureRequest
) -> None:
    printed: Path = request.getfixturevalue(unit)
    # The threshold counts in tenths; above it the exit code says so.
    verdict = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", printed]
    done = subprocess.run(verdict, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = printed.read_text()
    assert "DeviceAllow=char-video4linux rw" in text
    assert "SupplementaryGroups=video" in text
    printed.write_text("\n".join(x for x in text.splitlines() if "SystemCallFilter=" not in x))
    done = subprocess.run(verdict, capture_output=True, text=True, check=False)
    assert done.returncode != 0, "the threshold is not judged"


def test_it_can_be_installed_into_an_image_and_again(tmp_path: Path) -> None:
    root = tmp_path / "image"
    root.mkdir()
    first = installed(root)
    place = Place(root)
    assert f"ExecStart={PROGRAM} run" in place.unit.read_text()
    assert place.enabled.resolve() == place.unit
    assert load_config(place.settings / "agent.yaml") == Config(), "the skeleton sets nothing"
    assert len(first["wrote"]) == 5

    (place.settings / "agent.yaml").write_text("threads: 2\n")
    place.unit.write_text("of an older version")
    again = installed(root)
    assert again["wrote"] == [str(place.unit)]
    assert (place.settings / "agent.yaml").read_text() == "threads: 2\n"


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("systemd-sysusers") is None, reason="needs root and systemd"
)
def test_the_user_is_made_in_the_image(tmp_path: Path) -> None:
    installed(tmp_path)
    assert (tmp_path / "etc/passwd").read_text().startswith("edgepack:x:")
    groups = (tmp_path / "etc/group").read_text()
    assert all(name in groups for name in ("edgepack:", "video:", "render:"))


def test_removing_it_leaves_the_device_what_it_is(tmp_path: Path) -> None:
    installed(tmp_path)
    place = Place(tmp_path)
    identity = tmp_path / "var/lib/edgepack/identity/key.pem"
    identity.parent.mkdir(parents=True)
    identity.write_text("key")
    done = agent("service", "uninstall", "--root", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert found["removed"] == [
        str(p) for p in (place.enabled, place.unit, place.slice, place.sysusers)
    ]
    assert identity.exists()
    assert (place.settings / "agent.yaml").exists()

    again = json.loads(agent("service", "uninstall", "--root", tmp_path, "--json").stdout)
    assert again["removed"] == []
    purged = agent("service", "uninstall", "--root", tmp_path, "--purge")
    assert purged.returncode == 0
    assert not identity.exists()
    assert not place.settings.exists()


def test_instances_are_installed_beside_each_other_and_removed_alone(tmp_path: Path) -> None:
    def run(name: str, *words: str) -> dict[str, Any]:
        more = ("--program", PROGRAM) if words[0] == "install" else ()
        own = ("--instance", name) if name else ()
        done = agent(*own, "service", *words, "--root", tmp_path, *more, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    places = {name: Place(tmp_path, name) for name in ("", "door", "plates")}
    for name in places:
        run(name, "install")
    assert places["door"].unit == places["plates"].unit, "one template"
    for name, place in places.items():
        assert place.enabled.resolve() == place.unit
        data = f"edgepack-{name}" if name else "edgepack"
        config = load_config(place.settings / "agent.yaml")
        assert config == Config(data_dir=Path("/var/lib", data), run_dir=Path("/run", data))
    assert [each.name for each in find_instances(places[""].settings)] == list(places)

    gone = run("door", "uninstall", "--purge")
    assert gone["removed"] == [str(places["door"].enabled), str(places["door"].settings)]
    gone = run("", "uninstall", "--purge")
    assert str(places[""].unit) in gone["removed"]
    assert places["plates"].unit.exists()
    assert places["plates"].slice.exists(), "another agent is in it"
    assert (places["plates"].settings / "agent.yaml").exists(), "it is another agent's"
    assert not (places[""].settings / "agent.yaml").exists()
    run("plates", "uninstall", "--purge")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "edgepack" in p.name] == []


def test_a_program_that_the_service_could_not_see_is_refused(tmp_path: Path) -> None:
    for program in ("/home/me/.local/bin/edgepack-agent", "/root/v/bin/edgepack-agent"):
        done = agent("service", "install", "--root", tmp_path, "--program", program)
        assert done.returncode == 2
        assert "cannot see" in done.stderr
        assert "/opt" in done.stderr
    assert not list(tmp_path.iterdir()), "nothing was written"
    assert hidden(Path(PROGRAM)) == ""


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_without_root_it_says_what_to_do() -> None:
    done = agent("service", "install", "--program", PROGRAM)
    assert done.returncode == 2
    assert "run it as root" in done.stderr


def test_what_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file in the way")
    done = agent("service", "install", "--root", tmp_path, "--program", PROGRAM)
    assert done.returncode == 2
    assert str(tmp_path / "etc") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can write what is not its own")
def test_what_root_writes_at_enrolment_belongs_to_the_service(tmp_path: Path) -> None:
    data, key = tmp_path / "data", tmp_path / "data" / "identity" / "key.pem"
    key.parent.mkdir(parents=True)
    key.write_text("key")
    (data / "link").symlink_to("/etc/passwd")
    service.hand_over(data)
    assert key.stat().st_uid == 0, "systemd does it at the first start"
    os.chown(data, 4242, 4243)
    before = Path("/etc/passwd").stat().st_uid
    service.hand_over(data)
    assert (key.stat().st_uid, key.stat().st_gid) == (4242, 4243)
    assert Path("/etc/passwd").stat().st_uid == before


def test_the_unit_is_part_of_the_distribution(tmp_path: Path) -> None:
    """A wheel has no source tree: the unit must come from its data directory."""
    share = tmp_path / "share" / "edgepack"
    share.mkdir(parents=True)
    (share / "edgepack-agent.service").write_text("ExecStart=/usr/bin/edgepack-agent run\n")
    code = (
        "import sysconfig; from pathlib import Path; import edgepack_agent.adapters.units as s;"
        f"s.__file__ = '/nowhere/a/b.py'; sysconfig.get_path = lambda _: {str(tmp_path)!r};"
        f"print(s.render(Path({PROGRAM!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"ExecStart={PROGRAM} run", done.stderr
