"""Held-out pictures, asked over a device's local API. Speaks Open Inference Protocol v2."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

__all__ = ["Answers", "Tally", "ask"]


@dataclass(frozen=True)
class Tally:
    """How many pictures were asked and how many answers were right."""

    asked: int = 0
    right: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.asked + other.asked, self.right + other.right)

    def __str__(self) -> str:
        return f"{self.right} of {self.asked} right ({self.share:.1%})"

    @property
    def share(self) -> float:
        """Share of right answers, 0..1."""
        return self.right / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Answers:
    """What a device answered, and the bundle it answered with (`name@version`)."""

    tally: Tally
    bundle: str


def ask(base: str, token: str, model: str, pictures: Path) -> Answers:
    """Ask the device at BASE, with its TOKEN, what is on each of PICTURES, named `LABEL-....png`.

    Raises:
        httpx.HTTPError: the device does not answer.
    """
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=base, headers=headers, timeout=30) as client:
        about = _get(client, f"/v2/models/{model}")
        shape = [1, *about["inputs"][0]["shape"][1:]]
        tally = Tally()
        for path in sorted(pictures.glob("*.png")):
            answer = _infer(client, model, about["inputs"][0]["name"], shape, _pixels(path))
            tally += Tally(1, int(answer == int(path.name.partition("-")[0])))
    return Answers(tally, f"{model}@{about['versions'][0]}")


def _pixels(path: Path) -> list[float]:
    with Image.open(path) as image:
        values: list[float] = (np.asarray(image, np.float32) / 255).ravel().tolist()
    return values


def _infer(client: httpx.Client, model: str, name: str, shape: list[int], data: list[float]) -> int:
    tensor = {"name": name, "shape": shape, "datatype": "FP32", "data": data}
    reply = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    reply.raise_for_status()
    return int(np.argmax(reply.json()["outputs"][0]["data"]))


def _get(client: httpx.Client, path: str) -> Any:
    reply = client.get(path)
    reply.raise_for_status()
    return reply.json()
