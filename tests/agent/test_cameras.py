"""Cameras: a real RTSP server that goes and comes, clips, patterns; no password is told."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edgepack.bundle import open_bundle
from edgepack_agent.runner.cameras import Camera
from edgepack_agent.runner.framing import framed
from edgepack_agent.runner.wire import Source, kind_of
from fleet_rig import free_port, wait
from packager_rig import edgepack
from slots import Client, Heard, listen, results
from task_models import blob_detector, recipe_of

SERVER = Path(__file__).parents[1] / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"
SECRET = "a-password-of-a-camera"


def has_rtsp() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    with contextlib.suppress(OSError):
        words = [SYSTEM_PYTHON, "-c", code]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    return False


needs_rtsp = pytest.mark.skipif(
    not has_rtsp(), reason="gir1.2-gst-rtsp-server-1.0 and python3-gi are missing (apt-get install)"
)


@contextlib.contextmanager
def rtsp(port: int) -> Iterator[subprocess.Popen[str]]:
    """Run the server until it is killed."""
    process = subprocess.Popen(
        [SYSTEM_PYTHON, SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
    )  # fmt: skip
    try:
        assert process.stdout
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the slot of a detector of bright spots."""
    home = tmp_path_factory.mktemp("detector")
    model = blob_detector(home / "model.onnx", (1 / 3, 1 / 3, 1 / 3))
    recipe = recipe_of("detect", home / "recipe.yaml")
    words = ("--recipe", recipe, "--name", "spots", "--target", "onnx", "--unsigned")
    done = edgepack("build", model, *words, "--out", home, "--json", cwd=home)
    assert done.code == 0, done.err
    with open_bundle(Path(done.bundle("onnx", "fp32")["path"])) as bundle:
        bundle.extract(home / "slot")
    return home / "slot"


class Box:
    """A real runner with cameras."""

    def __init__(self, heard: Heard, address: Any, state: Path) -> None:
        self.heard, self.address, self.state = heard, address, state

    def feed(self, *sources: dict[str, Any]) -> None:
        self.heard.tell("sources", sources=list(sources))

    def cameras(self) -> dict[str, Any]:
        with Client(self.address) as client:
            found: dict[str, Any] = json.loads(client.ask("GET", "/v2/edgepack/cameras")[2])
        return found["cameras"]

    def camera(self, name: str = "door") -> dict[str, Any]:
        found: dict[str, Any] = self.cameras().get(name, {})
        return found

    def rows(self) -> list[dict[str, Any]]:
        return results(self.state)


@pytest.fixture
def box(slot: Path, tmp_path: Path) -> Iterator[Box]:
    with listen(tmp_path / "api.sock") as unix, Heard(slot, [unix], state=tmp_path) as heard:
        yield Box(heard.accepting(), unix.getsockname(), tmp_path)


