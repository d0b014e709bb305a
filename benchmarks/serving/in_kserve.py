"""KServe's own server with a model of onnxruntime; it speaks the Open Inference Protocol.

python in_kserve.py MODEL.onnx PORT
"""

import logging
import sys
from pathlib import Path
from typing import Any

import kserve
import onnxruntime
import uvicorn
from kserve.utils.utils import generate_uuid

model, port = sys.argv[1], int(sys.argv[2])


class Loopback(uvicorn.Config):
    """KServe listens on all addresses, and has no option for it."""

    def __init__(self, app: str, **options: Any) -> None:
        super().__init__(app, **options | {"host": "127.0.0.1"})


class OnnxModel(kserve.Model):
    def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(model)
        self.output = self.session.get_outputs()[0].name
        self.ready = True
        return self.ready

    async def predict(self, payload, headers=None, response_headers=None):
        y = self.session.run(None, {one.name: one.as_numpy() for one in payload.inputs})[0]
        output = kserve.InferOutput(self.output, list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=payload.use_binary_outputs)
        name = payload.id or generate_uuid()
        return kserve.InferResponse(name, self.name, [output], use_binary_outputs=payload.use_binary_outputs)


uvicorn.Config = Loopback
served = OnnxModel(Path(model).stem)
served.load()
server = kserve.ModelServer(http_port=port, enable_grpc=False, enable_latency_logging=False)
for name in ("kserve", "uvicorn.access"):  # lines of each request cost time that others do not spend
    logging.getLogger(name).setLevel(logging.WARNING)
server.start([served])
