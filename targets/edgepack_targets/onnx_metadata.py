"""Facts in an ONNX model's `metadata_props`, and in the copy that the ORT format keeps of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from edgepack import durable
from edgepack_targets.annotation import of_props, props
from edgepack_targets.session import unreadable

__all__ = ["annotate", "annotations", "annotations_of_session"]


def annotate(model_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write FACTS into MODEL_DIR/model.onnx; see `interface.Target`."""
    path = model_dir / "model.onnx"
    model = _read(path)
    said = {prop.key: prop.value for prop in model.metadata_props} | props(facts)
    del model.metadata_props[:]
    for key, value in sorted(said.items()):
        model.metadata_props.add(key=key, value=value)
    durable.write_file(path, model.SerializeToString(deterministic=True))


def annotations(path: Path) -> dict[str, Any]:
    """Return the facts in the ONNX model PATH; see `interface.Target`."""
    return of_props({prop.key: prop.value for prop in _read(path).metadata_props})


def annotations_of_session(path: Path) -> dict[str, Any]:
    """Return the facts in the model PATH of any format that onnxruntime loads."""
    from edgepack_targets.onnx_session import open_model

    return of_props(open_model(path, 1).get_modelmeta().custom_metadata_map)


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise unreadable("onnx", path, error) from error
