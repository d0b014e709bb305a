"""Arrays of given shapes: constants, ranges, and arrays repeated."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, TraceError, broadcast, same_shape
from lamella_onnx.tracer.functions.conversion import as_traced, astype
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.table import Table

__all__ = ["TABLE", "broadcast_to", "full_like"]

TABLE = Table()


@TABLE.unfolded
def broadcast_to(g: Graph, x: Any, /, shape: Any) -> Any:
    shape = tuple(shape)
    if not same_shape(broadcast(x.shape, shape), shape):
        raise TraceError(f"shape {x.shape} can't be broadcast to {shape}")
    return Traced(g, x.source, shape, x.dtype, x.held)


@TABLE.unfolded
def asarray(g: Graph, obj: Any, /, *, dtype: Any = None, copy: bool | None = None) -> Any:
    x = as_traced(g, np.asarray(obj) if isinstance(obj, list | tuple) else obj)
    return x if dtype is None else astype(g, x, dtype)


@TABLE.unfolded
def full(g: Graph, shape: Any, fill_value: Any, *, dtype: Any = None) -> Any:
    return broadcast_to(g, asarray(g, fill_value, dtype=dtype), shape if isinstance(shape, tuple | list) else (shape,))


@TABLE.unfolded
def full_like(g: Graph, x: Any, /, fill_value: Any, *, dtype: Any = None) -> Any:
    return full(g, x.shape, fill_value, dtype=x.dtype if dtype is None else dtype)


@TABLE.function
def zeros(g: Graph, shape: Any, *, dtype: Any = None) -> Any:
    return full(g, shape, 0.0, dtype=dtype)


@TABLE.function
def ones(g: Graph, shape: Any, *, dtype: Any = None) -> Any:
    return full(g, shape, 1.0, dtype=dtype)


@TABLE.unfolded
def zeros_like(g: Graph, x: Any, /, *, dtype: Any = None) -> Any:
    return full_like(g, x, 0.0, dtype=dtype)


@TABLE.unfolded
def ones_like(g: Graph, x: Any, /, *, dtype: Any = None) -> Any:
    return full_like(g, x, 1.0, dtype=dtype)


@TABLE.function
def arange(g: Graph, start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None) -> Any:
    start, stop = (0, start) if stop is None else (start, stop)
    if not any(isinstance(x, Dim) for x in (start, stop, step)):
        return g.constant(np.arange(start, stop, step, dtype=dtype))
    if not all(isinstance(x, int | Dim) for x in (start, stop, step)):
        raise TraceError(f"xp.arange({start}, {stop}, {step}): a symbolic size goes with ints only; scale the result")
    limits = [g.size(x, "int64") for x in (start, stop, step)]
    values = g.node("Range", *limits, shape=((stop - start) // step,), dtype="int64")
    return astype(g, values, "int64" if dtype is None else dtype)
