"""Products of matrices, and reductions over axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_onnx.tracer.dims import TraceError, broadcast, same_size
from lamella_onnx.tracer.functions.conversion import astype, need, together, widened
from lamella_onnx.tracer.functions.shaping import axes_of, expand_dims, reduced, reshape, squeeze
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.table import Table

__all__ = ["TABLE"]

TABLE = Table()


@TABLE.function
def matmul(g: Graph, a: Any, b: Any, /) -> Any:
    a, b = together(g, a, b)
    if not a.ndim or not b.ndim or not same_size(a.shape[-1], b.shape[-2:][0]):
        raise TraceError(f"shapes {a.shape} and {b.shape} don't fit together in a matrix product")
    if b.ndim == 1 < a.ndim:  # onnxruntime is wrong for a transposed matrix times a vector once it has joined the two
        return squeeze(g, matmul(g, a, expand_dims(g, b, axis=1)), axis=-1)
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), *a.shape[-2:-1], *(b.shape[-1:] if b.ndim > 1 else ()))
    wide = [widened(g, x, "MatMul") for x in (a, b)]
    return astype(g, g.node("MatMul", *wide, shape=shape, dtype=wide[0].dtype), a.dtype)


def _reduction(name: str, onnx_operator: str, *, kinds: str = "fiu", adds: bool = False, logical: bool = False) -> None:
    def function(g: Graph, x: Any, /, *, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
        if adds:  # integers add up in 64 bits, as in NumPy
            own = {"b": "int64", "i": "int64", "u": "uint64", "f": x.dtype}[x.dtype.kind]
            x = astype(g, x, own if dtype is None else dtype)
        elif logical:
            x = astype(g, x, bool)
        else:
            need(x, kinds, f"xp.{name}")
        axes = axes_of(x, axis)
        if not axes:
            return x
        w = x if logical and g.opset >= 20 else widened(g, x, onnx_operator)
        over = None if axis is None else np.array(axes, "int64")
        shape = reduced(x, axes, keepdims)
        return astype(g, g.node(onnx_operator, w, over, shape=shape, dtype=w.dtype, keepdims=int(keepdims)), x.dtype)

    function.__name__ = name
    TABLE.function(function)


_reduction("sum", "ReduceSum", adds=True)
_reduction("prod", "ReduceProd", adds=True)
_reduction("mean", "ReduceMean", kinds="f")
_reduction("max", "ReduceMax")
_reduction("min", "ReduceMin")
_reduction("any", "ReduceMax", logical=True)
_reduction("all", "ReduceMin", logical=True)


def _position(name: str, onnx_operator: str) -> None:
    def function(g: Graph, x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        if axis is None:
            flat = function(g, reshape(g, x, (-1,)), axis=0)
            return reshape(g, flat, (1,) * (x.ndim if keepdims else 0))
        (axis,) = axes_of(x, axis)
        shape = reduced(x, (axis,), keepdims)
        return g.node(
            onnx_operator, widened(g, x, onnx_operator), shape=shape, dtype="int64", axis=axis, keepdims=int(keepdims)
        )

    function.__name__ = name
    TABLE.function(function)


_position("argmax", "ArgMax")
_position("argmin", "ArgMin")
