"""A small transformer that reads a digit row by row, trained on the digits in the torch toolchain.

Two blocks of attention written by hand, as in most published code: the number of heads and
their width are fixed in `forward`, so that nothing may narrow these layers. About 70,000
parameters; trained once per process. No test should depend on its exact accuracy.
"""

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from digits import INPUT, SIDE, digits_data

MODULE = f"""
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        batch, rows, width = x.shape
        split = self.qkv(self.norm(x)).reshape(batch, rows, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, rows, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width=64, depth=2, heads=4):
        super().__init__()
        self.embed = nn.Linear({SIDE}, width)
        self.position = nn.Parameter(torch.zeros(1, {SIDE}, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, {INPUT}):
        rows = self.embed({INPUT}.squeeze(1)) + self.position
        return self.head(self.norm(self.blocks(rows)).mean(dim=1))


def factory():
    return Transformer()


def student():
    return Transformer(width=32, depth=1)
"""

TRAINING = """
import sys
import numpy as np
import torch
from module import factory

torch.manual_seed(0)
torch.set_num_threads(1)
data = np.load(sys.argv[1])
inputs, labels = (torch.from_numpy(data[name]) for name in (sys.argv[2], "labels"))
model = factory()
epochs, size = int(sys.argv[3]), 64
steps = epochs * -(-len(labels) // size)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
for _ in range(epochs):
    for rows in torch.randperm(len(labels)).split(size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
torch.save(model.state_dict(), "weights.pt")
"""


@dataclass(frozen=True, slots=True)
class Trained:
    """Where a model lies: `module.py:factory`, its weights, its training data."""

    home: Path

    @property
    def source(self) -> str:
        return f"{self.home / 'module.py'}:factory"

    @property
    def weights(self) -> Path:
        return self.home / "weights.pt"

    @property
    def train(self) -> Path:
        return self.home / "train.npz"


@cache
def transformer(home: Path, python: Path, epochs: int = 10) -> Trained:
    """Train the transformer with PYTHON, which has torch, and leave it in HOME."""
    return trained(MODULE, home, python, epochs)


def trained(module: str, home: Path, python: Path, epochs: int) -> Trained:
    """Train what the code MODULE makes on the digits with PYTHON, and leave it in HOME."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "module.py").write_text(module)
    (home / "training.py").write_text(TRAINING)
    train = digits_data()[0]
    made = Trained(home)
    np.savez(made.train, **{INPUT: train.inputs, "labels": train.labels})
    command = [str(python), "training.py", "train.npz", INPUT, str(epochs)]
    subprocess.run(command, cwd=home, check=True, timeout=240, capture_output=True)
    return made
