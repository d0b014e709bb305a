"""Serve an exported model with onnxruntime and NumPy alone; lamella is not needed.

python examples/mnist_cnn.py; python examples/serve.py runs/mnist_cnn/mnist_cnn.onnx runs/mnist_cnn/images.npy

Prints the most likely class of each row in images.npy, and how long the answer took: milliseconds.
"""

import sys
import time

import numpy as np
import onnxruntime


def load(path, example, threads=2):
    """Return a session that is warm, for callers from any thread; ``threads`` is how many cores work on one answer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave their cores to others
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(3):  # the first answers are slow
        answer(session, example)
    return session


def answer(session, batch):
    """Return what the model says of a batch; it may have any number of rows."""
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, batch = sys.argv[1], np.load(sys.argv[2])
    session = load(path, batch[:1])
    start = time.perf_counter()
    probabilities = answer(session, batch)
    print(f"{len(batch)} rows in {1e3 * (time.perf_counter() - start):.1f} ms")
    print(*(f"{row.argmax()} ({row.max():.0%})" for row in probabilities), sep=", ")
