"""The app that people write by hand: FastAPI checks the request, onnxruntime answers in a thread.

python in_fastapi.py MODEL.onnx PORT
"""

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

model, port = sys.argv[1], int(sys.argv[2])
session = onnxruntime.InferenceSession(model)
entry = session.get_inputs()[0]
app = FastAPI()


class Tensor(BaseModel):
    shape: list[int]
    data: list[float]


def predict(x: np.ndarray) -> np.ndarray:
    return session.run(None, {entry.name: x})[0]


@app.post("/json")
def answer_json(tensor: Tensor) -> Tensor:
    y = predict(np.array(tensor.data, "float32").reshape(tensor.shape))
    return Tensor(shape=y.shape, data=y.ravel().tolist())


@app.post("/binary")
async def answer_binary(request: Request) -> Response:
    x = np.frombuffer(await request.body(), "float32").reshape(-1, *entry.shape[1:])
    y = await run_in_threadpool(predict, x)
    return Response(y.tobytes(), media_type="application/octet-stream")


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
