"""The same elements in another shape or order, joined or repeated."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, Size, TraceError, same_shape, same_size, size_of
from lamella_onnx.tracer.functions.conversion import together
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.table import Table

__all__ = ["TABLE", "axes_of", "expand_dims", "reduced", "reshape", "squeeze"]

TABLE = Table()


def axes_of(x: Traced, axis: Any) -> tuple[int, ...]:
    """Axes counted from the front."""
    given = range(x.ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    for k in given:
        if not -x.ndim <= k < x.ndim:
            raise TraceError(f"axis {k} is out of range for shape {x.shape}")
    return tuple(sorted(k % x.ndim for k in given))


def reduced(x: Traced, axes: Sequence[int], keepdims: bool) -> tuple[Size, ...]:
    return tuple(1 if k in axes else size for k, size in enumerate(x.shape) if keepdims or k not in axes)


@TABLE.function
def reshape(g: Graph, x: Any, /, shape: Any, *, copy: bool | None = None) -> Any:
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    free = [k for k, size in enumerate(shape) if isinstance(size, int) and size == -1]
    rest = size_of([size for k, size in enumerate(shape) if k not in free])
    total = size_of(x.shape)
    if len(free) == 1 and not same_size(rest, 0):
        if isinstance(rest, int) and isinstance(total, int) and total % rest:
            raise TraceError(f"shape {x.shape} can't be reshaped to {shape}")
        shape = tuple(total // rest if k in free else size for k, size in enumerate(shape))
    if not same_size(size_of(shape), total):
        raise TraceError(f"shape {x.shape} can't be reshaped to {shape}")
    return x if same_shape(shape, x.shape) else g.node("Reshape", x, _target(g, x, shape), shape=shape, dtype=x.dtype)


def _target(g: Graph, x: Traced, shape: tuple[Size, ...]) -> Any:
    """What Reshape is told: 0 copies the size at the same place, or one -1 takes what is left."""
    if any(isinstance(size, int) and size == 0 for size in (*x.shape, *shape)):
        raise TraceError(f"xp.reshape from {x.shape} to {shape}: an array without elements")
    kept = [0 if isinstance(n, Dim) and k < x.ndim and same_size(n, x.shape[k]) else n for k, n in enumerate(shape)]
    left = sum(isinstance(size, Dim) for size in kept)
    if left == 0 or (left == 1 and not any(isinstance(size, int) and size == 0 for size in kept)):
        return np.array([-1 if isinstance(size, Dim) else size for size in kept], "int64")
    return g.sizes(shape)  # what is left beside a copy of the size 0, that of an empty batch, could be anything


@TABLE.function
def permute_dims(g: Graph, x: Any, /, axes: Any) -> Any:
    order = [axis % x.ndim for axis in axes]
    if sorted(order) != list(range(x.ndim)):
        raise TraceError(f"xp.permute_dims: {tuple(axes)} is no permutation of the axes of {x.shape}")
    if order == sorted(order):
        return x
    return g.node("Transpose", x, shape=tuple(x.shape[k] for k in order), dtype=x.dtype, perm=order)


@TABLE.function
def expand_dims(g: Graph, x: Any, /, *, axis: Any = 0) -> Any:
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    rank = x.ndim + len(axes)
    places = sorted(k % rank for k in axes)
    sizes = iter(x.shape)
    shape = tuple(1 if k in places else next(sizes) for k in range(rank))
    return g.node("Unsqueeze", x, np.array(places, "int64"), shape=shape, dtype=x.dtype)


@TABLE.function
def squeeze(g: Graph, x: Any, /, axis: Any) -> Any:
    axes = axes_of(x, axis)
    if not all(same_size(x.shape[k], 1) for k in axes):
        raise TraceError(f"xp.squeeze: axes {axes} of {x.shape} are not all of size 1")
    return g.node("Squeeze", x, np.array(axes, "int64"), shape=reduced(x, axes, False), dtype=x.dtype)


@TABLE.function
def concat(g: Graph, arrays: Any, /, *, axis: int | None = 0) -> Any:
    xs = together(g, *arrays)
    if axis is None:
        xs, axis = [reshape(g, x, (-1,)) for x in xs], 0
    (axis,) = axes_of(xs[0], axis)
    others = [(*x.shape[:axis], *x.shape[axis + 1 :]) for x in xs]
    if not all(x.ndim == xs[0].ndim and same_shape(other, others[0]) for x, other in zip(xs, others, strict=True)):
        raise TraceError(f"xp.concat along axis {axis} of shapes {', '.join(str(x.shape) for x in xs)}")
    total = functools.reduce(operator.add, (x.shape[axis] for x in xs))
    shape = (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :])
    return xs[0] if len(xs) == 1 else g.node("Concat", *xs, shape=shape, dtype=xs[0].dtype, axis=axis)


@TABLE.function
def stack(g: Graph, arrays: Any, /, *, axis: int = 0) -> Any:
    return concat(g, [g.xp.expand_dims(x, axis=axis) for x in together(g, *arrays)], axis=axis)


@TABLE.function
def tile(g: Graph, x: Any, repetitions: Any, /) -> Any:
    rank = max(x.ndim, len(repetitions))
    times = (*(1,) * (rank - len(repetitions)), *repetitions)
    x = reshape(g, x, (*(1,) * (rank - x.ndim), *x.shape))
    if all(isinstance(n, int) and n == 1 for n in times):
        return x
    shape = tuple(size * n for size, n in zip(x.shape, times, strict=True))
    return g.node("Tile", x, g.sizes(times), shape=shape, dtype=x.dtype)
