"""What layer code may do with traced arrays: every function of `lamella.backends.NAMESPACE`, operators and slicing.

Each function takes the graph first. One that is given constants only is computed by NumPy's function of the same name.
Where onnxruntime has no kernel for a small integer type, the operator runs in a wider one between two casts.

Values are NumPy's, but for a few that are onnxruntime's: ``max``, ``min``, ``argmax`` and ``argmin`` pass over NaN;
``infinity // y`` and ``(-infinity) ** 0.5`` are infinity, not NaN; an integer divided by 0 is an error, and the
smallest int32 or int64 divided by -1 ends the process.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import helper

from lamella.backends.namespace import DTYPE_NAMES, NAMESPACE, missing_name
from lamella_onnx.dim import Dim, Size, TraceError, broadcast, same_shape, same_size, size_of
from lamella_onnx.tracer import Graph, Traced

__all__ = ["FUNCTIONS", "OnnxNamespace"]

Function = Callable[..., Any]

FUNCTIONS: dict[str, Function] = {}
_ELEMENTWISE: set[str] = set()  # computed on what is held, the rest repeated
_LAZY = {
    "asarray",
    "astype",
    "broadcast_to",
    "full",
    "full_like",
    "getitem",
    "ones_like",
    "zeros_like",
}  # keep it small


class OnnxNamespace:
    """``ctx.xp`` of a traced layer: exactly the names in `lamella.backends.NAMESPACE`.

    ONNX kernels also use ``node(operator, *inputs, shape=, dtype=, **attributes)``, with lists for shape and dtype
    where the operator has several outputs, ``constant(numpy_array)`` and ``opset``.
    """

    backend = "onnx"

    def __init__(self, graph: Graph) -> None:
        self.opset = graph.opset
        self.node = graph.node
        self.constant = graph.constant
        self._graph = graph
        for name in NAMESPACE:
            value = np.dtype(name) if name in DTYPE_NAMES else functools.partial(_call, graph, name)
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(missing_name(name))

    def __repr__(self) -> str:
        return "<array functions of the 'onnx' backend>"


def _call(graph: Graph, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function, or NumPy's of the same name where all is known."""
    given = list(_flat((*args, *kwargs.values())))
    arrays = [x for x in given if isinstance(x, Traced)]
    small = name in _ELEMENTWISE
    known = not any(isinstance(x, Dim) for x in given) and all(_value(x, small) is not None for x in arrays)
    if not arrays or not known or name in _LAZY:
        return FUNCTIONS[name](graph, *args, **kwargs)

    def value(x: Any) -> Any:
        if isinstance(x, tuple | list):
            return type(x)(map(value, x))
        return _value(x, small) if isinstance(x, Traced) else x

    with np.errstate(all="ignore"):
        result = np.asarray(getattr(np, name)(*map(value, args), **{key: value(x) for key, x in kwargs.items()}))
    shape = broadcast(result.shape, *(x.shape for x in arrays)) if small else result.shape
    return Traced(graph, result, shape, result.dtype, result.shape)


def _value(x: Traced, small: bool) -> Any:
    return (x.source if isinstance(x.source, np.ndarray) else None) if small else x.constant


def _flat(args: Any) -> Iterator[Any]:
    for x in args:
        if isinstance(x, tuple | list):
            yield from _flat(x)
        else:
            yield x


def _function(function: Function) -> Function:
    FUNCTIONS[function.__name__.rstrip("_")] = function
    return function


def _elementwise(function: Function) -> Function:
    _ELEMENTWISE.add(function.__name__.rstrip("_"))
    return _function(function)


# Dtypes

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
_KINDS = {"f": "floats", "fiu": "numbers", "iu": "integers", "b": "bools", "fiub": "arrays"}


def _wide(x: Traced, operator_: str) -> Traced:
    """The array in a dtype that the operator has a kernel for."""
    return astype(x.graph, x, _WIDER[x.dtype.name]) if x.dtype.name in _MISSING.get(operator_, ()) else x


def _traced(graph: Graph, x: Any, like: Traced | None = None) -> Traced:
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


def _together(graph: Graph, *values: Any) -> list[Traced]:
    """Values as arrays of one dtype; floats, integers and bools don't mix."""
    arrays = [_traced(graph, x) for x in values if isinstance(x, Traced | np.ndarray | np.generic)]
    if not arrays:
        arrays = [graph.constant(values[0])]
    if len({x.dtype.kind.replace("u", "i") for x in arrays}) > 1:
        raise TraceError(f"arrays of {' and '.join(str(x.dtype) for x in arrays)} together; convert one with xp.astype")
    like = graph.constant(np.empty((), np.result_type(*(x.dtype for x in arrays))))
    return [astype(graph, _traced(graph, x, like), like.dtype) for x in values]


