"""Facts in an OpenVINO IR's `rt_info`: ours, and `model_info` as Model API and Frigate read it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack_targets.annotation import KEY, decode, encode, model_info, of_model_info
from edgepack_targets.session import unreadable
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import openvino as ov

__all__ = ["annotate", "annotations"]

FILES = ("model.bin", "model.xml")
MODEL_INFO = (
    "model_type", "labels", "reverse_input_channels", "mean_values", "scale_values",
    "resize_type", "pad_value", "embedded_processing",
)  # fmt: skip


def annotate(model_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write FACTS into MODEL_DIR/model.xml; see `interface.Target`."""
    model = _read(model_dir / "model.xml")
    model.set_rt_info(encode(facts), [KEY])
    for key, value in sorted(model_info(facts).items()):
        model.set_rt_info(value, ["model_info", key])
    # The weights are mapped from the file that is replaced, so they go to another one first.
    with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=model_dir) as part:
        ov.save_model(model, Path(part) / "model.xml", compress_to_fp16=False)
        for name in FILES:
            (Path(part) / name).replace(model_dir / name)


def annotations(path: Path) -> dict[str, Any]:
    """Return the facts in the IR whose .xml is PATH; see `interface.Target`."""
    model = _read(path)
    try:
        ours = decode(_said(model, [KEY]))
        said = {key: _said(model, ["model_info", key]) for key in MODEL_INFO}
    except (RuntimeError, UnicodeError) as error:
        raise unreadable("OpenVINO", path, error) from error
    return ours or of_model_info({key: text for key, text in said.items() if text})


def _said(model: ov.Model, path: list[str]) -> str:
    """Return the entry PATH as text; a list becomes its items with spaces between them."""
    if not model.has_rt_info(path):
        return ""
    value = model.get_rt_info(path).value
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _read(path: Path) -> ov.Model:
    try:
        return ov.Core().read_model(path)
    except (RuntimeError, UnicodeError) as error:  # the message of one may not be text
        raise unreadable("OpenVINO", path, error) from error
