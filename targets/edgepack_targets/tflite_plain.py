"""A TFLite model as older readers of the format understand it.

ai-edge-quantizer writes an operator's code only in the newer of its two fields, and large
weights behind the flatbuffer. LiteRT takes both; OpenVINO and tf2onnx read an ADD where it says
DEQUANTIZE. Nothing that computes is changed.
"""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = ["plain"]

OLD_CODES = 127
"""The first value that the older field cannot hold; it stands for a look at the newer one."""


def plain(content: bytes) -> bytes:
    """Return the sound model CONTENT with both fields filled and all weights inside.

    Inputs and outputs are called as in the model's signature, if it has one.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.deprecatedBuiltinCode = min(code.builtinCode, OLD_CODES)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    for operator in (op for graph in model.subgraphs for op in graph.operators):
        options = operator.builtinOptions
        if isinstance(options, schema.ReshapeOptionsT) and options.newShape is None:
            # The shape is an input, and to be without options is the usual way to say so.
            operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.NONE, None
    _rename(model)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _rename(model: Any) -> None:
    tensors = model.subgraphs[0].tensors
    for signature in model.signatureDefs or ():
        sides = (*signature.inputs, *signature.outputs)
        public = {tensor.tensorIndex: tensor.name for tensor in sides}
        if signature.subgraphIndex == 0 and len(set(public.values())) == len(sides):
            for index, tensor in enumerate(tensors):
                tensor.name = public.get(index, f"edgepack.tensor_{index}")
