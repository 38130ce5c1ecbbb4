"""The digits classifier in PyTorch, trained once per session, in every form people keep one.

`torch_digits` writes to a directory:

- `digits.py` with `make()` and `bare()`, and `weights.pt`, `weights.safetensors`
- `digits.pt2` (any batch), `script.pt`, `traced.pt`
- `calibration.npz`, `evaluation.npz`: `image` (n, 1, 16, 16), `labels`

`torch_zoo` adds models that are odd, or that must not be opened.
"""

import subprocess
from pathlib import Path

from digits import INPUT, calibration_npz, evaluation_npz
from edgepack_packager.adapters import toolchains

MODULE = """
import torch
from torch import nn


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(64, 10)

    def forward(self, image):
        flat = self.features(image).flatten(1)
        return {"logits": self.out(self.drop(torch.relu(self.hidden(flat))))}


def bare():
    return Digits()


def make():
    model = Digits()
    model.example_input_array = torch.zeros(4, 1, 16, 16)
    return model
"""
TRAIN = """
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import numpy as np
import torch
from safetensors.torch import save_file

home = Path(sys.argv[1])
sys.path.insert(0, str(home))
import digits

torch.manual_seed(0)
torch.set_num_threads(1)
data = np.load(home / "train.npz")
images, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
model = digits.make()
epochs, size = 4, 32
steps = epochs * (len(images) // size)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
for epoch in range(epochs):
    for rows in torch.randperm(len(images))[: len(images) // size * size].split(size):
        optimizer.zero_grad()
        logits = model(images[rows])["logits"]
        torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        schedule.step()
model.eval()
del model.example_input_array
torch.save(model.state_dict(), home / "weights.pt")
save_file(model.state_dict(), home / "weights.safetensors")
two = torch.zeros(2, 1, 16, 16)
any_batch = ({0: torch.export.Dim.DYNAMIC},)
torch.export.save(torch.export.export(model, (two,), dynamic_shapes=any_batch), home / "digits.pt2")
torch.jit.script(model).save(home / "script.pt")
torch.jit.trace(model, two, strict=False).save(home / "traced.pt")
"""
ODD = '''
import os
import torch
from torch import nn
from torch.utils import _pytree


class Pair(nn.Module):
    """Two inputs, the second first in the sum; a tuple inside a dictionary."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(12, 5)
        self.total = nn.Linear(5, 2)

    def forward(self, right, left):
        both = torch.tanh(self.left(left) - self.right(right.flatten(1)))
        return {"total": self.total(both), "parts": (both, left * 2)}


class Twins(nn.Module):
    """Two inputs and two outputs of one shape: only their names tell them apart."""

    def forward(self, minus, plus):
        return plus - minus, plus * 2 - minus


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        return x + self.seen


class Chooser(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))


class Brancher(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@torch.library.custom_op("edgepack_tests::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return x * 3


triple.register_fake(lambda x: torch.empty_like(x))


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        return triple(x) + self.seen


class Star(nn.Module):
    def forward(self, *tensors):
        return tensors[0]


class ScriptCounter(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen = self.seen + 1
        return x + self.seen


class Saver(nn.Module):
    def forward(self, x):
        torch.save(x, "told.pt")
        return x


class Nothing(nn.Module):
    def forward(self, x):
        return x


def no_module():
    return 3
'''
MAKE_ODD = """
import io
import json
import os
import sys
import warnings
import zipfile
from pathlib import Path

warnings.simplefilter("ignore")
import torch
import digits_torch_odd as odd

home = Path(sys.argv[1])
x = torch.ones(1, 4)


def export(model, name, *inputs, **more):
    torch.export.save(torch.export.export(model, inputs, **more), home / name)


export(odd.Pair().eval(), "pair.pt2", torch.ones(1, 4, 3), x)
export(odd.Twins(), "twins.pt2", x, x + 1)
export(odd.Words().eval(), "words.pt2", torch.zeros(1, 6, dtype=torch.int64))
export(odd.Chooser(), "chooser.pt2", x)
export(odd.Custom(), "custom.pt2", x)
any_size = ({1: torch.export.Dim("width", min=2, max=64)},)
export(odd.Twins(), "wide.pt2", x, x + 1, dynamic_shapes=any_size * 2)
torch.jit.script(odd.ScriptCounter()).save(home / "counter.pt")
torch.jit.script(odd.Words().eval()).save(home / "words.pt")
torch.jit.script(odd.Saver()).save(home / "saver.pt")
torch.save(odd.Nothing(), home / "pickled.pt")
torch.save({"a": torch.zeros(1)}, home / "other.pt")


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {home}/ran",)


torch.save(Evil(), home / "evil.pt")
stream = io.BytesIO()
torch.save((Evil(),), stream)


def tamper(name, member, change, of="digits.pt2"):
    with zipfile.ZipFile(home / of) as source, zipfile.ZipFile(home / name, "w") as out:
        for item in source.infolist():
            content = source.read(item)
            out.writestr(item, change(content) if item.filename.endswith(member) else content)


def graph(change):
    def apply(content):
        text = json.loads(content)
        change(text["graph_module"]["graph"])
        return json.dumps(text).encode()

    return apply


def call_system(graph):
    graph["nodes"][0]["target"] = "torch.os.system"


def evaluate(value):
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict) and "expr_str" in inner:
            inner["expr_str"] = f"__import__('os').system('touch {home}/ran')"
        if isinstance(inner, dict | list):
            evaluate(inner)


def call_builtin(graph):
    graph["nodes"][0]["target"] = "_operator.attrgetter"


def call_library(graph):
    graph["nodes"][0]["target"] = "torch.ops.load_library.__call__"


def hide(call):
    # As no exporter writes it, and as PyTorch reads it all the same.
    return lambda code: code.replace(b"return", call.encode() + b"\\n    return", 1)


for index, call in enumerate(
    (
        f'torch.save (tokens, "{home}/ran")',
        f'torch . save(tokens, "{home}/ran")',
        f'f = torch.save\\n    f(tokens, "{home}/ran")',
        f'ops . aten.from_file("{home}/ran", True, 64)',
        "o = ops\\n    o.quantized.linear_unpack(tokens)",
    )
):
    tamper(f"hidden-{index}.pt", ".py", hide(call), "words.pt")
tamper("evil-builtin.pt2", "models/model.json", graph(call_builtin))
tamper("evil-library.pt2", "models/model.json", graph(call_library))
tamper("evil-samples.pt2", "sample_inputs/model.pt", lambda _: stream.getvalue())
tamper("evil-operator.pt2", "models/model.json", graph(call_system))
tamper("evil-size.pt2", "models/model.json", graph(evaluate))
with zipfile.ZipFile(home / "evil-object.pt2", "w") as out:
    with zipfile.ZipFile(home / "digits.pt2") as source:
        for item in source.infolist():
            out.writestr(item, source.read(item))
        root = source.namelist()[0].partition("/")[0]
    out.writestr(f"{root}/data/constants/opaque_obj_0", b"cos")
"""


def torch_digits(home: Path) -> Path:
    """Train the classifier in the torch toolchain and write it and its data to HOME."""
    (home / "digits.py").write_text(MODULE)
    _labelled(home / "train.npz")
    calibration_npz(home / "calibration.npz")
    evaluation_npz(home / "evaluation.npz")
    _run(TRAIN, home)
    return home


def torch_zoo(home: Path) -> Path:
    """Write the odd and the bad models beside the digits in HOME; `odd.py` holds their code."""
    (home / "digits_torch_odd.py").write_text(ODD)
    _run(MAKE_ODD, home)
    return home


def _labelled(path: Path) -> None:
    import numpy as np

    from digits import digits_data

    train = digits_data()[0]
    np.savez(path, **{INPUT: train.inputs, "labels": train.labels})


def _run(code: str, home: Path) -> None:
    where, _ = toolchains.install(toolchains.find_toolchain("torch"))
    done = subprocess.run(
        [where.python, "-c", code, home],
        env={"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