@needs_rtsp
@pytest.mark.parametrize("seconds", [1.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_a_stream_that_is_cut_is_opened_again_and_inference_goes_on(
    box: Box, seconds: float
) -> None:
    port = free_port()
    with rtsp(port):
        box.feed({"name": "door", "source": f"rtsp://127.0.0.1:{port}/door", "fps": 8})
        wait("objects", lambda: any(row["objects"] for row in box.rows()), 30)
        wait("it to be online", lambda: box.camera()["online"])
    wait("the cut to be seen", lambda: not box.camera()["online"], 30)
    assert box.camera()["reason"] in {"closed", "timeout", "unreachable", "failed"}
    time.sleep(seconds)
    seen = len(box.rows())
    with rtsp(port):
        wait("more", lambda: len(box.rows()) > seen + 1, 60)
        told = box.camera()
    assert told["online"]
    assert told["reconnects"] >= 1
    assert told["last_frame_age_s"] < 10


@needs_rtsp
def test_two_instances_look_at_one_camera(slot: Path, tmp_path: Path) -> None:
    port = free_port()
    door = {"name": "door", "source": f"rtsp://127.0.0.1:{port}/door", "fps": 8}
    with ExitStack() as stack:
        boxes = []
        for name in ("a", "b"):
            (home := tmp_path / name).mkdir()
            unix = stack.enter_context(listen(home / "api.sock"))
            heard = stack.enter_context(Heard(slot, [unix], state=home))
            boxes.append(Box(heard.accepting(), unix.getsockname(), home))
        with rtsp(port):
            for each in boxes:
                each.feed(door)
            for each in boxes:
                wait("objects", lambda each=each: any(row["objects"] for row in each.rows()), 30)  # type: ignore[misc]
            assert all(each.camera()["online"] for each in boxes)


def test_a_pattern_is_seen_and_drawn(box: Box, tmp_path: Path) -> None:
    box.feed({"name": "door", "source": "test:pattern"})
    wait("objects", lambda: any(row["objects"] for row in box.rows()))
    row = next(row for row in box.rows() if row["objects"])
    left, top, right, bottom = row["objects"][0]["box"]
    assert row["source"] == "door"
    assert row["digest"].startswith("sha256:")
    assert right - left == pytest.approx(48, abs=16)
    assert bottom - top == pytest.approx(48, abs=16)
    with Client(box.address) as client:
        status, headers, picture = client.ask("GET", "/preview/door.jpg")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        (tmp_path / "seen.jpg").write_bytes(picture)
        with Image.open(tmp_path / "seen.jpg") as drawn:
            assert drawn.size == (320, 240)
        status, headers, page = client.ask("GET", "/preview")
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"http://" not in page.replace(b"http://www.w3.org", b"")
        assert client.ask("GET", "/preview/nobody.jpg")[0] == 404


def test_what_is_seen_is_said_as_long_as_it_is_seen(box: Box) -> None:
    def saw(event: dict[str, Any], *labels: str) -> bool:
        return [each["label"] for each in event["seen"]["open"]] == list(labels)

    box.heard.tell("observe", labels=["spot", "else"], frames=[2, 4])
    box.feed({"name": "door", "source": "test:pattern"})
    seen = box.heard.wait("seen", lambda event: saw(event, "spot"))["seen"]
    (spot,) = seen["open"]
    assert (seen["camera"], seen["objects"]) == ("door", {"spot": 1})
    assert seen["digest"].startswith("sha256:")
    assert spot["box"][2] - spot["box"][0] == pytest.approx(48, abs=16)
    box.heard.tell("drain")
    last = box.heard.wait("seen", lambda event: event["seen"]["closed"])["seen"]
    assert (last["life"], last["open"], last["objects"]) == (seen["life"], [], {})
    assert last["ended"][-1]["end"] >= spot["start"]
    box.heard.tell("accept")
    again = box.heard.wait("seen", lambda event: saw(event, "spot"))["seen"]
    assert again["life"] != seen["life"]


def album(directory: Path, keep: int = 3, **more: Any) -> dict[str, Any]:
    return {"directory": str(directory), "keep": keep, "max_mb": 1.0, "labels": None} | more


def test_a_picture_of_what_begins_to_be_seen_is_kept(box: Box, tmp_path: Path) -> None:
    box.heard.tell("observe", frames=[1, 1], snapshots=album(tmp_path / "snapshots"))
    box.feed({"name": "the door", "source": "test:pattern"})
    seen = box.heard.wait("seen", lambda event: bool(event["seen"]["open"]))["seen"]
    (spot,) = seen["open"]
    path = tmp_path / "snapshots" / "the_door" / spot["snapshot"]
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 240))
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    # The frame of the pattern is grey all over: what has colour was drawn.
    colored = (drawn.max(axis=2) - drawn.min(axis=2)) > 80
    left, top, right, bottom = map(round, spot["box"])
    assert colored[max(0, top - 30) : bottom + 4, max(0, left - 4) : right + 60].sum() > 200
    assert path.stat().st_mode & 0o007 == 0, "nothing for others"
    assert not list(path.parent.glob(".part-*"))


def test_no_picture_is_kept_unless_asked_for_nor_of_other_labels(box: Box, tmp_path: Path) -> None:
    place = tmp_path / "snapshots"
    box.heard.tell("observe", frames=[1, 1], snapshots=album(place, labels=["else"]))
    box.feed({"name": "door", "source": "test:pattern"})
    seen = box.heard.wait("seen", lambda event: bool(event["seen"]["open"]))["seen"]
    assert seen["open"][0]["snapshot"] == ""
    assert not place.exists()


