"""Convolution, its transpose and its gradients. Kernels go into oneDNN's own layout, and come back, in every call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lamella_layers.convolution import conv, conv_dw, conv_transpose, sum_pixels
from lamella_layers.windows import Windows
from lamella_onednn.descriptors import Descriptor, any_layout, channels_last, described, dims, new_channels_last
from lamella_onednn.kernels import sums
from lamella_onednn.layouts import is_float32, last, plain, settled
from lamella_onednn.routines import Chain, Choice, Reorder, Routine, choose, kept, scratch

__all__: list[str] = []

LEAST_WORK = 1 << 14  # multiplications below which NumPy is faster
LEAST = 1 << 18  # values below which it adds up faster
_TRAINING = 64
_DIRECT = 1
_SOURCE, _DESTINATION, _WEIGHTS, _BIAS = 1, 17, 33, 41
_DIFF = 128  # in numbers of arrays: the gradient of
_LAYOUT_OF_WEIGHTS, _LAYOUT_OF_THEIR_GRADIENT = 131, 132
_ADD = 0x1FFF0

Shape = tuple[int, ...]


class _Prepared:
    """A routine, and what brings the weights between lamella's layout and its own."""

    def __init__(self, routine: Routine, own: Descriptor, plain: Descriptor, *, gives: bool) -> None:
        self.routine, self.size = routine, own.size
        ends = (own, plain) if gives else (plain, own)
        self.reorder = None if own.equals(plain) else Reorder(*ends, f"the weights of {routine.what}")

    def taken(self, weights: Any) -> Any:
        """The weights as the routine takes them."""
        if self.reorder is None:
            return weights
        own = scratch("weights", self.size)
        self.reorder(weights, own)
        return own


def _choice(
    images: Shape, weights: Shape, windows: Windows, *, biased: bool = False
) -> tuple[Choice, tuple[Any, ...], str]:
    """The forward pass, from which backward passes are chosen; the geometry; and what both are called in errors."""
    n, groups = images[0], weights[0] if len(weights) > len(images) else 1
    filters = weights[1] * groups if len(weights) > len(images) else weights[0]
    geometry = (
        dims(windows.strides),
        dims([dilation - 1 for dilation in windows.dilations]),
        dims([before for before, _ in windows.pads]),
        dims([after for _, after in windows.pads]),
    )
    what = f"a convolution of {images} by kernels {weights} over {windows}"
    y = channels_last((n, filters, *windows.grid))
    bias = described((filters,)) if biased else None
    given = (channels_last(images), any_layout(weights), bias, y)
    return choose("convolution_forward", _TRAINING, _DIRECT, *given, *geometry, None, what=what), geometry, what


def _grouped(shape: Shape, strides: Shape, groups: int) -> tuple[Shape, Shape]:
    """(F, C/G, kh, kw) -> (G, F/G, C/G, kh, kw), as oneDNN has it, where there are groups."""
    if groups == 1:
        return shape, strides
    each = shape[0] // groups
    return (groups, each, *shape[1:]), (strides[0] * each, *strides)


def _forward(images: Shape, shape: Shape, strides: Shape, windows: Windows, groups: int, biased: bool) -> _Prepared:
    weights, steps = _grouped(shape, strides, groups)
    choice, _, _ = _choice(images, weights, windows, biased=biased)
    own = choice.layout(_LAYOUT_OF_WEIGHTS)
    arrays = [(_SOURCE, channels_last(images)), (_WEIGHTS, own)]
    arrays.append((_DESTINATION, channels_last((images[0], shape[0], *windows.grid))))
    arrays += [(_BIAS, described(shape[:1]))] if biased else []
    return _Prepared(Routine(choice, *arrays), own, described(weights, steps), gives=False)


