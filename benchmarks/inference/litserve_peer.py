"""LitServe on an ONNX file: `python litserve_peer.py MODEL PORT`. Bytes come as an upload.

Run by the Python of `peers.environment`; its worker imports this module again.
"""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime
from starlette.requests import Request
from starlette.responses import Response


class Api(litserve.LitAPI):
    """One model, one thread, as the runner has it."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self._model, options)
        self._input = self._session.get_inputs()[0]

    def decode_request(self, request: Request) -> Any:
        shape = [n if isinstance(n, int) else 1 for n in self._input.shape]
        return np.frombuffer(request["content"].file.read(), np.float32).reshape(shape)

    def predict(self, x: Any) -> Any:
        return self._session.run(None, {self._input.name: x})[0]

    def encode_response(self, output: Any) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Api(sys.argv[1]), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error"
    )