def test_a_disk_that_takes_no_picture_takes_nothing_else_along(box: Box, tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("no directory")
    box.heard.tell("observe", frames=[1, 1], snapshots=album(tmp_path / "snapshots"))
    box.feed({"name": "door", "source": "test:pattern"})
    seen = box.heard.wait("seen", lambda event: bool(event["seen"]["open"]))["seen"]
    assert seen["open"][0]["snapshot"] == ""
    box.heard.wait("beat", lambda event: "snapshot_io" in event["stats"]["errors"])
    wait("objects", lambda: any(row["objects"] for row in box.rows()))


def test_a_camera_that_goes_sees_nothing(box: Box, tmp_path: Path) -> None:
    box.heard.tell("observe", frames=[1, 5])
    box.feed({"name": "door", "source": f"file:{clip(tmp_path / 'clip.mp4')}"})
    box.heard.wait("seen", lambda event: bool(event["seen"]["open"]))
    over = box.heard.wait("seen", lambda event: not event["seen"]["open"])["seen"]
    assert over["objects"] == {}
    assert over["ended"]
    assert not over["closed"]


def test_labels_that_nobody_asked_for_are_not_said(box: Box) -> None:
    box.heard.tell("observe", labels=["else"], frames=[1, 1])
    box.feed({"name": "door", "source": "test:pattern"})
    wait("objects", lambda: any(row["objects"] for row in box.rows()))
    assert box.heard.wait("seen")["seen"]["open"] == []


def test_metrics_tell_how_a_camera_is(box: Box) -> None:
    box.feed({"name": "door", "source": "test:pattern", "fps": 2})

    def told() -> str:
        with Client(box.address) as client:
            return client.ask("GET", "/metrics")[2].decode()

    def value(name: str) -> float:
        found = re.search(rf"^edgepack_camera_{re.escape(name)} (.+)$", told(), re.MULTILINE)
        return float(found[1]) if found else -1.0

    wait("frames", lambda: value('frames_total{camera="door"}') >= 3)
    assert value('online{camera="door"}') == 1
    assert 0 <= value('last_frame_age_seconds{camera="door"}') < 10
    # The pattern has ten frames a second, two of which are wanted.
    assert value('dropped_total{camera="door",reason="fps"}') > 3
    assert value('dropped_total{camera="door",reason="busy"}') >= 0
    if promtool := shutil.which("promtool"):
        words = [promtool, "check", "metrics"]
        done = subprocess.run(words, input=told(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def clip(path: Path, frames: int = 20, fps: int = 20) -> Path:
    """Write a clip of a square that moves."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(frames):
            frame = np.full((240, 320, 3), 16, np.uint8)
            frame[60:110, 8 * number : 8 * number + 50] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


def test_a_clip_is_played_once_to_its_end(box: Box, tmp_path: Path) -> None:
    box.feed({"name": "door", "source": f"file:{clip(tmp_path / 'clip.mp4')}"})
    wait("its end", lambda: box.camera().get("reason") == "ended")
    told = box.camera()
    assert told["frames"] == 20
    assert told["reconnects"] == 0
    wait("what was seen", box.rows)
    assert 1 <= len(box.rows()) < 10, "not a line for each frame that says the same"


def test_frames_that_nobody_takes_are_dropped_the_oldest_first(tmp_path: Path) -> None:
    camera = Camera(
        Source(name="a", source=f"file:{clip(tmp_path / 'clip.mp4')}"), lambda _reason: None
    )
    camera.start()
    wait("its end", lambda: camera.describe()["reason"] == "ended")
    last = camera.next(1)
    assert last is not None
    assert camera.describe()["dropped"] == 19
    assert last[80, 8 * 19 + 25].min() > 200, "the newest one is kept"
    assert camera.next(0.01) is None


def test_no_more_frames_are_looked_at_than_wanted(tmp_path: Path) -> None:
    source = Source(name="a", source=f"file:{clip(tmp_path / 'clip.mp4')}", fps=5)
    camera = Camera(source, lambda _reason: None)
    camera.start()
    wait("its end", lambda: camera.describe()["reason"] == "ended")
    assert camera.describe()["frames"] <= 8, "a second of 20 frames at 5 a second"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("v4l2:/dev/video99", "missing"),
        ("v4l2:/dev/null", "failed"),
        ("file:/nowhere.mp4", "missing"),
        ("file:/etc/hostname", "no_video"),
        ("rtsp://user:{secret}@127.0.0.1:{port}/x", "unreachable"),
    ],
)
def test_what_cannot_be_opened_says_why_and_never_its_password(
    source: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    counted: list[str] = []
    address = source.format(secret=SECRET, port=free_port())
    camera = Camera(Source(name="a", source=address), counted.append)
    camera.start()
    wait("the reason", lambda: counted)
    camera.stop()
    assert camera.describe()["reason"] == reason
    assert counted[0] == f"camera_{reason}"
    assert SECRET not in caplog.text + json.dumps(camera.describe())


def test_a_camera_that_has_gone_takes_no_other_along(box: Box) -> None:
    box.feed(
        {"name": "door", "source": "test:pattern"},
        {"name": "hall", "source": "v4l2:/dev/video99"},
    )
    wait("frames", lambda: box.camera("door").get("frames", 0) > 3)
    wait("the other to be missed", lambda: box.camera("hall")["reason"] == "missing")
    box.feed({"name": "hall", "source": "test:pattern"})
    wait("frames", lambda: box.camera("hall").get("frames", 0) > 3)
    assert "door" not in box.cameras()


@pytest.mark.soak
@needs_rtsp
def test_memory_stays_flat_for_a_while(box: Box) -> None:
    minutes = float(os.environ.get("EDGEPACK_SOAK_MINUTES", "30"))
    port, status = free_port(), Path(f"/proc/{box.heard.runner.pid}/statm")

    def rss_mb() -> float:
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    with rtsp(port):
        box.feed({"name": "door", "source": f"rtsp://127.0.0.1:{port}/door"})
        wait("frames", lambda: box.camera().get("frames", 0) > 100, 60)
        first, end = rss_mb(), time.monotonic() + minutes * 60
        readings = [first]
        while time.monotonic() < end:
            time.sleep(min(10, minutes * 6))
            readings.append(rss_mb())
        frames = box.camera()["frames"]
    print(
        f"{frames} frames, {first:.1f} MiB at first, {max(readings):.1f} at most", file=sys.stderr
    )
    assert frames > minutes * 60 * 5
    assert readings[-1] < first + 8, readings


# -- regions and masks


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30), st.just(3))),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_region_is_the_part_it_names_and_never_empty(
    frame: np.ndarray, drawn: tuple[float, float, float, float]
) -> None:
    x0, x1 = sorted(drawn[:2])
    y0, y1 = sorted(drawn[2:])
    part = framed(frame, (x0, y0, x1, y1), ())
    height, width = frame.shape[:2]
    assert part.shape[0] >= 1
    assert part.shape[1] >= 1
    assert abs(part.shape[1] - (x1 - x0) * width) <= 1.5 or part.shape[1] == 1
    assert abs(part.shape[0] - (y1 - y0) * height) <= 1.5 or part.shape[0] == 1
    assert np.array_equal(framed(frame, None, ()), frame)


def test_what_is_masked_is_black_and_nothing_else() -> None:
    frame = np.full((40, 60, 3), 200, np.uint8)
    seen = framed(frame, None, [((0, 0), (0.5, 0), (0.5, 1), (0, 1))])
    assert (seen[:, :28] == 0).all()
    assert (seen[:, 32:] == 200).all()
    assert (frame == 200).all(), "the frame itself is left alone"


@pytest.mark.parametrize(
    "wrong",
    [
        {"roi": [0.5, 0, 0.5, 1]}, {"roi": [0, 0.9, 1, 0.1]}, {"roi": [0, 0, 1, 2]},
        {"mask": [[[0, 0], [1, 1]]]}, {"fps": 0}, {"fps": 1000}, {"rate": 5},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "a", "source": "test:pattern"} | wrong, Source)


def test_a_source_is_known_by_its_address() -> None:
    assert kind_of("RTSP://host/x") == "rtsp"
    assert kind_of("dir:/srv") == kind_of("/srv/pictures") == "dir"
