"""NVIDIA Triton from the wheel nvidia-pytriton, with onnxruntime in its Python backend.

python in_triton.py MODEL.onnx PORT

Triton's own backend for ONNX is in no package; this one does what it does: load, join what Triton has collected, run,
split. The wheel needs numpy < 2.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import onnxruntime

BACKEND = """
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, about):
        path = os.path.join(about["model_repository"], about["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path)
        (self.input,), (self.output,) = self.session.get_inputs(), self.session.get_outputs()

    def execute(self, requests):
        given = [request.inputs()[0].as_numpy() for request in requests]
        y = self.session.run(None, {self.input.name: np.concatenate(given)})[0]
        parts = np.split(y, np.cumsum([len(x) for x in given])[:-1])
        return [utils.InferenceResponse([utils.Tensor(self.output.name, part)]) for part in parts]
"""

model, port = Path(sys.argv[1]), int(sys.argv[2])
packages = Path(sysconfig.get_path("platlib"))
triton = packages / "pytriton" / "tritonserver"
folder = Path(tempfile.mkdtemp())  # TMPDIR says where; who started this removes it

backend = folder / "backends" / "onnxruntime"
backend.mkdir(parents=True)
(backend / "model.py").write_text(BACKEND)
python = shutil.copytree(triton / "backends" / "python", folder / "backends" / "python")
version = f"{sys.version_info.major}.{sys.version_info.minor}"
shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", python)

served = folder / "models" / model.stem
(served / "1").mkdir(parents=True)
shutil.copy(model, served / "1" / "model.onnx")
session = onnxruntime.InferenceSession(model)
(x,), (y,) = session.get_inputs(), session.get_outputs()
(served / "config.pbtxt").write_text(f"""
platform: "onnxruntime_onnx"
max_batch_size: 64
input [{{ name: "{x.name}" data_type: TYPE_FP32 dims: {x.shape[1:]} }}]
output [{{ name: "{y.name}" data_type: TYPE_FP32 dims: {y.shape[1:]} }}]
dynamic_batching {{ }}
instance_group [{{ count: 1 kind: KIND_CPU }}]
""")

os.environ["LD_LIBRARY_PATH"] = str(packages / "nvidia_pytriton.libs")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the stub runs the python that it finds
options = {"model-repository": served.parent, "backend-directory": backend.parent, "http-port": port}
options |= {"http-address": "127.0.0.1", "allow-grpc": "false", "allow-metrics": "false"}
server = triton / "bin" / "tritonserver"
os.execv(server, [str(server), *(f"--{name}={value}" for name, value in options.items())])
