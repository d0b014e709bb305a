"""Times training steps of lamella next to PyTorch, fairly: one process each, interleaved, order reversed every round.

    python benchmarks/steps.py [--python PYTHON_WITH_TORCH] [--rounds 7] [--models mlp cnn vgg lstm small-lstm]

Each contestant is a process of its own, since two thread pools in one process distort each other. In every round each
takes a few steps while the others wait; the table shows the median of rounds with the least and the most, and the
ratio to the faster PyTorch layout, round by round (below 1: lamella is faster). Variables that slow NumPy's BLAS down
are removed from every contestant's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

BATCH = {"mlp": 512, "cnn": 128, "vgg": 64, "lstm": 64, "small-lstm": 32}
SHAPE = {"mlp": (784,), "cnn": (1, 28, 28), "vgg": (3, 32, 32), "lstm": (50, 64), "small-lstm": (20, 8)}
UNITS = {"lstm": 256, "small-lstm": 32}
CONTESTANTS = {
    "lamella, 2 threads": ("lamella", {"threads": 2}),
    "lamella, 1 thread": ("lamella", {"threads": 1}),
    "lamella, whole batch": ("lamella", {"threads": 1, "whole": True}),
    "lamella, oneDNN": ("lamella", {"threads": 2, "backend": "onednn"}),
    "PyTorch, 2 threads": ("torch", {"threads": 2}),
    "PyTorch, channels last": ("torch", {"threads": 2, "channels_last": True}),
    "PyTorch, 1 thread": ("torch", {"threads": 1}),
}


def lamella_step(name, threads, whole=False, backend="numpy"):
    import numpy as np

    import lamella as lm
    from lamella.graph import slicing
    from lamella_layers import LSTM, Activation, BatchNormalization, Conv2D, Dense, Flatten, MaxPooling2D

    def block(filters):
        return [Conv2D(filters, 3, padding="same", use_bias=False), BatchNormalization(), Activation("relu")]

    if name == "mlp":
        layers = [Dense(1024, activation="relu"), Dense(1024, activation="relu"), Dense(10)]
    elif name == "cnn":
        layers = [Conv2D(32, 3, padding="same", activation="relu"), MaxPooling2D()]
        layers += [Conv2D(64, 3, padding="same", activation="relu"), MaxPooling2D()]
        layers += [Flatten(), Dense(128, activation="relu"), Dense(10)]
    elif name in UNITS:
        layers = [LSTM(UNITS[name], return_sequences=False), Dense(10)]
    else:
        layers = [layer for filters in (64, 128, 256) for layer in [*block(filters), *block(filters), MaxPooling2D()]]
        layers += [Flatten(), Dense(256, activation="relu"), Dense(10)]
    if whole:
        slicing.INLINE_WORK = 1 << 62  # one slice, on the calling thread
    else:
        lm.set_threads(threads)
    model = lm.Sequential(layers, input_shape=SHAPE[name], backend=backend)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH[name], *SHAPE[name])).astype("float32"), np.arange(BATCH[name]) % 10
    return lambda: model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")


def torch_step(name, threads, channels_last=False):
    import torch
    from torch import nn

    torch.set_num_threads(threads)

    def block(channels, filters):
        return [nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]

    class Last(nn.Module):
        """The state after the last step, as a layer."""

        def forward(self, sequences):
            return sequences[0][:, -1]

    if name == "mlp":
        layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    elif name == "cnn":
        layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]
    elif name in UNITS:
        layers = [nn.LSTM(SHAPE[name][1], UNITS[name], batch_first=True), Last(), nn.Linear(UNITS[name], 10)]
    else:
        layers, channels = [], 3
        for filters in (64, 128, 256):
            layers += [*block(channels, filters), *block(filters, filters), nn.MaxPool2d(2)]
            channels = filters
        layers += [nn.Flatten(), nn.Linear(256 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*layers)
    x, y = torch.randn(BATCH[name], *SHAPE[name]), torch.arange(BATCH[name]) % 10
    if channels_last and len(SHAPE[name]) == 3:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return step


def contestant(kind, name, options):
    """What a child process does: take steps when told to, and tell how long they took."""
    import resource

    step = {"lamella": lamella_step, "torch": torch_step}[kind](name, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"seconds": statistics.median(times), "peak": peak / 1024}), flush=True)


def contestants():
    """All that can run here."""
    from lamella.backends import get_backend

    try:
        get_backend("onednn")
    except ImportError:
        return {label: how for label, how in CONTESTANTS.items() if "oneDNN" not in label}
    return CONTESTANTS


def compare(name, python, rounds, steps):
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    children = {}
    for label, (kind, options) in contestants().items():
        command = [python if kind == "torch" else sys.executable, __file__, "--child", kind, name, json.dumps(options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children[label] = subprocess.Popen(command, env=environment, **pipes)
        children[label].stdout.readline()
    results = {label: [] for label in children}
    for k in range(rounds):
        for label in list(children)[:: -1 if k % 2 else 1]:
            children[label].stdin.write(f"{steps}\n")
            children[label].stdin.flush()
            results[label].append(json.loads(children[label].stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    print(f"\n{name}, batch {BATCH[name]}{'':14}  ms/step   (least  most)   ratio   peak of a step")
    layouts = zip(results["PyTorch, 2 threads"], results["PyTorch, channels last"], strict=True)
    best = [min(a["seconds"], b["seconds"]) for a, b in layouts]
    for label, rows in results.items():
        times = [1e3 * row["seconds"] for row in rows]
        ratio = statistics.median(row["seconds"] / reference for row, reference in zip(rows, best, strict=True))
        print(
            f"  {label:24} {statistics.median(times):8.1f}   ({min(times):6.1f} {max(times):6.1f})   {ratio:5.2f}"
            f"   {rows[-1]['peak']:6.0f} MB"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        contestant(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch")
        parser.add_argument("--rounds", type=int, default=7)
        parser.add_argument("--steps", type=int, default=3, help="steps in each round")
        parser.add_argument("--models", nargs="+", default=list(BATCH), choices=list(BATCH))
        given = parser.parse_args()
        for model in given.models:
            compare(model, given.python, given.rounds, given.steps)
