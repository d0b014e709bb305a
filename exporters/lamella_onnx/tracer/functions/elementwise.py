"""Functions that treat every element by itself: one operator each, or a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lamella_onnx.tracer.functions.conversion import as_traced, astype, has_kernel, need, together, widened
from lamella_onnx.tracer.functions.creation import full_like
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.table import Table

__all__ = ["TABLE"]

TABLE = Table()


# Elementwise: one operator each

_COMPARISONS = {
    "equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
}
_NEUTRAL = {"add": 0, "subtract": 0, "multiply": 1, "divide": 1}  # on the right, changes nothing


def _operator(name: str, onnx_operator: str, kinds: str, **attributes: Any) -> None:
    def function(g: Graph, *values: Any) -> Any:
        arrays = together(g, *values)
        need(arrays[0], kinds, name)
        if name in _NEUTRAL and isinstance(values[1], int | float) and values[1] == _NEUTRAL[name]:
            return arrays[0]
        wide = [widened(g, x, onnx_operator) for x in arrays]
        if name in _COMPARISONS:
            return g.elementwise(onnx_operator, *wide, dtype=bool)
        return astype(g, g.elementwise(onnx_operator, *wide, **attributes), arrays[0].dtype)

    function.__name__ = name
    TABLE.elementwise(function)


for _name in ("cos", "exp", "log", "sin", "sqrt", "tanh"):
    _operator(_name, _name.capitalize(), "f")
for _name, _symbol in _COMPARISONS.items():
    _operator(_name, _symbol, "fiub" if _name == "equal" else "fiu")
for _name, _symbol in {"add": "Add", "subtract": "Sub", "multiply": "Mul", "maximum": "Max", "minimum": "Min"}.items():
    _operator(_name, _symbol, "fiu")
for _name in ("and", "or"):
    _operator(f"logical_{_name}", _name.capitalize(), "b")
_operator("logical_not", "Not", "b")
_operator("sign", "Sign", "fiu")
_operator("divide", "Div", "f")
_operator("left_shift", "BitShift", "u", direction="LEFT")
_operator("right_shift", "BitShift", "u", direction="RIGHT")


def _by_kind(name: str, **operators: str | None) -> None:
    """A function with another operator for floats (f), signed (i) and unsigned (u) integers and bools (b); None where
    it changes nothing."""

    def function(g: Graph, *values: Any) -> Any:
        arrays = together(g, *values)
        need(arrays[0], "".join(operators), name)
        chosen = operators[arrays[0].dtype.kind]
        return arrays[0] if chosen is None else g.elementwise(chosen, *arrays)

    function.__name__ = name
    TABLE.elementwise(function)


_by_kind("abs", f="Abs", i="Abs", u=None)
for _name in ("ceil", "floor", "round"):
    _by_kind(_name, f=_name.capitalize(), i=None, u=None)
for _name in ("and", "or", "xor"):
    _by_kind(
        f"bitwise_{_name}", i=f"Bitwise{_name.capitalize()}", u=f"Bitwise{_name.capitalize()}", b=_name.capitalize()
    )
_by_kind("invert", i="BitwiseNot", u="BitwiseNot", b="Not")
_by_kind("positive", f=None, i=None, u=None)


# Elementwise: formulas


def _only(name: str, onnx_operator: str, otherwise: Callable[..., Any]) -> None:
    """An operator that onnxruntime has for float32 only, and a formula for float64."""

    def function(g: Graph, x: Any, /) -> Any:
        return g.elementwise(onnx_operator, x) if x.dtype == np.float32 else otherwise(g.xp, x)

    function.__name__ = name
    TABLE.elementwise(function)


_only("sinh", "Sinh", lambda xp, x: (xp.expm1(x) - xp.expm1(-x)) * 0.5)
_only("cosh", "Cosh", lambda xp, x: (xp.exp(x) + xp.exp(-x)) * 0.5)
_only("tan", "Tan", lambda xp, x: xp.sin(x) / xp.cos(x))


@TABLE.elementwise
def square(g: Graph, x: Any, /) -> Any:
    return x * x


@TABLE.elementwise
def negative(g: Graph, x: Any, /) -> Any:
    need(x, "fiu", "the operator -")
    return 0 - x if x.dtype.kind == "u" else g.elementwise("Neg", x)


@TABLE.elementwise
def not_equal(g: Graph, a: Any, b: Any, /) -> Any:
    return g.xp.logical_not(as_traced(g, a) == b)


@TABLE.elementwise
def isnan(g: Graph, x: Any, /) -> Any:
    return g.elementwise("IsNaN", x, dtype=bool) if x.dtype.kind == "f" else full_like(g, x, False, dtype=bool)


@TABLE.elementwise
def isinf(g: Graph, x: Any, /) -> Any:
    return g.elementwise("IsInf", x, dtype=bool) if x.dtype.kind == "f" else full_like(g, x, False, dtype=bool)


@TABLE.elementwise
def isfinite(g: Graph, x: Any, /) -> Any:
    return g.xp.abs(x) < float("inf") if x.dtype.kind == "f" else full_like(g, x, True, dtype=bool)


@TABLE.elementwise
def expm1(g: Graph, x: Any, /) -> Any:
    """tanh(x / 2) (exp(x) + 1), which loses nothing near 0."""
    return g.xp.tanh(x * 0.5) * (g.xp.exp(x) + 1.0)


@TABLE.elementwise
def log1p(g: Graph, x: Any, /) -> Any:
    """log(u) with u = 1 + x, plus what rounding u lost, over u."""
    u = x + 1.0
    return g.xp.log(u) + g.xp.where(g.xp.abs(x) < 1.0, (x - (u - 1.0)) / u, 0.0)


@TABLE.elementwise
def pow_(g: Graph, a: Any, b: Any, /) -> Any:
    if isinstance(b, int | float) and b == 2:
        return a * a
    a, b = together(g, a, b)
    return astype(g, g.elementwise("Pow", widened(g, a, "Pow"), widened(g, b, "Pow")), a.dtype)


@TABLE.elementwise
def remainder(g: Graph, a: Any, b: Any, /) -> Any:
    """With the sign of the divisor, as in Python."""
    a, b = together(g, a, b)
    if a.dtype.kind != "f":
        return g.elementwise("Mod", a, b)
    rest = g.elementwise("Mod", a, b, fmod=1)
    return g.xp.where(rest * b < 0.0, rest + b, rest)


@TABLE.elementwise
def floor_divide(g: Graph, a: Any, b: Any, /) -> Any:
    a, b = together(g, a, b)
    if a.dtype.kind == "f":
        return g.xp.floor(a / b)
    quotient: Any = g.elementwise("Div", a, b)  # towards 0
    if a.dtype.kind == "u":
        return quotient
    # the remainders of both roundings differ by 0 or by b, and so nothing here leaves the dtype
    return quotient - g.elementwise("Div", remainder(g, a, b) - g.elementwise("Mod", a, b, fmod=1), b)


@TABLE.elementwise
def where(g: Graph, condition: Any, a: Any, b: Any, /) -> Any:
    need(condition, "b", "xp.where")
    a, b = together(g, a, b)
    wide = [widened(g, x, "Where") for x in (a, b)]
    return astype(g, g.elementwise("Where", condition, *wide, dtype=wide[0].dtype), a.dtype)


@TABLE.elementwise
def clip(g: Graph, x: Any, /, min: Any = None, max: Any = None) -> Any:
    if min is not None and max is not None and has_kernel("Max", x.dtype):
        limits = [as_traced(g, limit, x) for limit in (min, max)]
        if all(y.shape == () and y.dtype == x.dtype for y in limits):
            return g.node("Clip", x, *limits, shape=x.shape, dtype=x.dtype)
    x = x if min is None else g.xp.maximum(x, min)  # Clip with one limit turns infinity into the largest float
    return x if max is None else g.xp.minimum(x, max)
