"""Channels: on which axis they lie, and arrays with one value for each of them.

N batch, C channels, T time, H W image, L length: (N, C), (N, T, C), (N, C, H, W), or with ``axis=1`` (N, C, L), which
is an image of width 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import lamella as lm
from lamella.errors import shown

__all__ = [
    "as_image",
    "axis_argument",
    "beside",
    "channel_affine",
    "channel_axis",
    "channel_products",
    "channels_last",
    "from_image",
    "known_channels",
    "other_axes",
    "values_per_channel",
]


def axis_argument(value: int | None) -> int | None:
    """Return 1, -1, or None for what the number of axes says."""
    if value is not None and (type(value) is not int or value not in (1, -1)):
        raise lm.ArgumentError(f"axis: expected 1, -1 or None, got {shown(value)}")
    return value


def known_channels(declare: lm.Declare, x: lm.ArraySpec, axis: int | None) -> int:
    """Return how many channels there are, or say what is wrong with the input.

    Whoever gives ``axis`` says where the channels are; else a layer before may have them elsewhere.
    """
    axes = len(x.shape)
    place = 1 if axis == 1 else channel_axis(axes) if axis is None else axes - 1
    channels = x.shape[place] if axes in (2, 3, 4) and not (axes == 4 and place == 3) else None
    if not isinstance(channels, int) or not x.is_float:
        raise lm.GraphError(
            "expected floats (N, channels), (N, time, channels), with axis=1 (N, channels, length), or (N, channels, "
            f"height, width) with a known number of channels, got {x}. Likely fix: Reshape(...) to one of these, or "
            "x.astype('float32') for integers"
        )
    declare.features(place if axis is None else None, fix="the argument axis=1")
    return channels


def as_image(xp: Any, x: Any, axis: int | None) -> Any:
    """(N, C, L) -> (N, C, L, 1), where channels are on axis 1; everything else as it is."""
    return xp.expand_dims(x, axis=3) if axis == 1 and x.ndim == 3 else x


def from_image(xp: Any, y: Any, shape: tuple[Any, ...]) -> Any:
    """The inverse of `as_image`."""
    return xp.squeeze(y, axis=3) if y.ndim > len(shape) else y


def channel_axis(axes: int) -> int:
    """The axis of the channels in an array of so many axes."""
    return 1 if axes == 4 else axes - 1


def values_per_channel(x: Any) -> Any:
    """How many values each channel has: samples times pixels or time steps."""
    return math.prod(size for axis, size in enumerate(x.shape) if axis != channel_axis(x.ndim))


def other_axes(x: Any) -> tuple[int, ...]:
    """All axes but that of the channels."""
    return tuple(axis for axis in range(x.ndim) if axis != channel_axis(x.ndim))


def beside(xp: Any, vector: Any, x: Any) -> Any:
    """A value for each channel, (C,), in the shape that goes with ``x``: (C,) or (C, 1, 1)."""
    return xp.reshape(vector, (-1, 1, 1)) if x.ndim == 4 else vector


@lm.primitive
def channels_last(xp: Any, x: Any) -> Any:
    """The same values. On NumPy images lie with channels last in memory, copied once for all kernels."""
    return x


@channels_last.kernel("numpy")
def _(xp: Any, x: Any) -> Any:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if x.ndim == 4 else x


@lm.primitive
def channel_affine(xp: Any, x: Any, scale: Any, offset: Any = None, *, center: Any = None) -> Any:
    """``(x - center) scale + offset``, with one center, scale and offset for each channel."""
    y = x if center is None else x - beside(xp, center, x)
    y = y * beside(xp, scale, x)
    return y if offset is None else y + beside(xp, offset, x)


@lm.primitive
def channel_products(xp: Any, dy: Any, x: Any, center: Any = None) -> tuple[Any, Any]:
    """For each channel the sums of ``dy`` and of ``dy (x - center)``, in float64."""
    terms = dy, dy * (x if center is None else x - beside(xp, center, x))
    total, product = (xp.astype(xp.sum(term, axis=other_axes(x)), xp.float64) for term in terms)
    return total, product
