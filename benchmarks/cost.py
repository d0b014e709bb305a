"""What a step costs beside its arithmetic: CPU time of small networks at batch 1, next to NumPy written by hand.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/cost.py

Times are the best of many, in microseconds of CPU time of all threads, each after a warm-up. NumPy by hand computes the
same step, forward, loss, backward and Adam, into arrays that are there already, and checks nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

import lamella as lm
from lamella_layers import Activation, Dense

TASK: dict[str, Any] = {"loss": "softmax_cross_entropy", "progress": False}


def best(run: Callable[[], int], rounds: int) -> float:
    """Microseconds of CPU time for one of what ``run`` counts, the least of all rounds."""
    run()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        count = run()
        found.append((time.process_time() - began) / count)
    return 1e6 * min(found)


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
    pairs = list(zip(sizes, sizes[1:], strict=False))
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
    """How many files of lamella run in one prepared step of two dense layers, and how often one calls another."""
    model, (x, y) = lm.Sequential([Dense(8), Dense(10)], input_shape=4), data(3, 4)
    trail: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if f"{os.sep}lamella" in file:
            if event == "call":
                trail.append(file)
            elif event == "return" and frame.f_back is not None:
                trail.append(frame.f_back.f_code.co_filename)

    class Between(lm.Callback):
        """Listens from the end of the second step to that of the third."""

        def on_epoch_begin(self, model: Any, epoch: int) -> None:
            if epoch == 1:
                sys.setprofile(note)

        def on_epoch_end(self, model: Any, epoch: int, logs: Any) -> None:
            sys.setprofile(None)

    model.fit(x, y, optimizer="sgd", epochs=2, batch_size=3, callbacks=[Between()], **TASK)
    own = [file for file in trail if f"{os.sep}lamella" in file]
    step = own[next(k for k, file in enumerate(own) if file.endswith("step.py")) :]
    return len(set(step)), sum(a != b for a, b in zip(step, step[1:], strict=False))


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often everything is measured (15)")
    rounds = parser.parse_args().rounds
    lm.set_threads(1)
    small, large = (16, 32, 32, 10), (784, 256, 256, 10)
    print(f"{'microseconds of CPU time':<44}{'lamella':>9}{'NumPy':>9}{'ratio':>7}")
    for sizes, rows in ((small, 500), (large, 100)):
        own, bare = best(fit(sizes, rows), rounds), best(by_hand(sizes, rows), rounds)
        print(
            f"{'step of fit, ' + '-'.join(map(str, sizes)) + ', batch 1, Adam':<44}{own:9.1f}{bare:9.1f}{own / bare:7.2f}"
        )
    more = (best(fit(small, 500, extra=16), rounds) - best(fit(small, 500), rounds)) / 16
    print(f"{'each further elementwise layer, both ways':<44}{more:9.1f}")
    run, bare_run = predict(small, 500)
    own, bare = best(run, rounds), best(bare_run, rounds)
    print(f"{'predict of one row, three dense layers':<44}{own:9.1f}{bare:9.1f}{own - bare:+7.1f}")
    files, changes = changes_of_file()
    print(f"one prepared step of two dense layers: {files} files, {changes} changes of file")


if __name__ == "__main__":
    main()
