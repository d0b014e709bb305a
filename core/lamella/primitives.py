"""Named array functions: one reference definition that runs on every backend, and kernels where they pay.

A primitive is called with the context, or within another primitive with the namespace: ``softmax(ctx, x)``. It looks
for a kernel of the backend that is running, then of those whose kernels that one takes too, and else runs its
reference, which is plain array code.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lamella.arguments import function, text

__all__ = [
    "Primitive",
    "add_rows",
    "affine",
    "affine_gradients",
    "erf",
    "one_hot",
    "pad",
    "primitive",
    "relu",
    "relu_dx",
    "scan",
    "sigmoid",
    "softmax",
    "softplus",
    "take_rows",
]

Kernel = Callable[..., Any]


class Primitive:
    """An array function with kernels; made by `primitive`."""

    def __init__(self, reference: Kernel) -> None:
        functools.update_wrapper(self, function(reference, "primitive: reference", "(xp, *arrays, **options)"))
        self.reference = reference
        with contextlib.suppress(ValueError):  # a builtin function may have none
            signature = inspect.signature(reference)
            xp, *others = signature.parameters.values()
            self.__signature__ = signature.replace(parameters=[xp.replace(name="ctx"), *others])
        self.kernels: dict[str, Kernel] = {}

    def kernel(self, backend: str) -> Callable[[Kernel], Kernel]:
        """Register a kernel for a backend, such as ``"numpy"`` or ``"cupy"``, or ``"onnx"`` for exported graphs.

        A kernel may return `NotImplemented` for what it is not made for; the next one, or the reference, runs then.
        """

        text(backend, "kernel: backend", "'numpy' or 'onnx'")

        def register(kernel: Kernel) -> Kernel:
            self.kernels[backend] = function(kernel, "kernel", "(xp, *arrays, **options)")
            return kernel

        return register

    def __call__(self, ctx: Any, *args: Any, **options: Any) -> Any:
        try:
            xp = ctx.xp
            names = xp.kernels
        except AttributeError:
            name = self.__name__  # type: ignore[attr-defined]
            given = type(ctx).__name__
            raise TypeError(f"{name}: the first argument is ctx, as in {name}(ctx, x, ...); got {given}") from None
        for backend in names:
            kernel = self.kernels.get(backend)
            if kernel is not None:
                result = kernel(xp, *args, **options)
                if result is not NotImplemented:
                    return result
        return self.reference(xp, *args, **options)

    def __repr__(self) -> str:
        kernels = ", ".join(sorted(self.kernels)) or "no"
        return f"<primitive {self.__name__}: {kernels} kernels>"  # type: ignore[attr-defined]


def primitive(reference: Kernel) -> Primitive:
    """Make a primitive of a reference definition ``f(xp, *arrays, **options)``.

    >>> import lamella as lm
    >>> @lm.primitive
    ... def cube(xp, x):
    ...     return x * x * x
    >>> @cube.kernel("onnx")
    ... def _(xp, x):
    ...     return xp.node("Pow", x, xp.constant(np.array(3.0, "float32")), shape=x.shape, dtype=x.dtype)
    >>> cube(lm.backends.get_backend("numpy").xp, np.array([2.0]))
    array([8.])
    """
    return Primitive(reference)


@primitive
def scan(
    xp: Any,
    body: Callable[..., tuple[Any, Any]],
    states: Sequence[Any],
    xs: Sequence[Any],
    *,
    consts: Sequence[Any] = (),
    reverse: bool = False,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Run ``body(states, x_t, *consts) -> (states, ys_t)`` over axis 0 (time) of every array in ``xs``.

    Returns the last states and, for each y, all steps stacked along axis 0, in the order of ``xs`` also when
    ``reverse`` walks it from the end. All of ``states``, ``xs``, ``x_t`` and ``ys_t`` are tuples. In ONNX this is one
    Scan node, https://onnx.ai/onnx/operators/onnx__Scan.html.
    """
    states = tuple(states)
    steps = range(xs[0].shape[0])
    if not steps:
        raise ValueError("scan: axis 0 (time) of xs has no steps")
    rows: list[Any] = [None] * len(steps)
    for t in reversed(steps) if reverse else steps:
        states, rows[t] = body(states, tuple(x[t, ...] for x in xs), *consts)
    return tuple(states), tuple(xp.stack(list(column), axis=0) for column in zip(*rows, strict=True))


