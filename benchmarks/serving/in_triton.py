"""NVIDIA Triton from the wheel of nvidia-pytriton, as the tests run it: with onnxruntime in its Python backend.

python in_triton.py MODEL.onnx PORT LAMELLA

LAMELLA is the interpreter that has lamella, which writes the repository.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

model, port, lamella = sys.argv[1:]
folder = Path(tempfile.mkdtemp())  # TMPDIR says where; who started this removes it
backends, repository = folder / "backends", folder / "models"
packages = Path(sysconfig.get_path("platlib"))
triton = packages / "pytriton" / "tritonserver"
version = f"{sys.version_info.major}.{sys.version_info.minor}"

shutil.copytree(triton / "backends", backends)
shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
shutil.copytree(Path(__file__).parents[2] / "tests" / "against_triton" / "backends", backends, dirs_exist_ok=True)
subprocess.run([lamella, "-m", "lamella", "export-repository", model, repository], check=True)

os.environ["LD_LIBRARY_PATH"] = str(packages / "nvidia_pytriton.libs")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the stub takes the first Python there
server = str(triton / "bin" / "tritonserver")
options = {"model-repository": repository, "backend-directory": backends, "http-port": port}
options |= {"http-address": "127.0.0.1", "allow-grpc": "false", "allow-metrics": "false"}
os.execv(server, [server, *(f"--{name}={value}" for name, value in options.items())])