def _need(x: Traced, kinds: str, what: str) -> None:
    if x.dtype.kind not in kinds:
        raise TraceError(f"{what} takes {_KINDS[kinds]}, got {x!r}; convert it with xp.astype")


# Creation


@_function
def asarray(g: Graph, obj: Any, /, *, dtype: Any = None, copy: bool | None = None) -> Any:
    x = _traced(g, np.asarray(obj) if isinstance(obj, list | tuple) else obj)
    return x if dtype is None else astype(g, x, dtype)


@_function
def full(g: Graph, shape: Any, fill_value: Any, *, dtype: Any = None) -> Any:
    return broadcast_to(g, asarray(g, fill_value, dtype=dtype), shape if isinstance(shape, tuple | list) else (shape,))


@_function
def full_like(g: Graph, x: Any, /, fill_value: Any, *, dtype: Any = None) -> Any:
    return full(g, x.shape, fill_value, dtype=x.dtype if dtype is None else dtype)


FUNCTIONS["zeros"] = lambda g, shape, *, dtype=None: full(g, shape, 0.0, dtype=dtype)
FUNCTIONS["ones"] = lambda g, shape, *, dtype=None: full(g, shape, 1.0, dtype=dtype)
FUNCTIONS["zeros_like"] = lambda g, x, /, *, dtype=None: full_like(g, x, 0.0, dtype=dtype)
FUNCTIONS["ones_like"] = lambda g, x, /, *, dtype=None: full_like(g, x, 1.0, dtype=dtype)


