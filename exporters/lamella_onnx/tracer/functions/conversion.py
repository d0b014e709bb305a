"""Dtypes: conversion, what may stand together, and what onnxruntime has no kernels for."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, TraceError
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.table import Table

__all__ = ["TABLE", "as_traced", "astype", "has_kernel", "need", "together", "widened"]

TABLE = Table()


_SMALL = ("bool", "int8", "int16", "uint8", "uint16")
_UNSIGNED = ("uint32", "uint64")
_WIDER = {**dict.fromkeys(_SMALL, "int32"), **dict.fromkeys(_UNSIGNED, "int64")}
# operator -> dtypes for which onnxruntime has no kernel on a CPU
_MISSING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Max", "Min"), ("bool", "int16", "uint16")),
    **dict.fromkeys(("Where",), ("bool", "int16", "uint16", "uint64")),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ArgMax", "ArgMin"), ("bool", "int16", "uint16", *_UNSIGNED)),
    **dict.fromkeys(("ReduceSum", "ReduceProd", "Pow"), (*_SMALL, *_UNSIGNED)),
    **dict.fromkeys(("MatMul",), _SMALL),
}
_KINDS = {  # of dtypes, in the words of errors
    "f": "floats",
    "fi": "signed numbers",
    "fiu": "numbers",
    "fiub": "arrays",
    "iu": "integers",
    "iub": "integers or bools",
    "u": "unsigned integers",
    "b": "bools",
}


@TABLE.unfolded
def astype(g: Graph, x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    if isinstance(x.source, np.ndarray):
        with np.errstate(all="ignore"):
            return Traced(g, x.source.astype(dtype), x.shape, dtype, x.held)
    return g.elementwise("Cast", x, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(dtype))


def has_kernel(onnx_operator: str, dtype: np.dtype[Any]) -> bool:
    """Whether onnxruntime computes an operator in a dtype."""
    return dtype.name not in _MISSING.get(onnx_operator, ())


def widened(g: Graph, x: Traced, onnx_operator: str) -> Traced:
    """The array in a dtype that the operator has a kernel for."""
    return x if has_kernel(onnx_operator, x.dtype) else astype(g, x, _WIDER[x.dtype.name])


def as_traced(graph: Graph, x: Any, like: Traced | None = None) -> Traced:
    """Anything that may stand beside an array, as an array; Python numbers and sizes get the dtype of ``like``."""
    if isinstance(x, Traced):
        return x
    if isinstance(x, np.ndarray | np.generic):
        return graph.constant(x)
    if isinstance(x, Dim):
        return graph.size(x, "int64" if like is None else like.dtype)
    if not isinstance(x, bool | int | float):
        raise TraceError(f"expected an array or a number, got {x!r}")
    if like is None:
        return graph.constant(x)
    if "biuf".index(like.dtype.kind) < (3 if isinstance(x, float) else not isinstance(x, bool)):
        raise TraceError(f"the number {x!r} beside a {like.dtype} array; convert the array with xp.astype")
    try:
        return graph.constant(np.array(x, like.dtype))
    except OverflowError:
        raise TraceError(f"the number {x!r} does not fit into a {like.dtype} array") from None


def together(graph: Graph, *values: Any) -> list[Traced]:
    """Values as arrays of one dtype; floats, integers and bools don't mix."""
    arrays = [as_traced(graph, x) for x in values if isinstance(x, Traced | np.ndarray | np.generic)]
    if not arrays:
        arrays = [graph.constant(values[0])]
    if len({x.dtype.kind.replace("u", "i") for x in arrays}) > 1:
        raise TraceError(f"arrays of {' and '.join(str(x.dtype) for x in arrays)} together; convert one with xp.astype")
    like = graph.constant(np.empty((), np.result_type(*(x.dtype for x in arrays))))
    return [astype(graph, as_traced(graph, x, like), like.dtype) for x in values]


def need(x: Traced, kinds: str, what: str) -> None:
    """Raise where an array's dtype is of none of some kinds."""
    if x.dtype.kind not in kinds:
        raise TraceError(f"{what} takes {_KINDS[kinds]}, got {x!r}; convert it with xp.astype")
