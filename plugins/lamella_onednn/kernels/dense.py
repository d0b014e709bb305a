"""Products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.primitives import affine, affine_gradients
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


def _pays(x: Any, kernel: Any) -> bool:
    """Whether there is enough to do, and the rows of x can be counted without a copy."""
    rows = x.size // x.shape[-1] if x.size else 0
    enough = rows > 1 and rows * kernel.size >= LEAST_WORK
    return enough and (x.ndim == 2 or x.flags.c_contiguous) and is_float32(x, kernel)


def _multiplied(a: Any, b: Any, bias: Any = None, *, out: Any = None) -> Any:
    """``a b + bias`` of matrices, on NumPy where oneDNN has no such product."""
    a, b = plain(a), plain(b)
    y = np.empty((len(a), b.shape[1]), "float32") if out is None else out
    routine = kept(_product, _layout(a), _layout(b), _layout(y), bias is not None)
    if routine is None:
        np.matmul(a, b, out=y)
        return y if bias is None else np.add(y, bias, out=y)
    routine(a, b, y, *(() if bias is None else (np.ascontiguousarray(bias),)))
    return y


def _rows(x: Any) -> Any:
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


@affine.kernel("onednn")
def _(xp: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    if x.ndim < 2 or not _pays(x, kernel):
        return NotImplemented
    return _multiplied(_rows(x), kernel, bias).reshape(*x.shape[:-1], kernel.shape[1])


@affine_gradients.kernel("onednn")
def _(xp: Any, x: Any, kernel: Any, dy: Any, *, use_bias: bool = True, wants_dx: bool = True, out: Any = None) -> Any:
    if not (_pays(x, kernel) and _pays(dy, kernel)):
        return NotImplemented
    d = _rows(dy)
    dx = _multiplied(d, kernel.T).reshape(x.shape) if wants_dx else None
    return dx, _multiplied(_rows(x).T, d, out=out), d.sum(axis=0) if use_bias else None