@_function
def arange(g: Graph, start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None) -> Any:
    start, stop = (0, start) if stop is None else (start, stop)
    if not any(isinstance(x, Dim) for x in (start, stop, step)):
        return g.constant(np.arange(start, stop, step, dtype=dtype))
    if not all(isinstance(x, int | Dim) for x in (start, stop, step)):
        raise TraceError(f"xp.arange({start}, {stop}, {step}): a symbolic size goes with ints only; scale the result")
    limits = [g.size(x, "int64") for x in (start, stop, step)]
    values = g.node("Range", *limits, shape=((stop - start) // step,), dtype="int64")
    return astype(g, values, "int64" if dtype is None else dtype)


# Elementwise: one operator each

_COMPARISONS = {
    "equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
}
_NEUTRAL = {"add": 0, "subtract": 0, "multiply": 1, "divide": 1}  # on the right, changes nothing


def _operator(name: str, operator_: str, kinds: str, **attributes: Any) -> None:
    def function(g: Graph, *values: Any) -> Any:
        arrays = _together(g, *values)
        _need(arrays[0], kinds, name)
        if name in _NEUTRAL and isinstance(values[1], int | float) and values[1] == _NEUTRAL[name]:
            return arrays[0]
        wide = [_wide(x, operator_) for x in arrays]
        if name in _COMPARISONS:
            return g.elementwise(operator_, *wide, dtype=bool)
        return astype(g, g.elementwise(operator_, *wide, **attributes), arrays[0].dtype)

    function.__name__ = name
    _elementwise(function)


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
        arrays = _together(g, *values)
        _need(arrays[0], "".join(operators), name)
        chosen = operators[arrays[0].dtype.kind]
        return arrays[0] if chosen is None else g.elementwise(chosen, *arrays)

    function.__name__ = name
    _elementwise(function)


_KINDS |= {"iub": "integers or bools", "fi": "signed numbers", "u": "unsigned integers"}
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


def _only(name: str, operator_: str, otherwise: Function) -> None:
    """An operator that onnxruntime has for float32 only, and a formula for float64."""

    def function(g: Graph, x: Any, /) -> Any:
        return g.elementwise(operator_, x) if x.dtype == np.float32 else otherwise(g.xp, x)

    function.__name__ = name
    _elementwise(function)


_only("sinh", "Sinh", lambda xp, x: (xp.expm1(x) - xp.expm1(-x)) * 0.5)
_only("cosh", "Cosh", lambda xp, x: (xp.exp(x) + xp.exp(-x)) * 0.5)
_only("tan", "Tan", lambda xp, x: xp.sin(x) / xp.cos(x))


@_elementwise
def square(g: Graph, x: Any, /) -> Any:
    return x * x


@_elementwise
def negative(g: Graph, x: Any, /) -> Any:
    _need(x, "fiu", "the operator -")
    return 0 - x if x.dtype.kind == "u" else g.elementwise("Neg", x)


@_elementwise
def not_equal(g: Graph, a: Any, b: Any, /) -> Any:
    return g.xp.logical_not(_traced(g, a) == b)


@_elementwise
def isnan(g: Graph, x: Any, /) -> Any:
    return g.elementwise("IsNaN", x, dtype=bool) if x.dtype.kind == "f" else full_like(g, x, False, dtype=bool)


@_elementwise
def isinf(g: Graph, x: Any, /) -> Any:
    return g.elementwise("IsInf", x, dtype=bool) if x.dtype.kind == "f" else full_like(g, x, False, dtype=bool)


@_elementwise
def isfinite(g: Graph, x: Any, /) -> Any:
    return g.xp.abs(x) < float("inf") if x.dtype.kind == "f" else full_like(g, x, True, dtype=bool)


@_elementwise
def expm1(g: Graph, x: Any, /) -> Any:
    """tanh(x / 2) (exp(x) + 1), which loses nothing near 0."""
    return g.xp.tanh(x * 0.5) * (g.xp.exp(x) + 1.0)


@_elementwise
def log1p(g: Graph, x: Any, /) -> Any:
    """log(u) with u = 1 + x, plus what rounding u lost, over u."""
    u = x + 1.0
    return g.xp.log(u) + g.xp.where(g.xp.abs(x) < 1.0, (x - (u - 1.0)) / u, 0.0)


@_elementwise
def pow_(g: Graph, a: Any, b: Any, /) -> Any:
    if isinstance(b, int | float) and b == 2:
        return a * a
    a, b = _together(g, a, b)
    return astype(g, g.elementwise("Pow", _wide(a, "Pow"), _wide(b, "Pow")), a.dtype)


@_elementwise
def remainder(g: Graph, a: Any, b: Any, /) -> Any:
    """With the sign of the divisor, as in Python."""
    a, b = _together(g, a, b)
    if a.dtype.kind != "f":
        return g.elementwise("Mod", a, b)
    rest = g.elementwise("Mod", a, b, fmod=1)
    return g.xp.where(rest * b < 0.0, rest + b, rest)


@_elementwise
def floor_divide(g: Graph, a: Any, b: Any, /) -> Any:
    a, b = _together(g, a, b)
    if a.dtype.kind == "f":
        return g.xp.floor(a / b)
    quotient: Any = g.elementwise("Div", a, b)  # towards 0
    if a.dtype.kind == "u":
        return quotient
    # the remainders of both roundings differ by 0 or by b, and so nothing here leaves the dtype
    return quotient - g.elementwise("Div", remainder(g, a, b) - g.elementwise("Mod", a, b, fmod=1), b)


@_elementwise
def where(g: Graph, condition: Any, a: Any, b: Any, /) -> Any:
    _need(condition, "b", "xp.where")
    a, b = _together(g, a, b)
    wide = [_wide(x, "Where") for x in (a, b)]
    return astype(g, g.elementwise("Where", condition, *wide, dtype=wide[0].dtype), a.dtype)


@_elementwise
def clip(g: Graph, x: Any, /, min: Any = None, max: Any = None) -> Any:
    if min is not None and max is not None and x.dtype.name not in _MISSING["Max"]:
        limits = [_traced(g, limit, x) for limit in (min, max)]
        if all(y.shape == () and y.dtype == x.dtype for y in limits):
            return g.node("Clip", x, *limits, shape=x.shape, dtype=x.dtype)
    x = x if min is None else g.xp.maximum(x, min)  # Clip with one limit makes infinity the largest number
    return x if max is None else g.xp.minimum(x, max)


# Products and reductions


@_function
def matmul(g: Graph, a: Any, b: Any, /) -> Any:
    a, b = _together(g, a, b)
    if not a.ndim or not b.ndim or not same_size(a.shape[-1], b.shape[-2:][0]):
        raise TraceError(f"shapes {a.shape} and {b.shape} don't fit together in a matrix product")
    if b.ndim == 1 < a.ndim:  # onnxruntime is wrong for a transposed matrix times a vector once it has joined the two
        return squeeze(g, matmul(g, a, expand_dims(g, b, axis=1)), axis=-1)
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), *a.shape[-2:-1], *(b.shape[-1:] if b.ndim > 1 else ()))
    wide = [_wide(x, "MatMul") for x in (a, b)]
    return astype(g, g.node("MatMul", *wide, shape=shape, dtype=wide[0].dtype), a.dtype)


