"""LitServe with its faster queue; joining requests made it slower with the small model.

python in_litserve.py MODEL.onnx PORT
"""

import sys
from typing import Annotated

import litserve
import numpy as np
import onnxruntime
from fastapi import Body, Response

model, port = sys.argv[1], int(sys.argv[2])


class Json(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = onnxruntime.InferenceSession(model)
        self.entry = self.session.get_inputs()[0]

    def decode_request(self, request):  # LitServe goes by annotations: without one it reads JSON
        return np.array(request["data"], "float32").reshape(request["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.entry.name: x})[0]

    def encode_response(self, output):
        return {"shape": output.shape, "data": output.ravel().tolist()}


class Binary(Json):
    def decode_request(self, request: Annotated[bytes, Body()]):
        return np.frombuffer(request, "float32").reshape(-1, *self.entry.shape[1:])

    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    apis = [Json(api_path="/json"), Binary(api_path="/binary")]
    server = litserve.LitServer(apis, accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
