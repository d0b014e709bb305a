"""Whether a process grows: many training steps, predictions, saves and loads, and its memory meanwhile.

    python benchmarks/soak.py [--steps 10000]

Fails where the process has grown by 200 kB or more since a fifth of the steps, the largest part of ten left out: at
some time the interpreter makes room for a megabyte of names, which is no leak. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import lamella as lm
from lamella_layers import LSTM, BatchNormalization, Conv2D, Dense, Dropout, Flatten

LIMIT = 200_000  # bytes


def resident() -> int:
    """Bytes of memory that the process holds."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def turns(folder: Path) -> Iterator[None]:
    """A step, a prediction and a save of each of three models, again and again; every tenth time one is loaded."""
    rng = np.random.default_rng(0)
    task = {"loss": "softmax_cross_entropy"}
    images, series, rows = rng.random((16, 3, 8, 8)), rng.random((16, 5, 4)), rng.random((16, 8))
    labels = np.arange(16) % 3
    given = [
        ([Conv2D(4, 3), BatchNormalization(), Flatten(), Dropout(0.3)], images, lm.optimizers.SGD(0.01, momentum=0.9)),
        ([LSTM(8, return_sequences=False)], series, lm.optimizers.Adam(0.001)),
        ([Dense(16, activation="relu")], rows, lm.optimizers.RMSprop(0.001)),
    ]
    models = [(lm.Sequential([*some, Dense(3)], input_shape=x.shape[1:]), x, optimizer) for some, x, optimizer in given]
    turn = 0
    while True:
        turn += 1
        count = 4 + turn % 12  # rows: batches of many sizes
        for model, x, optimizer in models:
            model.train_on_batch(x[:count], labels[:count], **task, optimizer=optimizer)
            model.predict(x[:count])
            model.save(folder / "model")
        if turn % 10 == 0:
            lm.load(folder / "model").evaluate(rows, labels, **task)
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run, print a line for each tenth, and return whether the process grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of each of three models (10000)")
    steps = parser.parse_args(arguments).steps
    lm.set_threads(1)
    found: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        running = turns(Path(folder))
        for k in range(10):
            for _ in range(steps // 10):
                next(running)
            gc.collect()
            found.append(resident())
            print(f"{(k + 1) * (steps // 10):>8} steps of each model: {found[-1] / 1e6:8.2f} MB", flush=True)
    parts = [after - before for before, after in itertools.pairwise(found[1:])]
    grown = sum(parts) - max(parts)
    print(f"grown: {sum(parts) / 1e6:+.2f} MB, without the largest part {grown / 1e6:+.2f} MB")
    return int(grown >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