@scan.kernel("numpy")
def _(
    xp: Any,
    body: Callable[..., tuple[Any, Any]],
    states: Sequence[Any],
    xs: Sequence[Any],
    *,
    consts: Sequence[Any] = (),
    reverse: bool = False,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Each step's y goes to its place at once, while it is in the cache and before the next needs new memory."""
    states, steps = tuple(states), range(xs[0].shape[0])
    if not steps:
        return scan.reference(xp, body, states, xs)  # type: ignore[no-any-return]  # which says so
    stacked: tuple[Any, ...] = ()
    for k, t in enumerate(reversed(steps) if reverse else steps):
        states, ys = body(states, tuple(x[t] for x in xs), *consts)
        if k == 0:
            stacked = tuple(np.empty((len(steps), *y.shape), y.dtype) for y in ys)
        for all_steps, y in zip(stacked, ys, strict=True):
            all_steps[t] = y
    return tuple(states), stacked


@primitive
def pad(xp: Any, x: Any, widths: Sequence[tuple[int, int]], *, value: float = 0.0) -> Any:
    """Add ``widths[axis] = (before, after)`` cells of one value around an array."""
    for axis, (before, after) in enumerate(widths):
        parts = [x]
        for position, width in ((0, before), (len(parts) + 1, after)):
            if width:
                shape = (*x.shape[:axis], width, *x.shape[axis + 1 :])
                parts.insert(position, xp.full(shape, value, dtype=x.dtype))
        x = xp.concat(parts, axis=axis) if len(parts) > 1 else x
    return x


@pad.kernel("numpy")
def _(xp: Any, x: Any, widths: Sequence[tuple[int, int]], *, value: float = 0.0) -> Any:
    if not any(before or after for before, after in widths):
        return x
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, widths, strict=True))
    if len(shape) == 4:  # channels last in memory
        padded = np.empty((shape[0], *shape[2:], shape[1]), x.dtype).transpose(0, 3, 1, 2)
    else:
        padded = np.empty(shape, x.dtype)
    padded.fill(value)
    padded[tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True))] = x
    return padded


@primitive
def relu(xp: Any, x: Any) -> Any:
    """``max(x, 0)``."""
    return xp.maximum(x, xp.zeros_like(x))


_ROW = 8192  # values of a row from which NumPy's loops over rows run at full speed


@functools.lru_cache(maxsize=8)
def _zeros(size: int, dtype: Any) -> Any:
    return np.zeros(size, dtype)


@relu.kernel("numpy")
def _(xp: Any, x: Any) -> Any:
    """Rows of values against one of zeros, which takes less than half the time of a number in its place."""
    if x.size < _ROW:
        return np.maximum(x, x.dtype.type(0))
    values, shaped = _as_they_lie(x)
    y, zeros, whole = np.empty_like(values), _zeros(_ROW, x.dtype), x.size - x.size % _ROW
    np.maximum(values[:whole].reshape(-1, _ROW), zeros, out=y[:whole].reshape(-1, _ROW))
    np.maximum(values[whole:], zeros[: x.size - whole], out=y[whole:])
    return shaped(y)


