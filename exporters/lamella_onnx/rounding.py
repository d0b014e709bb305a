"""Proofs of lamella 0.1 that say how far onnxruntime rounded.

That version wrote native normalization operators even where they round more than the rule of `parity` allows, and
recorded in the proof how much, for each row of such an output. Files like that still verify: onnxruntime runs the
inputs of the proof, and the same inputs moved by a few units in the last place. What a changed graph does wrong it does
wrong each time; rounding differs from run to run, so that its mean is small.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lamella.backends import get_backend
from lamella.backends.counter import mix_keys, uniform
from lamella_onnx.parity import compare

__all__ = ["Rounding", "near"]

TIMES = 4.0  # what is recorded, a row may be off
MOVES, REACH = 16, 256  # how often inputs are moved, and by how many units in the last place at most

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What a proof records of an output: how far each row was off, and the exact results' mean over moved inputs."""

    rows: Array
    mean: Array

    def compare(self, runs: list[Array], e32: Array, e64: Array) -> tuple[float, float, str]:
        """Return error, allowed error and rule, as `parity.compare` does.

        The runs are onnxruntime's on the inputs that `near` gives. Beside the rule of `parity`, a row of the first run
        may differ by 4 times what is recorded, if the mean of the runs differs by no more than that.
        """
        got = runs[0]
        found = compare(got, e32, e64, by_row=True)
        if found[0] <= found[1] or any(run.shape != e32.shape for run in runs):
            return found
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.mean(runs, axis=0, dtype="float64")
        off, allowed = np.maximum(_apart(got, e64), _apart(e32, e64)), TIMES * self.rows
        explained = (off <= allowed) & (_apart(mean, self.mean) <= self.rows)
        rest = np.where(explained.reshape(-1, *(1,) * (got.ndim - 1)), e32, got)
        found = compare(rest, e32, e64, by_row=True)
        if found[0] > found[1]:
            return found
        worst = int(np.argmax(np.where(explained, off, 0.0)))
        return float(off[worst]), float(allowed[worst]), f"{TIMES:g} x onnxruntime's rounding"


def near(inputs: Arrays) -> list[Arrays]:
    """Return inputs, and then again with floats moved by a few units in the last place; always the same."""
    moved = [tuple(_moved(x, (place, k)) for place, x in enumerate(inputs)) for k in range(MOVES)]
    return [inputs, *moved]


def _moved(x: Array, keys: tuple[int, int]) -> Array:
    """Floats moved by up to 256 units in the last place, each by its own number of them, within their range."""
    if x.dtype.kind != "f" or not x.size:
        return x
    draw = uniform(get_backend("numpy").xp, mix_keys(None, keys), len(x), 0, x.shape).astype("float64")
    moved = (x + np.round((2.0 * draw - 1.0) * REACH) * np.spacing(x)).astype(x.dtype)
    moved = np.clip(moved, np.fmin.reduce(x, axis=None), np.fmax.reduce(x, axis=None))
    return np.where(np.isfinite(x), moved, x)


@np.errstate(over="ignore", invalid="ignore")
def _apart(a: Array, b: Array) -> Array:
    """The largest difference in each row; infinite where NaN or infinity stand in one only."""
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    gap = np.where(alike, 0.0, np.abs(a.astype("float64") - b))
    return np.max(np.where(np.isnan(gap), np.inf, gap).reshape(len(a), -1), axis=1, initial=0.0)  # type: ignore[no-any-return]
