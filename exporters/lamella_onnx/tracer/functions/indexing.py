"""Some of the elements: slices, single positions, rows by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, Size, TraceError, same_size
from lamella_onnx.tracer.functions.conversion import as_traced, astype, need
from lamella_onnx.tracer.functions.shaping import axes_of, expand_dims
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.table import Table

__all__ = ["TABLE"]

TABLE = Table()


@TABLE.unfolded
def getitem(g: Graph, x: Traced, key: Any) -> Any:
    """Slices in one Slice node, then each int in a Gather, then all new axes in one Unsqueeze."""
    parts = _parts(x, key if isinstance(key, tuple) else (key,))
    if x.constant is not None and not any(map(_is_symbolic, parts)):
        return g.constant(x.constant[tuple(parts)])
    slices: list[tuple[Size, Size, int, int]] = []  # start, stop, axis, step
    picked: list[tuple[int, int]] = []  # axis, position
    new: list[int] = []
    shape: list[Size] = []
    axis = place = 0
    for part in parts:
        if part is None:
            new.append(place)
        elif isinstance(part, slice):
            start, stop, step, size = _extent(x.shape[axis], part)
            if not same_size(size, x.shape[axis]) or step != 1:
                slices.append((start, stop, axis, step))
            shape.append(size)
        else:
            if isinstance(x.shape[axis], int) and not -x.shape[axis] <= part < x.shape[axis]:
                raise TraceError(f"index {part} is out of range for axis {axis} of {x.shape}")
            picked.append((axis, part))
            shape.append(1)
        place += part is None or isinstance(part, slice)
        axis += part is not None
    if slices:
        starts, stops, axes, steps = zip(*slices, strict=True)
        limits = [g.sizes(starts), g.sizes(stops), np.array(axes, "int64"), np.array(steps, "int64")]
        cut = [x.shape[k] if k in dict(picked) else size for k, size in enumerate(shape)]
        x = g.node("Slice", x, *(limits if any(step != 1 for step in steps) else limits[:3]), shape=cut, dtype=x.dtype)
    for axis, position in reversed(picked):
        x = take(g, x, np.array(position, "int64"), axis=axis)
    return expand_dims(g, x, axis=tuple(new)) if new else x


def _parts(x: Traced, key: tuple[Any, ...]) -> list[Any]:
    """One part for each axis, and None for each new one."""
    for part in key:
        if part is not None and part is not ... and (isinstance(part, bool) or not isinstance(part, int | slice)):
            raise TraceError(f"indexing with {part!r}: use ints, slices, None and '...', or xp.take and xp.where")
    missing = x.ndim - sum(part is not None and part is not ... for part in key)
    if missing < 0 or sum(part is ... for part in key) > 1:
        raise TraceError(f"{x!r} has {x.ndim} axes; too many indices: {key}")
    rest = [slice(None)] * missing
    if not any(part is ... for part in key):
        return [*key, *rest]
    return [inner for part in key for inner in (rest if part is ... else [part])]


def _is_symbolic(part: Any) -> bool:
    return isinstance(part, slice) and any(isinstance(end, Dim) for end in (part.start, part.stop, part.step))


_FIRST, _LAST = -(2**63), 2**63 - 1  # as far as a slice can go either way


def _extent(size: Size, part: slice) -> tuple[Size, Size, int, Size]:
    """Start, stop and step as Slice wants them, and how many elements there are."""
    start, stop, step = part.start, part.stop, 1 if part.step is None else part.step
    if not any(isinstance(value, Dim) for value in (size, start, stop)):
        start, stop, step = part.indices(size)
        return start, _FIRST if stop < 0 else stop, step, len(range(start, stop, step))
    if step == -1 and start is None and stop is None:
        return _LAST, _FIRST, -1, size
    start, stop = 0 if start is None else start, _LAST if stop is None else stop
    ends = [end for end in (start, stop) if isinstance(end, int) and end not in (-1, 0, 1, _LAST)]
    if step < 1 or (ends and isinstance(size, Dim)):
        raise TraceError(
            f"the slice [{part.start}:{part.stop}:{part.step}] of an axis of size {size}, which is not known when a "
            "model is exported; such an axis may be cut by one at each end, cut at symbolic sizes, or reversed"
        )
    first, last = (
        size if end is _LAST else size + end if isinstance(end, int) and end < 0 else end for end in (start, stop)
    )
    length = last - first
    return start, stop, step, (length if isinstance(length, Dim) else length + step - 1) // step


@TABLE.function
def take(g: Graph, x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    if axis is None and x.ndim != 1:
        raise TraceError(f"xp.take on shape {x.shape} needs an axis")
    (axis,) = axes_of(x, 0 if axis is None else axis)
    indices = as_traced(g, indices)
    need(indices, "iu", "xp.take")
    if indices.dtype.name not in ("int32", "int64"):
        indices = astype(g, indices, "int64")
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return g.node("Gather", x, indices, shape=shape, dtype=x.dtype, axis=axis)


@TABLE.function
def flip(g: Graph, x: Any, /, *, axis: Any = None) -> Any:
    axes = axes_of(x, axis)
    return getitem(g, x, tuple(slice(None, None, -1) if k in axes else slice(None) for k in range(x.ndim)))