def _as_they_lie(x: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The values of an array in their order in memory, and what gives others in that order its shape."""
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    turned = x.transpose(order)
    return turned.reshape(-1), lambda values: values.reshape(turned.shape).transpose(np.argsort(order))


@primitive
def sigmoid(xp: Any, x: Any) -> Any:
    """``1 / (1 + exp(-x))``, without overflow."""
    return xp.exp(xp.minimum(x, 0.0)) / (1.0 + xp.exp(-xp.abs(x)))


@primitive
def softplus(xp: Any, x: Any) -> Any:
    """``log(1 + exp(x))``, without overflow."""
    return relu(xp, x) + xp.log1p(xp.exp(-xp.abs(x)))


@primitive
def softmax(xp: Any, x: Any, *, axis: int = -1) -> Any:
    """``exp(x) / sum(exp(x))`` along one axis, shifted by the maximum."""
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return e / xp.sum(e, axis=axis, keepdims=True)


@softmax.kernel("numpy")
def _(xp: Any, x: Any, *, axis: int = -1) -> Any:
    """In one new array: attention has a number for each pair of steps, too many for the cache to hold three times."""
    y = x - np.max(x, axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= np.sum(y, axis=axis, keepdims=True)
    return y


@primitive
def relu_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    """The gradient of `relu`, whose result is ``y``: dy where that is positive. ``x`` may be None."""
    return dy * xp.astype(y > 0.0, y.dtype)


@relu_dx.kernel("numpy")
def _(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    dx = (y > 0.0).astype(y.dtype)
    dx *= dy
    return dx


@primitive
def affine(xp: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """(N, ..., F), (F, U), (U,) -> (N, ..., U): ``x W + b``, or ``x W`` without a bias."""
    y = x @ kernel
    return y if bias is None else y + bias


@affine.kernel("numpy")
def _(xp: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    y = x @ kernel if x.ndim == 2 else _product_of_rows(x, kernel)
    if bias is not None:
        y += bias
    return y


def _product_of_rows(x: Any, kernel: Any) -> Any:
    """(N, ..., F), (F, U) -> (N, ..., U) in one product, where NumPy makes one for each n."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


@primitive
def affine_gradients(
    xp: Any, x: Any, kernel: Any, dy: Any, *, use_bias: bool = True, wants_dx: bool = True, out: Any = None
) -> tuple[Any, Any, Any]:
    """The gradients of `affine`: of x, of the kernel, and of the bias; None for what is not wanted.

    ``out`` is None or what ``ctx.out`` has for the kernel: on NumPy, the place to compute its gradient in.
    """
    rows, d = (a if a.ndim == 2 else xp.reshape(a, (-1, n)) for a, n in zip((x, dy), kernel.shape, strict=True))
    return dy @ kernel.T if wants_dx else None, rows.T @ d, xp.sum(d, axis=0) if use_bias else None


@affine_gradients.kernel("numpy")
def _(
    xp: Any, x: Any, kernel: Any, dy: Any, *, use_bias: bool = True, wants_dx: bool = True, out: Any = None
) -> tuple[Any, Any, Any]:
    dx = None
    if wants_dx:
        dx = dy @ kernel.T if dy.ndim == 2 else _product_of_rows(dy, kernel.T)
    if x.ndim > 2:
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if len(x) > 1:
        slope = np.matmul(x.T, dy, out=out)
    elif (
        kernel.size > 1 << 14
    ):  # for one row BLAS takes four times as long, and a product of columns half as long again
        slope = np.einsum("i,j->ij", x[0], dy[0], out=out)
    else:
        slope = np.multiply(x.T, dy, out=out)
    return dx, slope, np.add.reduce(dy, 0) if use_bias else None


@primitive
def one_hot(xp: Any, indices: Any, depth: int, *, dtype: Any) -> Any:
    """A new last axis of length ``depth`` with 1 at each index and 0 elsewhere."""
    hit = xp.expand_dims(xp.astype(indices, xp.int64), axis=-1) == xp.arange(depth)
    return xp.astype(hit, dtype)


@functools.lru_cache(maxsize=64)
def _places(depth: int) -> np.ndarray[Any, Any]:
    return np.arange(depth)


@one_hot.kernel("numpy")
def _(xp: Any, indices: Any, depth: int, *, dtype: Any) -> Any:
    hit = indices.astype(np.int64, copy=False)[..., None] == _places(depth)
    return hit.astype(dtype)


@primitive
def take_rows(xp: Any, table: Any, indices: Any) -> Any:
    """``table[indices]`` for integer indices of any shape: the forward pass of an embedding.

    Indices below 0 are errors, as those beyond the table are: nothing counts from the end.
    """
    rows = xp.take(table, xp.reshape(not_from_the_end(xp, indices), (-1,)), axis=0)
    return xp.reshape(rows, (*indices.shape, *table.shape[1:]))


def not_from_the_end(xp: Any, indices: Any) -> Any:
    """Indices with those below 0 moved beyond the end of any table, where they are errors."""
    if indices.dtype not in (xp.int8, xp.int16, xp.int32, xp.int64):
        return indices
    indices = xp.astype(indices, xp.int64)
    return xp.where(indices < 0, 2**62, indices)


@primitive
def add_rows(xp: Any, rows: Any, indices: Any, size: int) -> Any:
    """Sum rows that have equal indices, into ``size`` rows: the backward pass of `take_rows`."""
    flat = xp.reshape(rows, (-1, *rows.shape[len(indices.shape) :]))
    hot = one_hot(xp, xp.reshape(indices, (-1,)), size, dtype=rows.dtype)
    columns = math.prod(flat.shape[1:])
    return xp.reshape(hot.T @ xp.reshape(flat, (-1, columns)), (size, *flat.shape[1:]))


@take_rows.kernel("numpy")
def _(xp: Any, table: Any, indices: Any) -> Any:
    _check_indices(indices, len(table))
    return np.take(table, indices, axis=0)


@take_rows.kernel("cupy")
def _(xp: Any, table: Any, indices: Any) -> Any:
    _check_indices(indices, len(table))  # CuPy's own take begins anew beyond the end
    return xp.take(table, indices, axis=0)


@add_rows.kernel("numpy")
def _(xp: Any, rows: Any, indices: Any, size: int) -> Any:
    """np.add.at on single numbers, for which it has a loop that is several times faster than the one for rows."""
    _check_indices(indices, size)
    inner = rows.shape[indices.ndim :]
    columns = math.prod(inner)
    total = np.zeros(size * columns, rows.dtype)
    places = indices.reshape(-1, 1).astype("int64") * columns + np.arange(columns)
    np.add.at(total, places.reshape(-1), rows.reshape(-1))
    return total.reshape(size, *inner)


def _check_indices(indices: Any, size: int) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise IndexError(
            f"expected indices from 0 to {size - 1}, got {indices.min()} to {indices.max()}. Likely fix: a larger "
            f"table, or other data; lm.Input(..., low=0, high={size}) refuses such data before anything runs"
        )


# The error function in float64, after W. J. Cody, "Rational Chebyshev approximation for the error function",
# Mathematics of Computation 23 (1969): three intervals, each a ratio of polynomials.
_ERF_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02,
     3.20937758913846947e03),
    (1.0, 2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03, 2.84423683343917062e03),
)  # fmt: skip
_ERFC_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e00, 6.61191906371416295e01,
     2.98635138197400131e02, 8.81952221241769090e02, 1.71204761263407058e03, 2.05107837782607147e03,
     1.23033935479799725e03),
    (1.0, 1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02, 1.62138957456669019e03,
     3.29079923573345963e03, 4.36261909014324716e03, 3.43936767414372164e03, 1.23033935480374942e03),
)  # fmt: skip


