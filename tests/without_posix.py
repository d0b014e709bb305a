"""Trains, saves, exports and serves as if on Windows: without what only POSIX has. `test_other_systems.py` runs it.

It takes away modules, functions and signals, lets folders not be opened, and lets nothing take a folder's place. It
can't show how the files, sockets and processes of Windows behave, nor what NumPy and onnxruntime do there.
"""

# ruff: noqa: E402  what is taken away goes before lamella comes

import csv
import ctypes
import errno
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request

# What is made for this system comes first: parts of Python itself, and packages of others.
NOT_OURS = """
    asyncio.unix_events logging.handlers multiprocessing.util random subprocess uuid
    httptools numpy onnx onnxruntime orjson pluggy safetensors.numpy skl2onnx sklearn.base threadpoolctl uvicorn
"""
MODULES = "fcntl grp posix pwd resource termios tty uvloop"
OF_OS = """
    chown fork forkpty geteuid getloadavg getuid killpg lchown mkfifo register_at_fork sched_getaffinity setsid statvfs
    uname O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK
"""
OF_SIGNAL = "SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 alarm pthread_sigmask setitimer"

for name in NOT_OURS.split():
    importlib.import_module(name)
for name in MODULES.split():
    sys.modules[name] = None  # type: ignore[assignment]  # whose import fails
for name in OF_OS.split():
    delattr(os, name)
for name in OF_SIGNAL.split():
    delattr(signal, name)
shutil._use_fd_functions = False  # else it opens folders

_open, _rename, _library = os.open, os.rename, ctypes.CDLL


def open_no_folder(path, flags, *rest, **options):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return _open(path, flags, *rest, **options)


def rename_onto_nothing(old, new, *rest, **options):
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(new))
    return _rename(old, new, *rest, **options)


def library(name, *rest, **options):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    return _library(name, *rest, **options)


os.open, os.rename, ctypes.CDLL = open_no_folder, rename_onto_nothing, library

import numpy as np

import lamella as lm
import lamella_onnx
import lamella_onnx.isolation
from lamella import cli
from lamella.callbacks import Checkpoint, CSVLogger
from lamella.cli.new_plugin import create
from lamella_layers import Dense
from lamella_onnx import TrainingSession
from lamella_sklearn import LamellaClassifier

TASK = {"loss": "softmax_cross_entropy", "optimizer": "adam"}


def main() -> None:
    os.chdir(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6)).astype("float32"), rng.integers(0, 3, 60)
    lm.set_threads(2)
    model = lm.Sequential([Dense(8, activation="relu"), Dense(3)], input_shape=6)
    kept = [Checkpoint("model.lamella"), CSVLogger("log.csv")]
    model.fit(x, y, **TASK, epochs=2, callbacks=kept)
    with open("log.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 3
    model.save("model.lamella")  # over another
    np.testing.assert_array_equal(lm.load("model.lamella").predict(x), model.predict(x))

    for _ in range(2):
        lamella_onnx.export(model, "model.onnx", samples=x)
        lamella_onnx.export_training_step(model, "step", **TASK, samples=(x, y))
    assert lamella_onnx.verify("model.onnx")
    session = TrainingSession("step")
    session.step(x, y)
    assert sorted(os.listdir()) == ["log.csv", "model.lamella", "model.onnx", "step"]
    LamellaClassifier(epochs=1).fit(x, y)
    create("soft-gate")
    lamella_onnx.isolation._limit(1000, 1.0)  # in a process that replays proofs of strangers, there are no limits

    serve(x)


def serve(x: np.ndarray) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers = []

    def ask() -> None:
        url = f"http://127.0.0.1:{port}/v2/models/model/infer"
        named = {"name": "input_1", "shape": [2, 6], "datatype": "FP32", "data": x[:2].ravel().tolist()}
        for _ in range(200):
            try:
                with urllib.request.urlopen(url, json.dumps({"inputs": [named]}).encode(), timeout=10) as answer:
                    answers.append(json.load(answer))
                break
            except OSError:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ask).start()
    cli.main(["serve", "model.onnx", "--port", str(port)])
    (answer,) = answers
    assert answer["outputs"][0]["shape"] == [2, 3]


if __name__ == "__main__":
    main()
    print("all of it ran")
