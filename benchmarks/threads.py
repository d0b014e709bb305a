"""Models of their own in threads: how long four take at once, beside one after the other.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/threads.py [--models 4] [--rounds 7]

Each model trains the same epochs. Both ways take turns; times are the least of all rounds, wall clock and CPU of all
threads. Beside them stands a loop of NumPy alone, of the size of the smallest network, for what the interpreter costs.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import lamella as lm
from lamella_layers import Conv2D, Dense, Flatten

SHAPES = {"dense 16-16-3": (16,), "dense 16-256-256-3": (16,), "dense 784-512-10": (784,), "convolution": (3, 16, 16)}
LAYERS: dict[str, Callable[[], list[Any]]] = {
    "dense 16-16-3": lambda: [Dense(16, activation="relu"), Dense(3)],
    "dense 16-256-256-3": lambda: [Dense(256, activation="relu"), Dense(256, activation="relu"), Dense(3)],
    "dense 784-512-10": lambda: [Dense(512, activation="relu"), Dense(10)],
    "convolution": lambda: [Conv2D(16, 3, activation="relu"), Flatten(), Dense(3)],
}
EPOCHS = {"dense 16-16-3": 60, "dense 16-256-256-3": 20, "dense 784-512-10": 5, "convolution": 10}


def training(name: str) -> Callable[[], Any]:
    """A model, and what trains it for some epochs of eight steps."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((256, *SHAPES[name])).astype("float32"), rng.integers(0, 3, 256)
    model = lm.Sequential(LAYERS[name](), input_shape=SHAPES[name])
    task: dict[str, Any] = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.SGD(1e-3), "progress": False}
    return lambda: model.fit(x, y, **task, epochs=EPOCHS[name])


def numpy_alone() -> Callable[[], Any]:
    """Four functions of NumPy on small arrays, many times."""
    a, w, b = np.ones((32, 16), "float32"), np.ones((16, 16), "float32"), np.ones((32, 16), "float32")

    def run() -> None:
        with threadpool_limits(1):
            for _ in range(5000):
                np.matmul(a, w, out=b)
                np.maximum(b, 0.0, out=b)
                np.add(b, a, out=b)
                np.multiply(b, 0.1, out=b)

    return run


def in_turn(runs: Sequence[Callable[[], Any]]) -> None:
    """One after the other."""
    for run in runs:
        run()


def at_once(runs: Sequence[Callable[[], Any]]) -> None:
    """Each on a thread."""
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def timed(way: Callable[[Sequence[Callable[[], Any]]], None], runs: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """Milliseconds, of the wall clock and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    way(runs)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4, help="how many (4)")
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is measured (7)")
    given = parser.parse_args()
    print(f"{'ms: wall, CPU':<22}{'threads':>8}{'in turn':>18}{'at once':>18}{'ratio':>8}")
    for threads in (None, 1):
        lm.set_threads(threads)
        for name in ("NumPy alone", *LAYERS):
            runs = [numpy_alone() if name not in LAYERS else training(name) for _ in range(given.models)]
            in_turn(runs)
            turns = [(timed(in_turn, runs), timed(at_once, runs)) for _ in range(given.rounds)]
            (own, own_cpu), (all_, all_cpu) = (map(min, zip(*one, strict=True)) for one in zip(*turns, strict=True))
            print(
                f"{name:<22}{threads or 'all':>8}{own:10.0f}{own_cpu:8.0f}{all_:10.0f}{all_cpu:8.0f}{all_ / own:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