def _ratio(z: Any, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    above, below = (functools.reduce(lambda sum_, c: sum_ * z + c, row[1:], row[0]) for row in coefficients)
    return above / below


@primitive
def erf(xp: Any, x: Any) -> Any:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, to about 1e-15."""
    near = xp.clip(x, -0.46875, 0.46875)
    far = xp.clip(xp.abs(x), 0.46875, 6.0)  # erf(6) is 1 in float64
    tail = 1.0 - xp.exp(-far * far) * _ratio(far, _ERFC_MIDDLE)
    return xp.where(xp.abs(x) <= 0.46875, near * _ratio(near * near, _ERF_NEAR), xp.where(x < 0.0, -tail, tail))


# In float32, erf(x) = tanh(x p(x^2)) with a polynomial p of degree 7, by weighted least squares on [0, 4], beyond which
# erf is 1: tanh is fast, and keeps small numbers and the limits right. Errors reach 3 units in the last place.
_ERF_FLOAT32 = tuple(
    np.float32(c)
    for c in (
        1.1283792471240297, 0.10276986470786713, -1.952895705096998e-4, -6.148368872799674e-4, 8.459597395265401e-5,
        -4.79447047894159e-6, 2.7562120969598566e-8, 5.422139028594083e-9,
    )
)  # fmt: skip
_BLOCK = 1 << 14  # numbers that a core's cache holds several times


@erf.kernel("numpy")
def _(xp: Any, x: Any) -> Any:
    if x.dtype != np.float32:
        return erf.reference(xp, x)
    values, shaped = _as_they_lie(x)
    y = np.empty_like(values)
    for start in range(0, values.size, _BLOCK):
        some = slice(start, start + _BLOCK)
        _erf_float32(values[some], y[some])
    return shaped(y)


def _erf_float32(x: Any, y: Any) -> None:
    near = np.clip(x, np.float32(-4.0), np.float32(4.0))
    z = near * near
    *rest, last = _ERF_FLOAT32
    np.multiply(z, last, out=y)
    for c in rest[:0:-1]:
        y += c
        y *= z
    y += rest[0]
    y *= near
    np.tanh(y, out=y)


def __dir__() -> list[str]:
    return __all__
