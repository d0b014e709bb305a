"""Arrays of a traced graph: what layers and kernels get in place of NumPy arrays.

A `Traced` array is either a constant, still held in NumPy, or the name of a value in the graph. Both may be held
smaller than their shape says, where they would only be repeated: ``zeros((N, 3))`` is one 0 until something other than
an elementwise operator needs all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

import numpy as np

from lamella.backends.namespace import NAMESPACE
from lamella_onnx.tracer.dims import Dim, Size, TraceError

__all__ = ["Traced"]

_UFUNCS = {  # what NumPy's arrays may ask of a traced array that stands beside them: ufunc -> function
    **{name: name for name in ("add", "divide", "matmul", "multiply", "subtract")},
    **{name: name for name in ("equal", "greater", "greater_equal", "less", "less_equal", "not_equal")},
    "power": "pow",
}


class _Graph(Protocol):
    """What an array needs of the graph that it belongs to."""

    current_layer: str

    def call(self, name: str, /, *args: Any, **options: Any) -> Any: ...

    def constant(self, array: Any) -> Traced: ...


def _method(function: str) -> Callable[..., Any]:
    return lambda x, *others: x.graph.call(function, x, *others)


def _swapped(function: str) -> Callable[..., Any]:
    return lambda x, other: x.graph.call(function, other, x)


class Traced:
    """An array of a traced graph: shape and dtype, operators and slicing, but no value.

    >>> from lamella_onnx.tracer import new_graph
    >>> x = new_graph(21).input("x", ("N", 4), "float32")
    >>> (2.0 * x + 1.0)[:, ::2].shape
    (N, 2)
    """

    __slots__ = ("dtype", "graph", "held", "layer", "shape", "source")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        graph: _Graph,
        source: np.ndarray[Any, Any] | str,
        shape: Iterable[Size],
        dtype: Any,
        held: Iterable[Size] | None = None,
    ) -> None:
        self.graph = graph
        self.source = source
        self.shape = tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.held = self.shape if held is None else tuple(held)
        self.layer = graph.current_layer

    @property
    def ndim(self) -> int:
        """How many axes the array has."""
        return len(self.shape)

    @property
    def T(self) -> Any:
        """The array with its two axes exchanged."""
        if self.ndim != 2:
            raise TraceError(f"x.T of {self!r}: it is for two axes; use xp.permute_dims")
        return self.graph.call("permute_dims", self, (1, 0))

    @property
    def constant(self) -> np.ndarray[Any, Any] | None:
        """The value, if it is known and of known size."""
        known = isinstance(self.source, np.ndarray) and not any(isinstance(size, Dim) for size in self.shape)
        return np.broadcast_to(self.source, self.shape) if known else None  # type: ignore[arg-type]

    __getitem__ = _method("getitem")

    __neg__, __pos__, __abs__, __invert__ = map(_method, ("negative", "positive", "abs", "invert"))
    __add__, __radd__ = _method("add"), _swapped("add")
    __sub__, __rsub__ = _method("subtract"), _swapped("subtract")
    __mul__, __rmul__ = _method("multiply"), _swapped("multiply")
    __truediv__, __rtruediv__ = _method("divide"), _swapped("divide")
    __floordiv__, __rfloordiv__ = _method("floor_divide"), _swapped("floor_divide")
    __mod__, __rmod__ = _method("remainder"), _swapped("remainder")
    __pow__, __rpow__ = _method("pow"), _swapped("pow")
    __matmul__, __rmatmul__ = _method("matmul"), _swapped("matmul")
    __and__, __rand__ = _method("bitwise_and"), _swapped("bitwise_and")
    __or__, __ror__ = _method("bitwise_or"), _swapped("bitwise_or")
    __xor__, __rxor__ = _method("bitwise_xor"), _swapped("bitwise_xor")
    __lshift__, __rlshift__ = _method("left_shift"), _swapped("left_shift")
    __rshift__, __rrshift__ = _method("right_shift"), _swapped("right_shift")
    __lt__, __le__, __gt__, __ge__ = map(_method, ("less", "less_equal", "greater", "greater_equal"))
    __eq__, __ne__ = map(_method, ("equal", "not_equal"))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Any:
        """NumPy arrays leave operators to us; its functions can't work here."""
        if method == "__call__" and ufunc.__name__ in _UFUNCS and len(inputs) == 2:
            left, right = (x if isinstance(x, Traced) else self.graph.constant(x) for x in inputs)
            return self.graph.call(_UFUNCS[ufunc.__name__], left, right)
        raise TraceError(f"numpy.{ufunc.__name__} was called on {self!r}; use ctx.xp.{ufunc.__name__}")

    def _no_value(self, *_: Any, **__: Any) -> NoReturn:
        raise TraceError(
            f"the value of {self!r} is not known when a model is exported, so it can't become a number or a NumPy "
            "array, decide an 'if' or be looped over; use xp.where, lamella.scan and the functions of ctx.xp"
        )

    __bool__ = __int__ = __float__ = __index__ = __iter__ = __len__ = __array__ = __contains__ = _no_value

    def __getattr__(self, name: str) -> Any:
        hint = f"; use ctx.xp.{name}(x, ...)" if name in NAMESPACE else ""
        raise AttributeError(f"arrays of ctx.xp have no {name!r}{hint}")

    def __repr__(self) -> str:
        return f"<{'constant' if isinstance(self.source, np.ndarray) else 'traced'} array {self.shape} {self.dtype}>"
