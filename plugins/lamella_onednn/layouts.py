"""Arrays as the kernels want them: floats of 32 bits, with channels last in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lamella_onednn.descriptors import channels_last, described, is_channels_last, new_channels_last
from lamella_onednn.routines import Reorder, kept

__all__ = ["in_one_piece", "is_float32", "last", "plain", "settled", "strided"]


def is_float32(*arrays: Any) -> bool:
    """Whether there is anything to compute, and in float32."""
    return all(array.dtype == np.float32 and array.size for array in arrays)


def plain(x: Any) -> Any:
    """The array, or a copy where oneDNN cannot be told how it lies: with steps backward, or none."""
    return x if all(stride > 0 for stride in x.strides) else np.ascontiguousarray(x)


def last(x: Any) -> Any:
    """Images or series with channels last in memory, copied where they lie otherwise."""
    if is_channels_last(x):
        return x
    x = plain(x)
    y = new_channels_last(x.shape)
    kept(_to_channels_last, x.shape, x.strides)(x, y)
    return y


def settled(y: Any) -> Any:
    """What a kernel returns: images as they are, series in one piece, since the next layer gets them so."""
    if y.ndim == 4 or y.flags.c_contiguous:
        return y
    x = np.empty(y.shape, "float32")
    kept(_from_channels_last, y.shape)(y, x)
    return x


def strided(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of an array in one piece."""
    return tuple(4 * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def in_one_piece(x: Any) -> bool:
    """Whether the values of an array fill its memory, in the order of C or with channels last."""
    return bool(x.flags.c_contiguous or (x.ndim == 4 and is_channels_last(x)))


def _to_channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> Reorder:
    return Reorder(described(shape, strides), channels_last(shape), f"a copy of {shape} with channels last")


def _from_channels_last(shape: tuple[int, ...]) -> Reorder:
    return Reorder(channels_last(shape), described(shape), f"a copy of {shape}")
