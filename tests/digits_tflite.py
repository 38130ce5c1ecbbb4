"""The digits classifier as a .tflite file, written without TensorFlow: same weights, NHWC.

The writer of the format is LiteRT's own schema; only the seven operators are ours. With one
signature, as an export from a SavedModel has: `image` (1, 16, 16, 1) -> `logits` (1, 10).
"""

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from numpy.typing import NDArray

from digits import FILTERS, INPUT, OUTPUT, SIDE, Net, digits_net

Op = tfl.BuiltinOperator
Options = tfl.BuiltinOptions
HALF = SIDE // 2


class Writer:
    """Collects tensors, buffers and operators of one subgraph."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        # By the format's rule, buffer 0 is the empty one.
        self.buffers: list[Any] = [tfl.BufferT()]
        self.codes: list[int] = []
        self.operators: list[Any] = []

    def tensor(self, name: str, shape: tuple[int, ...], data: NDArray[Any] | None = None) -> int:
        integer = data is not None and data.dtype == np.int32
        tensor = tfl.TensorT(shape=list(shape), name=name)
        tensor.type = tfl.TensorType.INT32 if integer else tfl.TensorType.FLOAT32
        tensor.hasRank = True
        if data is not None:
            tensor.buffer = len(self.buffers)
            buffer = tfl.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def weight(self, name: str, data: NDArray[Any]) -> int:
        return self.tensor(name, data.shape, data)

    def operator(self, code: int, inputs: list[int], output: int, kind: int, options: Any) -> None:
        if code not in self.codes:
            self.codes.append(code)
        operator = tfl.OperatorT(inputs=inputs, outputs=[output])
        operator.opcodeIndex = self.codes.index(code)
        operator.builtinOptionsType, operator.builtinOptions = kind, options
        self.operators.append(operator)

    def pack(self, image: int, logits: int) -> bytes:
        graph = tfl.SubGraphT(
            tensors=self.tensors, inputs=[image], outputs=[logits], operators=self.operators
        )
        graph.name = "main"
        signature = tfl.SignatureDefT(
            inputs=[tfl.TensorMapT(name=INPUT, tensorIndex=image)],
            outputs=[tfl.TensorMapT(name=OUTPUT, tensorIndex=logits)],
            signatureKey="serving_default",
        )
        model = tfl.ModelT(version=3, subgraphs=[graph], buffers=self.buffers)
        model.operatorCodes = [
            tfl.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code) for code in self.codes
        ]
        model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _relu(options: Any, *, on: bool = True) -> Any:
    options.fusedActivationFunction = (
        tfl.ActivationFunctionType.RELU if on else tfl.ActivationFunctionType.NONE
    )
    return options


def digits_tflite(path: Path, wrong_labels: float = 0.0, net: Net | None = None) -> Path:
    """Write the trained net, or NET, to PATH as fp32 TFLite; see `digits.digits_onnx`."""
    net, w = net or digits_net(wrong_labels), Writer()
    hidden_units = len(net.hidden_bias)
    image = w.tensor("serving_default_image:0", (1, SIDE, SIDE, 1))
    maps = w.tensor("maps", (1, SIDE, SIDE, FILTERS))
    pooled = w.tensor("pooled", (1, HALF, HALF, FILTERS))
    flat = w.tensor("flat", (1, HALF * HALF * FILTERS))
    dense = w.tensor("dense", (1, hidden_units))
    logits = w.tensor("StatefulPartitionedCall:0", (1, 10))
    conv = tfl.Conv2DOptionsT(padding=tfl.Padding.SAME, strideW=1, strideH=1)
    kernel = [
        image,
        w.weight("conv", net.conv.transpose(0, 2, 3, 1)),
        w.weight("cb", net.conv_bias),
    ]
    w.operator(Op.CONV_2D, kernel, maps, Options.Conv2DOptions, _relu(conv))
    pool = tfl.Pool2DOptionsT(padding=tfl.Padding.VALID, strideW=2, strideH=2)
    pool.filterWidth = pool.filterHeight = 2
    w.operator(Op.MAX_POOL_2D, [maps], pooled, Options.Pool2DOptions, pool)
    shape = w.weight("shape", np.array([1, HALF * HALF * FILTERS], np.int32))
    w.operator(Op.RESHAPE, [pooled, shape], flat, Options.ReshapeOptions, tfl.ReshapeOptionsT())
    # ONNX flattens channels first, TFLite channels last.
    rows = net.hidden.reshape(FILTERS, HALF, HALF, hidden_units).transpose(3, 1, 2, 0)
    hidden = [
        flat,
        w.weight("hidden", rows.reshape(hidden_units, -1)),
        w.weight("hb", net.hidden_bias),
    ]
    options = Options.FullyConnectedOptions
    w.operator(Op.FULLY_CONNECTED, hidden, dense, options, _relu(tfl.FullyConnectedOptionsT()))
    out = [dense, w.weight("out", np.ascontiguousarray(net.out.T)), w.weight("ob", net.out_bias)]
    w.operator(
        Op.FULLY_CONNECTED, out, logits, options, _relu(tfl.FullyConnectedOptionsT(), on=False)
    )
    path.write_bytes(w.pack(image, logits))
    return path
