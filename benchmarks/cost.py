"""What a step costs beside its arithmetic: CPU time of small networks at batch 1, next to NumPy written by hand.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/cost.py

Times are the best of many, in microseconds of CPU time of all threads, each after a warm-up. NumPy by hand computes the
same step, forward, loss, backward and Adam, into arrays that are there already, and checks nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np

import lamella as lm
from lamella_layers import Activation, Dense

TASK: dict[str, Any] = {"loss": "softmax_cross_entropy", "progress": False}


def best(runs: Sequence[Callable[[], int]], rounds: int) -> list[float]:
    """Microseconds of CPU time for one of what each run counts: the least of all rounds, in which they take turns."""
    found = [math.inf] * len(runs)
    for run in runs:
        run()
    for _ in range(rounds):
        for k, run in enumerate(runs):
            began = time.process_time()
            count = run()
            found[k] = min(found[k], 1e6 * (time.process_time() - began) / count)
    return found


def data(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and labels of ten classes."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, features)).astype("float32"), rng.integers(0, 10, rows)


def network(sizes: tuple[int, ...], extra: int = 0) -> lm.Model:
    """Dense layers with relu between them, and further elementwise layers before the last."""
    hidden = [layer for units in sizes[1:-1] for layer in (Dense(units), Activation("relu"))]
    more = [Activation("relu") for _ in range(extra)]
    return lm.Sequential([*hidden, *more, Dense(sizes[-1])], input_shape=sizes[0])


def fit(sizes: tuple[int, ...], rows: int, extra: int = 0) -> Callable[[], int]:
    """An epoch of `fit` at batch 1 with Adam."""
    model, (x, y) = network(sizes, extra), data(rows, sizes[0])

    def run() -> int:
        model.fit(x, y, optimizer=lm.optimizers.Adam(1e-4), batch_size=1, **TASK)
        return rows

    return run


def by_hand(sizes: tuple[int, ...], rows: int) -> Callable[[], int]:
    """The same steps in NumPy alone."""
    x, y = data(rows, sizes[0])
    pairs = list(itertools.pairwise(sizes))
    shapes = [shape for inputs, units in pairs for shape in ((inputs, units), (units,))]
    size = sum(int(np.prod(shape)) for shape in shapes)
    p, g, m, v, work, other = (np.zeros(size, "float32") for _ in range(6))
    p[:] = np.random.default_rng(1).standard_normal(size) * 0.05

    def parts(flat: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        return [flat[end - int(np.prod(shape)) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]

    params, grads = parts(p), parts(g)
    outputs = [np.zeros((1, units), "float32") for units in sizes[1:]]
    slopes = [np.zeros((1, units), "float32") for units in sizes[1:]]
    signs = [np.zeros((1, units), "bool") for units in sizes[1:]]
    step = 0

    def take(row: int) -> None:
        nonlocal step
        step += 1
        given = x[row : row + 1]
        h = given
        for k, y_k in enumerate(outputs):
            np.matmul(h, params[2 * k], out=y_k)
            np.add(y_k, params[2 * k + 1], out=y_k)
            if k < len(outputs) - 1:
                np.maximum(y_k, 0.0, out=y_k)
            h = y_k
        d = slopes[-1]
        np.subtract(h, h.max(), out=d)
        np.exp(d, out=d)
        np.divide(d, d.sum(), out=d)
        d[0, y[row]] -= 1.0
        for k in range(len(outputs) - 1, -1, -1):
            below = outputs[k - 1] if k else given
            np.multiply(below.T, slopes[k], out=grads[2 * k])
            grads[2 * k + 1][...] = slopes[k][0]
            if k:
                np.matmul(slopes[k], params[2 * k].T, out=slopes[k - 1])
                np.greater(below, 0.0, out=signs[k - 1])
                np.multiply(slopes[k - 1], signs[k - 1], out=slopes[k - 1])
        np.multiply(m, 0.9, out=m)
        np.multiply(g, 0.1, out=work)
        np.add(m, work, out=m)
        np.multiply(v, 0.999, out=v)
        np.multiply(g, g, out=work)
        np.multiply(work, 0.001, out=work)
        np.add(v, work, out=v)
        np.divide(v, 1.0 - 0.999**step, out=work)
        np.sqrt(work, out=work)
        np.add(work, 1e-8, out=work)
        np.divide(m, work, out=other)
        np.multiply(other, 1e-4 / (1.0 - 0.9**step), out=other)
        np.subtract(p, other, out=p)

    def run() -> int:
        for row in range(rows):
            take(row)
        return rows

    return run


def predict(sizes: tuple[int, ...], rows: int) -> tuple[Callable[[], int], Callable[[], int]]:
    """`predict` of one row, many times, and the same in NumPy alone."""
    model, (x, _) = network(sizes), data(1, sizes[0])
    arrays = list(model.parameters.values())

    def run() -> int:
        for _ in range(rows):
            model.predict(x)
        return rows

    def bare() -> int:
        for _ in range(rows):
            h = x
            for k in range(0, len(arrays), 2):
                h = h @ arrays[k] + arrays[k + 1]
                h = np.maximum(h, 0.0) if k < len(arrays) - 2 else h
        return rows

    return run, bare


def changes_of_file() -> tuple[int, int]:
    """How many files of lamella run in one prepared step of two dense layers, and how often the file changes."""
    model, x = lm.Sequential([Dense(8), Dense(10)], input_shape=4), np.ones((6, 4), "float32")
    task = {"loss": "mean_squared_error", "optimizer": lm.optimizers.SGD(0.1), "batch_size": 3, "progress": False}
    y = np.ones((6, 10), "float32")
    model.fit(x, y, epochs=5, **task)
    trails: list[list[str]] = []  # of each step
    inside = False

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal inside
        is_step = frame.f_code.co_qualname == "TrainStep.__call__"
        if is_step and event == "call":
            trails.append([])
            inside = True
        if inside and event in ("call", "return"):
            files = [frame.f_code.co_filename, frame.f_back.f_code.co_filename if frame.f_back else ""]
            own = [file for file in files if f"{os.sep}lamella" in file]
            trails[-1] += own if event == "return" else own[::-1]
        inside = inside and not (is_step and event == "return")

    sys.setprofile(note)
    model.fit(x, y, **task)
    sys.setprofile(None)
    last = trails[-1]
    return len(set(last)), sum(a != b for a, b in itertools.pairwise(last))


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="how often everything is measured (100)")
    rounds = parser.parse_args().rounds
    lm.set_threads(1)
    small, large = (16, 32, 32, 10), (784, 256, 256, 10)
    print(f"{'microseconds of CPU time':<44}{'lamella':>9}{'NumPy':>9}{'ratio':>7}")
    for sizes, rows in ((small, 200), (large, 50)):
        own, bare = best([fit(sizes, rows), by_hand(sizes, rows)], rounds)
        name = f"step of fit, {'-'.join(map(str, sizes))}, batch 1, Adam"
        print(f"{name:<44}{own:9.1f}{bare:9.1f}{own / bare:7.2f}")
    more, few = best([fit(small, 200, extra=16), fit(small, 200)], rounds)
    print(f"{'each further elementwise layer, both ways':<44}{(more - few) / 16:9.1f}")
    own, bare = best(predict(small, 200), rounds)
    print(f"{'predict of one row, three dense layers':<44}{own:9.1f}{bare:9.1f}{own - bare:+7.1f}")
    files, changes = changes_of_file()
    print(f"one prepared step of two dense layers: {files} files, {changes} changes of file")


if __name__ == "__main__":
    main()
