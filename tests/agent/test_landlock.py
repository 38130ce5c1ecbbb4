"""What a runner can still open once it is shut in: asked of the kernel, in real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digits import digits_data, digits_folder
from edgepack_agent.core.doctor import confinement
from edgepack_agent.runner import landlock
from edgepack_agent.runner.places import marks, moved, places
from edgepack_agent.runner.setup import Setup, read_setup, write_setup
from edgepack_agent.runner.wire import Source
from slots import Client, Heard, digits_slot, listen

confined = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")

PROBE = """
import errno, json, os, socket, subprocess, sys, threading
from pathlib import Path
from edgepack_agent.runner import kernel, landlock
from edgepack_agent.runner.places import places
from edgepack_agent.runner.setup import read_setup

slot, setup, port, tries = Path(sys.argv[1]), read_setup(sys.argv[2]), *json.loads(sys.argv[3])
kernel.give_up_rights()
landlock.confine(places(slot, setup))

def outcome(act):
    try:
        act()
        return "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

found = {}
def probe():
    for name, (how, path) in tries.items():
        act = {
            "read": lambda: open(path, "rb").read(1),
            "list": lambda: os.listdir(path),
            "write": lambda: open(path, "ab").write(b"x"),
            "move": lambda: os.rename(path, path + ".1"),
            "link": lambda: os.link(path, path + ".2"),
            "run": lambda: subprocess.run([path], check=False),
            "signal": lambda: os.kill(os.getppid(), 0),
            "connect": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
            "abstract": lambda: socket.socket(socket.AF_UNIX).connect(path),
        }[how]
        found[name] = outcome(act)

# A thread that is started later is shut in, too.
thread = threading.Thread(target=probe)
thread.start()
thread.join()
print(json.dumps(found))
"""


def ask(slot: Path, setup: Setup, port: int, tries: dict[str, tuple[str, str]]) -> dict[str, str]:
    words = [str(slot), write_setup(setup), json.dumps([port, tries])]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@confined
def test_keys_and_journal_are_closed_and_what_it_needs_is_open(tmp_path: Path) -> None:
    data = tmp_path / "data"
    slot = digits_slot(data / "slots" / "a")
    other = digits_slot(data / "slots" / "b")
    secrets = ["identity/key.pem", "journal.db", "outbox.db", "floors.json", "api-token"]
    pictures = digits_folder(tmp_path / "pictures", 2)
    for name in (*secrets, "blobs/exam", "blobs/other", "results/results.jsonl"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("x")
    setup = Setup(
        sources=(str(pictures),),
        read=(str(data / "blobs" / "exam"),),
        results=str(data / "results"),
    )
    tries: dict[str, tuple[str, str]] = {
        "slot": ("read", f"{slot}/model/model.onnx"),
        "source": ("read", str(min(pictures.iterdir()))),
        "folder": ("list", str(pictures)),
        "exam": ("read", f"{data}/blobs/exam"),
        "results": ("write", f"{data}/results/results.jsonl"),
        "results, full": ("move", f"{data}/results/results.jsonl"),
        "names": ("read", "/etc/hosts"),
        "itself": ("read", "/proc/self/status"),
        "null": ("write", "/dev/null"),
        "network": ("connect", ""),
    }
    closed: dict[str, tuple[str, str]] = {name: ("read", f"{data}/{name}") for name in secrets}
    closed |= {
        "data": ("list", str(data)),
        "other slot": ("read", f"{other}/model/model.onnx"),
        "other blob": ("read", f"{data}/blobs/other"),
        "slot, to change it": ("write", f"{slot}/model/model.onnx"),
        "source, to change it": ("write", str(min(pictures.iterdir()))),
        "new file": ("write", f"{data}/new"),
        "supervisor": ("read", f"/proc/{os.getpid()}/environ"),
        "program": ("run", "/bin/true"),
        "passwords": ("read", "/etc/shadow"),
        "temporary": ("write", "/tmp/edgepack-forbidden"),
    }
    with listen() as peer, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0edgepack-%d" % os.getpid())
        abstract.listen()
        if landlock.abi() >= 6:
            closed["abstract socket"] = ("abstract", f"\0edgepack-{os.getpid()}")
            closed["signal"] = ("signal", "")
        found = ask(slot, setup, peer.getsockname()[1], tries | closed)
    assert {name: found[name] for name in tries} == dict.fromkeys(tries, "ok")
    assert {found[name] for name in closed} <= {"EACCES", "EPERM"}, found


@confined
def test_the_same_process_could_open_all_of_it_before(tmp_path: Path) -> None:
    """What the test above proves: with a place more, the key is read."""
    key = tmp_path / "key.pem"
    key.write_text("x")
    with listen() as peer:
        found = ask(tmp_path / "slot", Setup(read=(str(key),)), peer.getsockname()[1], {
            "key": ("read", str(key)),
        })  # fmt: skip
    assert found == {"key": "ok"}


@confined
def test_a_runner_serves_as_before_and_sees_no_other_folder(tmp_path: Path) -> None:
    slot = digits_slot(tmp_path / "slot")
    inbox, private = digits_folder(tmp_path / "inbox", 2), digits_folder(tmp_path / "private", 2)
    setup = Setup(
        threads=1,
        sources=(str(inbox),),
        results=str(tmp_path / "results"),
        scratch=str(tmp_path / "scratch"),
    )
    with listen() as tcp, Heard(slot, [tcp], setup=setup) as heard:
        assert heard.wait("loaded")["confined"] is True
        heard.tell("check", exam=None, min_score=0.0)
        assert heard.wait("checked")["golden"]["passed"]
        sources = [{"name": p.name, "source": f"dir:{p}"} for p in (inbox, private)]
        heard.tell("sources", sources=sources)
        heard.tell("accept")
        heard.wait("accepting")
        with Client(tcp.getsockname()) as client:
            client.infer(digits_data()[1].inputs[0])
        rows, missing = tmp_path / "results" / "results.jsonl", 0

        def seen(event: dict[str, Any]) -> bool:
            nonlocal missing
            missing += event["stats"]["errors"].get("source_missing", 0)
            return missing > 0 and rows.exists() and len(rows.read_text().splitlines()) >= 2

        heard.wait("beat", seen)
        found = [json.loads(line)["source"] for line in rows.read_text().splitlines()]
        assert found == ["inbox", "inbox"]


@confined
def test_a_folder_that_comes_later_makes_it_start_again(tmp_path: Path) -> None:
    slot, inbox = digits_slot(tmp_path / "slot"), tmp_path / "inbox"
    setup = Setup(threads=1, sources=(str(inbox),))
    with listen() as tcp:
        with Heard(slot, [tcp], setup=setup) as heard:
            heard.tell("sources", sources=[{"name": "inbox", "source": f"dir:{inbox}"}])
            heard.accepting()
            heard.wait("beat", lambda e: e["stats"]["errors"].get("source_missing", 0) > 0)
            digits_folder(inbox, 2)
            assert heard.last()["code"] == 0
        with Heard(slot, [tcp], setup=setup) as heard:
            heard.tell("sources", sources=[{"name": "inbox", "source": f"dir:{inbox}"}])
            heard.accepting()
            heard.wait("beat", lambda e: e["stats"]["inferences"] > 0)


WITHOUT = """
import errno, json, queue, sys
from pathlib import Path
import pyseccomp
from edgepack_agent.adapters.runner import Runner
from edgepack_agent.runner.setup import Setup

rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "landlock_create_ruleset")
rules.load()
events = queue.Queue()
runner = Runner.start(
    Path(sys.argv[1]), [], lambda _, event: events.put(event), Setup(threads=1)
)
print(json.dumps(events.get(timeout=30)))
runner.stop(10)
"""


def test_without_landlock_it_goes_on_and_says_so(tmp_path: Path) -> None:
    slot = digits_slot(tmp_path / "slot")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(slot)], capture_output=True, text=True, check=True
    )
    event = json.loads(done.stdout)
    assert (event["evt"], event["confined"]) == ("loaded", False)
    assert (confinement(False).status, confinement(True).status) == ("warn", "ok")


def test_nothing_that_starts_threads_is_imported_before_it_is_shut_in() -> None:
    line = [sys.executable, "-P", "-X", "importtime", "-m", "edgepack_agent.runner", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert "edgepack_agent.runner.landlock" in imported
    assert not imported & {"numpy", "PIL", "av", "onnxruntime", "openvino", "grpc", "uvicorn"}


@given(st.integers(1, 20), st.integers(0, 2**16 - 1), st.booleans())
def test_no_kernel_is_asked_for_what_it_does_not_know(abi: int, wanted: int, place: bool) -> None:
    refused = landlock.ruleset(abi)
    known = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    assert refused.files == 2**known - 1
    assert landlock.rights(wanted, refused, directory=place) & ~refused.files == 0
    assert len(refused.pack(abi)) == (8 if abi < 4 else 16 if abi < 6 else 24)
    assert bool(refused.scoped) == (abi >= 6)


def test_what_is_exchanged_has_moved_and_what_is_gone_has_not(tmp_path: Path) -> None:
    kept, gone, changed, late = (str(tmp_path / name) for name in "abcd")
    for path in (kept, gone, changed):
        Path(path).mkdir()
    before = marks([kept, gone, changed, late])
    assert moved(before) == []
    Path(gone).rmdir()
    Path(changed).rename(tmp_path / "e")
    for path in (changed, late):
        Path(path).mkdir()
    assert moved(before) == [changed, late]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("dir:/srv/inbox", "/srv/inbox"),
        ("/srv/inbox", "/srv/inbox"),
        ("v4l2:/dev/video0", "/dev/video0"),
        ("file:/srv/a:b.mp4", "/srv/a:b.mp4"),
        ("test:pattern", None),
        ("rtsp://user:secret@10.0.0.7/stream", None),
        ("rtsp://user:secret@[fe80::1]:554/stream", None),
        ("rtsps://user:secret@camera.lan/stream", "/etc/resolv.conf"),
    ],
)
def test_only_paths_of_sources_go_on_the_command_line(source: str, path: str | None) -> None:
    assert Source(name="a", source=source).path() == path


def test_a_device_of_a_source_may_be_used_and_another_may_not() -> None:
    found = places(Path("/slot"), Setup(sources=("/dev/tty", "/nowhere")))
    assert Path("/dev/tty") in found.devices
    assert Path("/dev/tty") not in found.read
    assert Path("/nowhere") in found.read
    assert Path("/dev/ptmx") not in found.devices
    setup = Setup(threads=2, sources=("/a",), results="/b")
    assert read_setup(write_setup(setup)) == setup
