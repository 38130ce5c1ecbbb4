"""What people train with: data, losses and modules that do not fit are one clear error each."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgepack as edgepack_package
import edgepack_packager
from edgepack.errors import UsageError
from edgepack_packager.adapters import toolchains
from edgepack_packager.workers.training_data import read_lessons

WANTED = {"image": ((1, 2), "float32")}
IMAGES = np.zeros((30, 2), np.float32)
LABELS = np.zeros(30, np.int64)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"image": IMAGES}, "missing: labels"),
        ({"labels": LABELS}, "missing: image"),
        ({"image": IMAGES, "labels": LABELS[:29]}, "image 30, labels 29"),
        ({"image": IMAGES[:9], "labels": LABELS[:9]}, "image 9"),
        ({"image": IMAGES, "labels": np.int64(3)}, "labels 1"),
        ({"image": IMAGES.astype(np.float64), "labels": LABELS}, "is given float64"),
        ({"image": IMAGES.astype(np.uint8), "labels": LABELS}, "is given uint8"),
        ({"image": IMAGES[:, :1], "labels": LABELS}, "['samples', 2]"),
        ({"image": IMAGES + np.float32(np.nan), "labels": LABELS}, "60 of 60 values"),
        ({"image": IMAGES, "labels": LABELS.astype(str)}, "`labels` is <U"),
        ({"image": IMAGES, "labels": np.array([{}] * 30)}, "allow_pickle=False"),
    ],
)
def test_training_data_that_does_not_fit_is_refused(
    made: dict[str, NDArray[Any]], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "train.npz", **made)
    with pytest.raises(UsageError) as caught:
        read_lessons(str(tmp_path / "train.npz"), WANTED, seed=0)
    assert words in caught.value.why


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(b"PK and no more")
    with pytest.raises(UsageError, match="cannot be read"):
        read_lessons(str(tmp_path / "train.npz"), WANTED, seed=0)


def test_no_sample_both_teaches_and_judges(tmp_path: Path) -> None:
    # Types that PyTorch does not take from numpy.
    images, labels = np.zeros((50, 2), ">f4"), np.zeros(50, np.uint16)
    np.savez(tmp_path / "train.npz", image=images, labels=labels)
    lessons = read_lessons(str(tmp_path / "train.npz"), {"image": ((-1, 2), "float32")}, seed=3)
    assert sorted([*lessons.seen, *lessons.held_out]) == list(range(50))
    assert len(lessons.held_out) == 10
    assert lessons.labels.dtype == np.int64
    assert lessons.inputs["image"].dtype == np.float32


# -- modules and functions of one's own

MODULES = """
import torch
from torch import nn


class Net(nn.Module):
    example_input_array = torch.zeros(1, 8)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        # By name, as code of others does.
        return self.last(input=torch.relu(self.first(input=x)))


class Named(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}


def make():
    torch.manual_seed(0)
    return Net()


class Shared(Net):
    # One layer in two places, and one whose weight another has too.

    def __init__(self):
        super().__init__()
        self.wide = self.again = nn.Linear(32, 32)
        self.tied, self.table = nn.Linear(32, 32, bias=False), nn.Embedding(32, 32)
        self.tied.weight = self.table.weight

    def forward(self, x):
        return self.last(self.tied(self.again(torch.relu(self.wide(self.first(input=x))))))


def frozen():
    return make().requires_grad_(False)


def fails(outputs, labels):
    raise KeyError("logits")


def many(outputs, labels):
    return outputs["output_0"].sum(1)


def nothing(outputs, labels):
    return None
"""
ASK = """
import json
import sys
from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack_packager.workers.torch_compress import compress

home = Path(sys.argv[1])
plain = {
    "source": str(home / "modules.py"), "kind": "torch_module", "shapes": {}, "signature": None,
    "weights": None, "trust": True, "train": str(home / "train.npz"), "seed": 0,
}
told = {}
for name, (factory, step) in json.loads((home / "cases.json").read_text()).items():
    (home / name).mkdir()
    try:
        made = compress(plain | {"factory": factory, "steps": [step]}, home / name, lambda _: None)
        told[name] = ["done", made["applied"][0]]
    except EdgepackError as error:
        told[name] = [error.reason, error.why]
(home / "told.json").write_text(json.dumps(told))
"""


def _cases(modules: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    plain = {"epochs": 1, "batch": 16, "learning_rate": 1e-3, "loss": ""}
    zeros = plain | {"kind": "prune_magnitude", "sparsity": 0.5}
    channels = plain | {
        "kind": "prune_structured", "amount": 0.5, "round_to": 8, "exclude": [], "epochs": 0,
    }  # fmt: skip
    student = plain | {
        "kind": "distil", "student": f"{modules}:Named", "temperature": 2.0, "alpha": 0.5,
    }  # fmt: skip
    return {
        "frozen": ("frozen", zeros),
        "frozen channels": ("frozen", channels),
        "rounding": ("make", plain | {"kind": "qat", "bits": 7}),
        "student": ("make", student),
        "shared": ("Shared", plain | {"kind": "low_rank", "rank": 0.25}),
        **{name: ("make", zeros | {"loss": f"{modules}:{name}"}) for name in LOSSES},
    }


LOSSES = {"fails": "KeyError", "many": "Tensor [16]", "nothing": "NoneType"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What compressing says about every case."""
    home = tmp_path_factory.mktemp("own")
    (home / "modules.py").write_text(MODULES)
    (home / "cases.json").write_text(json.dumps(_cases(home / "modules.py")))
    random = np.random.default_rng(0)
    samples = random.normal(size=(40, 8)).astype(np.float32)
    np.savez(home / "train.npz", x=samples, labels=random.integers(0, 4, 40))
    for package in (edgepack_package, edgepack_packager):
        folder = Path(str(package.__file__)).parent
        (home / folder.name).symlink_to(folder)
    where, _ = toolchains.install(toolchains.find_toolchain("torch"))
    done = subprocess.run(
        [where.python, "-c", ASK, home], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((home / "told.json").read_text()))


@pytest.mark.toolchain
@pytest.mark.parametrize(("name", "words"), LOSSES.items())
def test_a_loss_that_does_not_work_is_named(told: dict[str, Any], name: str, words: str) -> None:
    reason, why = told[name]
    assert reason == "bad_loss", told[name]
    assert words in why


@pytest.mark.toolchain
def test_a_student_must_answer_by_the_same_names(told: dict[str, Any]) -> None:
    reason, why = told["student"]
    assert reason == "bad_student", told["student"]
    assert "logits" in why


@pytest.mark.toolchain
def test_a_frozen_module_loses_channels_but_learns_nothing(told: dict[str, Any]) -> None:
    assert told["frozen"][0] == "frozen"
    assert told["frozen channels"][1]["channels"] == {"first": [32, 16]}


@pytest.mark.toolchain
def test_inputs_given_by_name_are_rounded_too(told: dict[str, Any]) -> None:
    assert told["rounding"][0] == "done", told["rounding"]
    assert told["rounding"][1]["layers"] == 2


@pytest.mark.toolchain
def test_low_rank_replaces_a_layer_wherever_it_is_or_not_at_all(told: dict[str, Any]) -> None:
    facts = told["shared"][1]
    assert facts["ranks"] == {"wide": [8]}
    assert "tied" in facts["kept"]
    assert facts["parameters_before"] - facts["parameters_after"] == 32 * 32 - 2 * 8 * 32
