"""Trial inputs: a model tells what it takes, but not which sizes and values work, so some are tried."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lamella_onnx.seal import PROOF
from lamella_serve.datatypes import Array
from lamella_serve.refusals import Refusal
from lamella_serve.session import Session, Stop
from lamella_serve.signature import Tensor

__all__ = ["Limits", "Trial", "first_that_runs", "limits_of", "others_that_run"]

Limits = Mapping[str, tuple[Array, Array]]  # low <= value < high at each place of a row, by the names of inputs

_SIZES = (16, 32, 48, 64, 224, 512, 1024, 16000, 8, 1)  # of axes whose size is open: images, spectra, sequences, sound
_LARGEST = 2**22  # elements of a trial input
_PATIENCE = 10.0  # seconds to look for inputs that run


@dataclasses.dataclass(frozen=True)
class Trial:
    """One way to fill a model's inputs.

    Attributes:
        inputs: the inputs.
        limits: of their values, where the file says them.
        size: of axes whose size is open, but for the rows.
        integers: what integers without limits are below; None: each is about `size`, as lengths are.
    """

    inputs: tuple[Tensor, ...]
    limits: Limits
    size: int
    integers: int | None

    def shape(self, tensor: Tensor, rows: int) -> tuple[int, ...]:
        """The shape of an input for some rows."""
        axes: Sequence[int | str] = ("", "") if tensor.axes is None else tensor.axes
        sizes = [n if isinstance(n, int) else self.size for n in axes]
        return (rows, *sizes[1:]) if tensor.any_rows else tuple(sizes)

    def fits(self) -> bool:
        """Whether it is small enough to try."""
        return all(math.prod(self.shape(tensor, 1)) <= _LARGEST for tensor in self.inputs)

    def draw(self, scales: Sequence[float], seed: int = 0) -> dict[str, Array]:
        """Draw inputs with one row for each scale, which multiplies floats."""
        rng = np.random.default_rng(seed)
        return {tensor.name: self._drawn(tensor, scales, rng) for tensor in self.inputs}

    def _drawn(self, tensor: Tensor, scales: Sequence[float], rng: np.random.Generator) -> Array:
        shape = self.shape(tensor, len(scales))
        low: Any
        high: Any
        low, high = self.limits.get(tensor.name, (None, None))
        if tensor.datatype.kind == "s":
            return rng.choice(np.array(["a", "bc", "d e"], object), shape)
        if tensor.datatype.kind == "b":
            return np.asarray(rng.random(shape) < 0.5 * np.minimum(self._by_row(tensor, scales), 1.0))
        if tensor.datatype.kind == "i":
            if low is None or high is None:
                low, high = (0, self.integers) if self.integers is not None else (self.size, self.size + 1)
                if self.integers is None and tensor.any_rows:  # rows have their own lengths, none longer than they are
                    low = (self.size + 1) // 2
            least, most = np.iinfo(tensor.datatype.numpy).min, np.iinfo(tensor.datatype.numpy).max
            spread = (np.asarray(high) - low) * rng.random(shape)
            if len(shape) > 1:  # a length for each row stays as long as it is
                spread = spread * np.minimum(self._by_row(tensor, scales), 1.0)
            drawn = low + np.floor(spread)
            return np.asarray(np.clip(drawn, least, most).astype(tensor.datatype.numpy))
        if low is None or high is None:
            values = rng.standard_normal(shape) * self._by_row(tensor, scales)
        else:
            values = low + (high - low) * rng.random(shape) * np.minimum(self._by_row(tensor, scales), 1.0)
        return np.asarray(values, dtype=tensor.datatype.numpy)

    def _by_row(self, tensor: Tensor, scales: Sequence[float]) -> Any:
        """The scales, as they multiply the rows of an input; 1 where it has no rows."""
        axes = len(self.shape(tensor, 1))
        return np.reshape(scales, (-1,) + (1,) * (axes - 1)) if tensor.any_rows else 1.0


def first_that_runs(session: Session, limits: Limits) -> tuple[Trial | None, str]:
    """Return a trial that the model answers, or None and why the last one failed.

    One whose answers vary with its values comes before one whose answers do not: so little sound makes no spectrum.
    """
    dull, said, deadline = None, "its inputs are too large to try", time.monotonic() + _PATIENCE
    for trial in _trials(session.signature.inputs, limits):
        if time.monotonic() > deadline:
            break
        stop = Stop()
        watch = threading.Timer(max(deadline - time.monotonic(), 0.1), setattr, (stop, "terminate", True))
        watch.start()  # a loop may run as often as an input says
        try:
            one, other = (session.run(trial.draw([1.0], seed), stop) for seed in (0, 1))
        except Refusal as error:
            said = error.words
            continue
        finally:
            watch.cancel()
        if _vary(session, one, other):
            return trial, ""
        dull = dull or trial
    return dull, said


def _vary(session: Session, one: Sequence[Array], other: Sequence[Array]) -> bool:
    """Whether two answers say something: they differ, each output of floats does, and these are finite."""
    equal = list(map(np.array_equal, one, other))
    floats = [at for at, tensor in enumerate(session.signature.outputs) if tensor.datatype.kind == "f"]
    finite = all(np.isfinite(answer[at].astype("float64")).all() for answer in (one, other) for at in floats)
    return finite and not all(equal) and not any(equal[at] for at in floats)


def others_that_run(session: Session, trial: Trial) -> Iterator[Trial]:
    """Other ways to fill the integers of a trial that the model answers: lengths and masks mean what counts do not."""
    for integers in (256, 2, None):
        other = dataclasses.replace(trial, integers=integers)
        unlimited = any(one.datatype.kind == "i" and one.name not in trial.limits for one in trial.inputs)
        if unlimited and other != trial:
            try:
                session.run(other.draw([1.0]))
            except Refusal:
                continue
            yield other


def _trials(inputs: tuple[Tensor, ...], limits: Limits) -> Iterator[Trial]:
    open_sizes = any(isinstance(n, str) for one in inputs for n in (("", "") if one.axes is None else one.axes)[1:])
    open_sizes |= not all(one.any_rows for one in inputs)
    unlimited = [one for one in inputs if one.datatype.kind == "i" and one.name not in limits]
    fillings: tuple[int | None, ...] = (256, 2, None) if unlimited else (2,)
    if any(one.axes is not None and len(one.axes) < 2 for one in unlimited):  # a length, say, for each row or for all
        fillings = (None, 256, 2)
    for size in _SIZES if open_sizes or unlimited else _SIZES[:1]:
        for integers in fillings:
            trial = Trial(inputs, limits, size, integers)
            if trial.fits():
                yield trial


def limits_of(metadata: Mapping[str, str], inputs: Sequence[Tensor]) -> dict[str, tuple[Array, Array]]:
    """Return the limits of inputs that the proof of an exported file holds; those of other files are unknown."""
    try:
        proof: dict[str, Any] = json.loads(metadata[PROOF])
        rows = {row["name"]: row for row in proof["inputs"] if row["low"] is not None}
        return {one.name: _limits(rows[one.name], one) for one in inputs if one.name in rows}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # no proof, a damaged one, or elsewhere
        return {}


def _limits(row: Mapping[str, Any], tensor: Tensor) -> tuple[Array, Array]:
    low, high = np.array(row["low"], "float64"), np.array(row["high"], "float64")
    axes = (tensor.axes or ())[1:]
    sizes = low.shape or (1,) * len(axes)
    fits = len(sizes) == len(axes) and all(n in (1, axis) for n, axis in zip(sizes, axes, strict=True))
    if low.shape != high.shape or not fits or not (low <= high).all():
        raise ValueError("limits of another input")
    return low, high