def _axes(x: Traced, axis: Any) -> tuple[int, ...]:
    """Axes counted from the front."""
    given = range(x.ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    for k in given:
        if not -x.ndim <= k < x.ndim:
            raise TraceError(f"axis {k} is out of range for shape {x.shape}")
    return tuple(sorted(k % x.ndim for k in given))


def _reduced(x: Traced, axes: Sequence[int], keepdims: bool) -> tuple[Size, ...]:
    return tuple(1 if k in axes else size for k, size in enumerate(x.shape) if keepdims or k not in axes)


def _reduction(name: str, operator_: str, *, kinds: str = "fiu", adds: bool = False, logical: bool = False) -> None:
    def function(g: Graph, x: Any, /, *, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
        if adds:  # integers add up in 64 bits, as in NumPy
            own = {"b": "int64", "i": "int64", "u": "uint64", "f": x.dtype}[x.dtype.kind]
            x = astype(g, x, own if dtype is None else dtype)
        elif logical:
            x = astype(g, x, bool)
        else:
            _need(x, kinds, f"xp.{name}")
        axes = _axes(x, axis)
        if not axes:
            return x
        wide = x if logical and g.opset >= 20 else _wide(x, operator_)
        over = None if axis is None else np.array(axes, "int64")
        shape = _reduced(x, axes, keepdims)
        return astype(g, g.node(operator_, wide, over, shape=shape, dtype=wide.dtype, keepdims=int(keepdims)), x.dtype)

    function.__name__ = name
    _function(function)


_reduction("sum", "ReduceSum", adds=True)
_reduction("prod", "ReduceProd", adds=True)
_reduction("mean", "ReduceMean", kinds="f")
_reduction("max", "ReduceMax")
_reduction("min", "ReduceMin")
_reduction("any", "ReduceMax", logical=True)
_reduction("all", "ReduceMin", logical=True)


def _position(name: str, operator_: str) -> None:
    def function(g: Graph, x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        if axis is None:
            flat = function(g, reshape(g, x, (-1,)), axis=0)
            return reshape(g, flat, (1,) * (x.ndim if keepdims else 0))
        (axis,) = _axes(x, axis)
        shape = _reduced(x, (axis,), keepdims)
        return g.node(operator_, _wide(x, operator_), shape=shape, dtype="int64", axis=axis, keepdims=int(keepdims))

    function.__name__ = name
    _function(function)


_position("argmax", "ArgMax")
_position("argmin", "ArgMin")


# Manipulation


@_elementwise
def astype(g: Graph, x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    if isinstance(x.source, np.ndarray):
        with np.errstate(all="ignore"):
            return Traced(g, x.source.astype(dtype), x.shape, dtype, x.held)
    return g.elementwise("Cast", x, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(dtype))


@_function
def broadcast_to(g: Graph, x: Any, /, shape: Any) -> Any:
    shape = tuple(shape)
    if not same_shape(broadcast(x.shape, shape), shape):
        raise TraceError(f"shape {x.shape} can't be broadcast to {shape}")
    return Traced(g, x.source, shape, x.dtype, x.held)


@_function
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


@_function
def permute_dims(g: Graph, x: Any, /, axes: Any) -> Any:
    order = [axis % x.ndim for axis in axes]
    if sorted(order) != list(range(x.ndim)):
        raise TraceError(f"xp.permute_dims: {tuple(axes)} is no permutation of the axes of {x.shape}")
    if order == sorted(order):
        return x
    return g.node("Transpose", x, shape=tuple(x.shape[k] for k in order), dtype=x.dtype, perm=order)


@_function
def expand_dims(g: Graph, x: Any, /, *, axis: Any = 0) -> Any:
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    rank = x.ndim + len(axes)
    places = sorted(k % rank for k in axes)
    sizes = iter(x.shape)
    shape = tuple(1 if k in places else next(sizes) for k in range(rank))
    return g.node("Unsqueeze", x, np.array(places, "int64"), shape=shape, dtype=x.dtype)


@_function
def squeeze(g: Graph, x: Any, /, axis: Any) -> Any:
    axes = _axes(x, axis)
    if not all(same_size(x.shape[k], 1) for k in axes):
        raise TraceError(f"xp.squeeze: axes {axes} of {x.shape} are not all of size 1")
    return g.node("Squeeze", x, np.array(axes, "int64"), shape=_reduced(x, axes, False), dtype=x.dtype)


@_function
def concat(g: Graph, arrays: Any, /, *, axis: int | None = 0) -> Any:
    xs = _together(g, *arrays)
    if axis is None:
        xs, axis = [reshape(g, x, (-1,)) for x in xs], 0
    (axis,) = _axes(xs[0], axis)
    others = [(*x.shape[:axis], *x.shape[axis + 1 :]) for x in xs]
    if not all(x.ndim == xs[0].ndim and same_shape(other, others[0]) for x, other in zip(xs, others, strict=True)):
        raise TraceError(f"xp.concat along axis {axis} of shapes {', '.join(str(x.shape) for x in xs)}")
    total = functools.reduce(operator.add, (x.shape[axis] for x in xs))
    shape = (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :])
    return xs[0] if len(xs) == 1 else g.node("Concat", *xs, shape=shape, dtype=xs[0].dtype, axis=axis)


@_function
def stack(g: Graph, arrays: Any, /, *, axis: int = 0) -> Any:
    return concat(g, [g.xp.expand_dims(x, axis=axis) for x in _together(g, *arrays)], axis=axis)


@_function
def flip(g: Graph, x: Any, /, *, axis: Any = None) -> Any:
    axes = _axes(x, axis)
    return getitem(g, x, tuple(slice(None, None, -1) if k in axes else slice(None) for k in range(x.ndim)))


@_function
def take(g: Graph, x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    if axis is None and x.ndim != 1:
        raise TraceError(f"xp.take on shape {x.shape} needs an axis")
    (axis,) = _axes(x, 0 if axis is None else axis)
    indices = _traced(g, indices)
    _need(indices, "iu", "xp.take")
    if indices.dtype.name not in ("int32", "int64"):
        indices = astype(g, indices, "int64")
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return g.node("Gather", x, indices, shape=shape, dtype=x.dtype, axis=axis)


@_function
def tile(g: Graph, x: Any, repetitions: Any, /) -> Any:
    rank = max(x.ndim, len(repetitions))
    times = (*(1,) * (rank - len(repetitions)), *repetitions)
    x = reshape(g, x, (*(1,) * (rank - x.ndim), *x.shape))
    if all(isinstance(n, int) and n == 1 for n in times):
        return x
    shape = tuple(size * n for size, n in zip(x.shape, times, strict=True))
    return g.node("Tile", x, g.sizes(times), shape=shape, dtype=x.dtype)


# Slicing


@_function
def getitem(g: Graph, x: Traced, key: Any) -> Any:
    """Slices in one Slice node, then each int in a Gather, then all new axes in one Unsqueeze."""
    parts = _parts(x, key if isinstance(key, tuple) else (key,))
    if x.constant is not None and not any(isinstance(x, Dim) for x in _flat(_ends(parts))):
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


def _ends(parts: list[Any]) -> list[Any]:
    return [[part.start, part.stop, part.step] if isinstance(part, slice) else part for part in parts]


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


# Operators of traced arrays

_COMMUTATIVE = {"add": "add", "mul": "multiply", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}
_ORDERED = {
    "sub": "subtract", "truediv": "divide", "floordiv": "floor_divide", "mod": "remainder", "pow": "pow",
    "matmul": "matmul", "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip
_PLAIN = {
    "neg": "negative", "pos": "positive", "invert": "invert", "abs": "abs", "getitem": "getitem", "lt": "less",
    "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip


def _method(name: str, *, swapped: bool = False) -> Function:
    if swapped:
        return lambda self, other: _call(self.graph, name, other, self)
    return lambda self, *others: _call(self.graph, name, self, *others)


def _transposed(x: Traced) -> Any:
    """The array with its two axes exchanged."""
    if x.ndim != 2:
        raise TraceError(f"x.T of {x!r}: it is for two axes; use xp.permute_dims")
    return x.graph.xp.permute_dims(x, (1, 0))


for _name, _known in (_COMMUTATIVE | _ORDERED | _PLAIN).items():
    setattr(Traced, f"__{_name}__", _method(_known))
for _name, _known in (_COMMUTATIVE | _ORDERED).items():
    setattr(Traced, f"__r{_name}__", _method(_known, swapped=_name in _ORDERED))
Traced.T = property(_transposed)  # type: ignore[attr-defined]
