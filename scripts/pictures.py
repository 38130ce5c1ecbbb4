"""Draw the pictures of the documentation: `python scripts/pictures.py`. Writes docs/pictures/."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from edgepack.bundle import open_bundle  # noqa: E402
from packager_rig import edgepack  # noqa: E402
from slots import Heard, listen  # noqa: E402
from task_models import blob_detector, recipe_of  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"


def flowers(home: Path) -> Path:
    """Return the bundle of a detector that finds the flower."""
    model = blob_detector(home / "model.onnx", (1.0, 0.0, -0.6), (20, 36, 52, 60))
    recipe = recipe_of("detect", home / "recipe.yaml")
    recipe.write_text(recipe.read_text().replace("spot", "flower"))
    words = ["--recipe", recipe, "--name", "flowers", "--target", "onnx", "--unsigned"]
    built = edgepack("build", model, *words, "--out", home, "--json", cwd=home)
    return Path(built.bundle("onnx", "fp32")["path"])


def annotated() -> None:
    """What `edgepack run --annotate` makes of a photograph that scikit-learn comes with."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        Image.fromarray(load_sample_image("flower.jpg")).save(home / "flower.png")
        seen, bundle = home / "seen", flowers(home)
        edgepack("run", bundle, "--source", home / "flower.png", "--annotate", seen, cwd=home)
        with Image.open(seen / "flower.png.png") as picture:
            picture.save(PICTURES / "annotated.jpg", quality=85, optimize=True)


def preview() -> None:
    """The preview page of a runner with two cameras, as Chromium shows it."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        bundle, photo = flowers(home), load_sample_image("flower.jpg")
        with open_bundle(bundle) as opened:
            opened.extract(home / "slot")
        clip(home / "greenhouse.mp4", photo)
        clip(home / "counter.mp4", photo[100:427, 100:536])
        cameras = [
            {"name": name, "source": f"file:{home / name}.mp4", "fps": 10}
            for name in ("greenhouse", "counter")
        ] + [{"name": "yard", "source": "rtsp://127.0.0.1:9/yard"}]
        with listen() as tcp, Heard(home / "slot", [tcp]) as heard:
            heard.accepting()
            heard.tell("sources", sources=cameras)
            page = f"http://127.0.0.1:{tcp.getsockname()[1]}/preview"
            flags = (
                "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
                "--disable-background-networking --disable-component-update --disable-sync "
                "--hide-scrollbars --window-size=1280,560 --virtual-time-budget=4000"
            )
            target = PICTURES / "preview.png"
            subprocess.run(
                ["chromium", *flags.split(), f"--user-data-dir={home / 'chromium'}",
                 f"--screenshot={target}", page],
                check=True, capture_output=True,
            )  # fmt: skip


def clip(path: Path, photo: np.ndarray) -> None:
    """Write 12 seconds of PHOTO, as a camera on a pole in the wind would see it."""
    height, width = photo.shape[0] // 2 * 2 - 32, photo.shape[1] // 2 * 2 - 32
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = (
            width,
            height,
            "yuv420p",
            4_000_000,
        )
        for number in range(120):
            left = 16 + round(12 * math.sin(number / 9))
            frame = np.ascontiguousarray(photo[16 : 16 + height, left : left + width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    annotated()
    preview()
