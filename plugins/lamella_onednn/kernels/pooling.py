"""Pooling. oneDNN notes where the greatest values were; the notes are kept as long as the array of these values."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

from lamella_layers.pooling import (
    average_pool,
    average_pool_dx,
    global_average_pool,
    global_average_pool_dx,
    max_pool,
    max_pool_dx,
)
from lamella_layers.windows import Windows
from lamella_onednn.descriptors import channels_last, dims, is_channels_last, new_channels_last
from lamella_onednn.kernels.sums import group_sums
from lamella_onednn.layouts import is_float32, last, settled
from lamella_onednn.routines import Choice, Routine, choose, kept

__all__: list[str] = []

LEAST = 1 << 12  # values below which NumPy is faster
LEAST_FOR_ALL = 1 << 17  # where a window is the image
_TRAINING = 64
_MAXIMUM, _AVERAGE = 0x1FF, 0x3FF  # that of values on the image only
_SOURCE, _DESTINATION, _NOTES = 1, 17, 64
_DIFF = 128
_LAYOUT_OF_NOTES = 135

Shape = tuple[int, ...]


def _choice(images: Shape, windows: Windows, function: int) -> tuple[Choice, tuple[Any, ...], str]:
    what = f"pooling of {images} over {windows}"
    geometry = (
        dims(windows.strides),
        dims(windows.size),
        dims((0,) * len(windows.size)),
        dims([before for before, _ in windows.pads]),
        dims([after for _, after in windows.pads]),
    )
    x, y = channels_last(images), channels_last((*images[:2], *windows.grid))
    return choose("pooling_forward", _TRAINING, function, x, y, *geometry, None, what=what), geometry, what


class _Forward:
    """A forward pass, and how many bytes of notes it makes."""

    def __init__(self, images: Shape, windows: Windows, function: int) -> None:
        choice, _, _ = _choice(images, windows, function)
        x, y = channels_last(images), channels_last((*images[:2], *windows.grid))
        notes = [(_NOTES, choice.layout(_LAYOUT_OF_NOTES))] if function == _MAXIMUM else []
        self.bytes = notes[0][1].size if notes else 0
        self.run = Routine(choice, (_SOURCE, x), (_DESTINATION, y), *notes)


def _backward(images: Shape, windows: Windows, function: int) -> Routine:
    forward, geometry, what = _choice(images, windows, function)
    x, y = channels_last(images), channels_last((*images[:2], *windows.grid))
    what = f"the gradient of {what}"
    choice = choose("pooling_backward", function, x, y, *geometry, forward, None, what=what)
    notes = [(_NOTES, forward.layout(_LAYOUT_OF_NOTES))] if function == _MAXIMUM else []
    return Routine(choice, (_DIFF + _SOURCE, x), (_DIFF + _DESTINATION, y), *notes)


class _Notes:
    """Where the greatest values were, by the array that has them, for as long as it lives."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, Any]] = {}

    def keep(self, y: Any, notes: Any) -> None:
        """Keep the notes of an array."""
        key = id(y)
        self._held[key] = weakref.ref(y, lambda _: self._held.pop(key, None)), notes

    def of(self, y: Any) -> Any:
        """The notes of an array, or None."""
        reference, notes = self._held.get(id(y), (None, None))
        return notes if reference is not None and reference() is y else None


_notes = _Notes()


def _greatest(x: Any, windows: Windows) -> tuple[Any, Any]:
    """The greatest values and the notes; None twice where NumPy is to find them: it knows what NaN and infinity are."""
    x = last(x)
    values = x.transpose(0, *range(2, x.ndim), 1).reshape(-1)
    forward = kept(_Forward, x.shape, windows, _MAXIMUM) if math.isfinite(values.dot(values)) else None
    if forward is None:
        return None, None
    y, notes = new_channels_last((*x.shape[:2], *windows.grid)), np.empty(forward.bytes, "uint8")
    forward.run(x, y, notes)
    return y, notes


@max_pool.kernel("onednn")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    if x.size < LEAST or not is_float32(x):
        return NotImplemented
    y, notes = _greatest(x, windows)
    if y is None:
        return NotImplemented
    y = settled(y)
    _notes.keep(y, (windows, notes))
    return y


@max_pool_dx.kernel("onednn")
def _(xp: Any, x: Any, y: Any, dy: Any, windows: Windows) -> Any:
    if x.size < LEAST or not is_float32(x, dy):
        return NotImplemented
    known, notes = _notes.of(y) or (None, None)
    if known != windows:
        _, notes = _greatest(x, windows)
    backward = None if notes is None else kept(_backward, x.shape, windows, _MAXIMUM)
    if backward is None:
        return NotImplemented
    dx = new_channels_last(x.shape)
    backward(dx, last(dy), notes)
    return settled(dx)


@average_pool.kernel("onednn")
def _(xp: Any, x: Any, windows: Windows) -> Any:
    forward = kept(_Forward, x.shape, windows, _AVERAGE) if x.size >= LEAST and is_float32(x) else None
    if forward is None:
        return NotImplemented
    y = new_channels_last((*x.shape[:2], *windows.grid))
    forward.run(last(x), y)
    return settled(y)


@average_pool_dx.kernel("onednn")
def _(xp: Any, dy: Any, windows: Windows) -> Any:
    shape = (*dy.shape[:2], *windows.image)
    backward = kept(_backward, shape, windows, _AVERAGE) if math.prod(shape) >= LEAST and is_float32(dy) else None
    if backward is None:
        return NotImplemented
    dx = new_channels_last(shape)
    backward(dx, last(dy))
    return settled(dx)


@global_average_pool.kernel("onednn")
def _(xp: Any, x: Any) -> Any:
    n, channels, *size = x.shape
    if x.size < LEAST_FOR_ALL or not is_float32(x) or not is_channels_last(x):
        return NotImplemented
    # (N, C, H, W) -> (N, H*W, C) -> (N, C)
    pixels = x.transpose(0, *range(2, x.ndim), 1).reshape(n, -1, channels)
    totals = group_sums(pixels)
    if totals is None:
        return NotImplemented
    totals /= np.float32(pixels.shape[1])
    return totals.reshape(n, channels, *(1,) * len(size))


@global_average_pool_dx.kernel("onednn")
def _(xp: Any, x: Any, dy: Any) -> Any:
    if x.size < LEAST or x.ndim != 4 or not is_float32(x, dy):
        return NotImplemented
    dx = new_channels_last(x.shape)  # with channels last, as the layers before want it
    dx[...] = dy / np.float32(math.prod(x.shape[2:]))
    return dx