def _backward(images: Shape, shape: Shape, strides: Shape, windows: Windows, groups: int) -> _Prepared:
    weights, steps = _grouped(shape, strides, groups)
    forward, geometry, what = _choice(images, weights, windows)
    x, y = channels_last(images), channels_last((images[0], shape[0], *windows.grid))
    given = (x, any_layout(weights), y, *geometry)
    choice = choose("convolution_backward_data", _DIRECT, *given, forward, None, what=f"the transpose of {what}")
    own = choice.layout(_LAYOUT_OF_WEIGHTS)
    routine = Routine(choice, (_DIFF + _SOURCE, x), (_WEIGHTS, own), (_DIFF + _DESTINATION, y))
    return _Prepared(routine, own, described(weights, steps), gives=False)


def _gradient(images: Shape, shape: Shape, strides: Shape, windows: Windows, groups: int) -> _Prepared:
    weights, steps = _grouped(shape, strides, groups)
    forward, geometry, what = _choice(images, weights, windows)
    x, y = channels_last(images), channels_last((images[0], shape[0], *windows.grid))
    given = (x, any_layout(weights), None, y, *geometry)
    what = f"the gradient of kernels of {what}"
    choice = choose("convolution_backward_weights", _DIRECT, *given, forward, None, what=what)
    own = choice.layout(_LAYOUT_OF_THEIR_GRADIENT)
    routine = Routine(choice, (_SOURCE, x), (_DIFF + _WEIGHTS, own), (_DIFF + _DESTINATION, y))
    return _Prepared(routine, own, described(weights, steps), gives=True)


def _addition(shape: Shape) -> Chain:
    beside = described((1, shape[1], *(1,) * (len(shape) - 2)))
    return Chain(channels_last(shape), [(_ADD, beside)], f"the bias of {shape}")


def _pays(n: int, windows: Windows, filters: int, channels: int) -> bool:
    """Whether there is enough to do; ``channels`` are those of one group."""
    return n * math.prod(windows.grid) * math.prod(windows.size) * filters * channels >= LEAST_WORK


@conv.kernel("onednn")
def _(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if not is_float32(x, kernel) or not _pays(len(x), windows, *kernel.shape[:2]):
        return NotImplemented
    kernel = plain(kernel)
    prepared = kept(_forward, x.shape, kernel.shape, kernel.strides, windows, groups, bias is not None)
    if prepared is None:
        return NotImplemented
    y = new_channels_last((len(x), len(kernel), *windows.grid))
    biases = () if bias is None else (np.ascontiguousarray(bias),)
    prepared.routine(last(x), prepared.taken(kernel), y, *biases)
    return settled(y)


@conv_transpose.kernel("onednn")
def _(xp: Any, y: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    if not is_float32(y, kernel) or not _pays(len(y), windows, *kernel.shape[:2]):
        return NotImplemented
    kernel, shape = plain(kernel), (len(y), kernel.shape[1] * groups, *windows.image)
    prepared = kept(_backward, shape, kernel.shape, kernel.strides, windows, groups)
    if prepared is None:
        return NotImplemented
    x = new_channels_last(shape)
    prepared.routine(x, prepared.taken(kernel), last(y))
    if bias is not None:
        kept(_addition, shape)(x, np.ascontiguousarray(bias), x)
    return settled(x)


@conv_dw.kernel("onednn")
def _(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    filters, channels = dy.shape[1], x.shape[1] // groups
    if not is_float32(x, dy) or not _pays(len(x), windows, filters, channels):
        return NotImplemented
    axes = len(windows.size)
    dw = np.empty((*windows.size, channels, filters), "float32").transpose(axes + 1, axes, *range(axes))
    prepared = kept(_gradient, x.shape, dw.shape, dw.strides, windows, groups)
    if prepared is None:
        return NotImplemented
    if prepared.reorder is None:
        prepared.routine(last(x), dw, last(dy))
    else:
        own = scratch("weights", prepared.size)
        prepared.routine(last(x), own, last(dy))
        prepared.reorder(own, dw)
    return dw


@sum_pixels.kernel("onednn")
def _(xp: Any, dy: Any) -> Any:
    if dy.size < LEAST or not is_float32(dy):
        return NotImplemented
    rows = last(dy).transpose(0, *range(2, dy.ndim), 1).reshape(-1, dy.shape[1])
    return sums.column_sums(rows).astype("float32")
