"""Products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.primitives import affine, sum_of_products
from lamella_onednn.descriptors import described
from lamella_onednn.layouts import is_float32, plain
from lamella_onednn.routines import Routine, choose, kept

__all__: list[str] = []

LEAST_WORK = 1 << 20  # multiplications below which NumPy is faster
_SOURCE, _DESTINATION, _WEIGHTS, _BIAS = 1, 17, 33, 41

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


def _product(a: Layout, b: Layout, c: Layout, biased: bool) -> Routine:
    first, second, product = described(*a), described(*b), described(*c)
    bias = described((1, b[0][1])) if biased else None
    choice = choose("matmul", first, second, bias, product, None, what=f"a product of {a[0]} and {b[0]}")
    biases = [] if bias is None else [(_BIAS, bias)]
    return Routine(choice, (_SOURCE, first), (_WEIGHTS, second), (_DESTINATION, product), *biases)


def _layout(x: Any) -> Layout:
    return x.shape, x.strides


@affine.kernel("onednn")
def _(xp: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    rows = x.size // x.shape[-1] if x.size else 0
    if x.ndim < 2 or rows < 2 or x.size * kernel.shape[1] < LEAST_WORK or not is_float32(x, kernel):
        return NotImplemented
    if x.ndim > 2 and not x.flags.c_contiguous:
        return NotImplemented
    a, kernel = plain(x.reshape(rows, x.shape[-1])), plain(kernel)
    y = np.empty((rows, kernel.shape[1]), "float32")
    routine = kept(_product, _layout(a), _layout(kernel), _layout(y), bias is not None)
    if routine is None:
        return NotImplemented
    routine(a, kernel, y, *(() if bias is None else (np.ascontiguousarray(bias),)))
    return y.reshape(*x.shape[:-1], kernel.shape[1])


@sum_of_products.kernel("onednn")
def _(xp: Any, x: Any, dy: Any, *, out: Any = None) -> Any:
    if len(x) < 2 or x.size * dy.shape[1] < LEAST_WORK or not is_float32(x, dy):
        return NotImplemented
    a, b = plain(x.T), plain(dy)
    y = np.empty((len(a), b.shape[1]), "float32") if out is None else out
    routine = kept(_product, _layout(a), _layout(b), _layout(y), False)
    if routine is None:
        return NotImplemented
    routine(a, b, y)
    return y
