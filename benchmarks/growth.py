"""How the cost of a training step grows with batch, width and depth: time beside that of its products alone.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/growth.py [--backend onednn]

A dense network is all products of matrices: three for each layer, one forward and two backward, of which the first
layer needs two. The ideal is the time that these take at the rate of one large product on all threads, measured in the
same run. The share is the ideal over the time of a whole step, with loss, gradients and SGD. Least times of many.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lamella as lm
from lamella_layers import Dense

USUAL = {"batch": 256, "width": 512, "depth": 4}
GROWTH = {"batch": (1, 8, 32, 128, 512, 2048), "width": (64, 128, 256, 512, 1024, 2048), "depth": (1, 2, 4, 8, 16, 32)}


def least(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of one run: the least of all that fit into some time."""
    run()
    run()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def full_rate(seconds: float) -> float:
    """Multiplications per second of one large product of float32 matrices."""
    a, b = np.random.default_rng(0).standard_normal((2, 2048, 2048)).astype("float32")
    return float(2048**3 / least(lambda: a @ b, seconds))


def step(batch: int, width: int, depth: int, backend: str, seconds: float) -> tuple[float, int]:
    """Seconds of a training step, and the multiplications in its products."""
    hidden = [Dense(width, activation="relu") for _ in range(depth)]
    model = lm.Sequential([*hidden, Dense(10)], input_shape=width, backend=backend)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batch, width)).astype("float32"), rng.integers(0, 10, batch)
    loss, optimizer = lm.losses.SoftmaxCrossEntropy(), lm.optimizers.SGD(1e-3)
    sizes = [width] * (depth + 1) + [10]
    products = 3 * sum(a * b for a, b in itertools.pairwise(sizes)) - width * width
    return least(lambda: model.train_on_batch(x, y, loss=loss, optimizer=optimizer), seconds), batch * products


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy", help="of lamella (numpy)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement (2)")
    given = parser.parse_args()
    rate = full_rate(given.seconds)
    print(f"one large product: {2e-9 * rate:.0f} GFLOP/s")
    print(f"{'batch':>6}{'width':>7}{'depth':>7}{'ms':>10}{'ideal':>10}{'share':>8}")
    for grown, values in GROWTH.items():
        for value in values:
            sizes = USUAL | {grown: value}
            seconds, work = step(**sizes, backend=given.backend, seconds=given.seconds)
            ideal = work / rate
            print("".join(f"{size:>{w}}" for size, w in zip(sizes.values(), (6, 7, 7), strict=True)), end="")
            print(f"{1e3 * seconds:10.3f}{1e3 * ideal:10.3f}{ideal / seconds:8.0%}")


if __name__ == "__main__":
    main()
