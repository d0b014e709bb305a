"""A worker process of mosec behind its server in Rust, which joins requests.

python in_mosec.py MODEL.onnx PORT
"""

import os
import sys

import numpy as np
import onnxruntime
from mosec import Runtime, Server, Worker

model, port = sys.argv[1:3]


class Json(Worker):
    """Takes and gives what `Worker` makes of JSON."""

    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(model)
        self.entry = self.session.get_inputs()[0]

    def forward(self, data: list) -> list:
        x = np.concatenate([np.array(one["data"], "float32").reshape(one["shape"]) for one in data])
        y = self.session.run(None, {self.entry.name: x})[0]
        ends = np.cumsum([one["shape"][0] for one in data])[:-1]
        return [{"shape": part.shape, "data": part.ravel().tolist()} for part in np.split(y, ends)]


class Binary(Json):
    """Takes and gives the bytes of arrays."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, "float32").reshape(-1, *self.entry.shape[1:])

    def forward(self, data: list) -> list:
        y = self.session.run(None, {self.entry.name: np.concatenate(data)})[0]
        return np.split(y, np.cumsum([len(x) for x in data])[:-1])

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": port, "MOSEC_LOG_LEVEL": "warning"}
    server = Server()
    server.register_runtime(
        {
            "/json": [Runtime(Json, max_batch_size=64, max_wait_time=1)],
            "/binary": [Runtime(Binary, max_batch_size=64, max_wait_time=1)],
        }
    )
    server.run()
