"""Draw the pictures of the documentation: `python scripts/pictures.py`. Writes docs/pictures/."""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from packager_rig import edgepack  # noqa: E402
from task_models import blob_detector, recipe_of  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"


def annotated() -> None:
    """What `edgepack run --annotate` makes of a photograph that scikit-learn comes with."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        Image.fromarray(load_sample_image("flower.jpg")).save(home / "flower.png")
        model = blob_detector(home / "model.onnx", (1.0, 0.0, -0.6), (20, 36, 52, 60))
        recipe = recipe_of("detect", home / "recipe.yaml")
        recipe.write_text(recipe.read_text().replace("spot", "flower"))
        words = ["--recipe", recipe, "--name", "flowers", "--target", "onnx", "--unsigned"]
        built = edgepack("build", model, *words, "--out", home, "--json", cwd=home)
        bundle = built.bundle("onnx", "fp32")["path"]
        seen = home / "seen"
        edgepack("run", bundle, "--source", home / "flower.png", "--annotate", seen, cwd=home)
        picture = Image.open(seen / "flower.png.png")
        picture.save(PICTURES / "annotated.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    annotated()
