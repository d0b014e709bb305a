"""Merging: several arrays become one, element by element, end to end, or by products along an axis."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import lamella as lm
from lamella.arguments import flag, is_axis
from lamella.errors import shown
from lamella.primitives import Primitive
from lamella.testing import Specimen

__all__ = [
    "Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract",
    "add", "average", "maximum", "minimum", "multiply", "subtract",
]  # fmt: skip

_EPSILON = 1e-7  # the least length by which Dot divides, as in Keras


class _Merging(lm.Layer):
    """What layers that merge arrays element by element have in common. Abstract.

    ``y = merge(xp, *xs)``. ``gradient(xp, dy, k, len(xs), y, *xs)`` is that of x_k before it is summed over the axes
    along which x_k was repeated. A linear merge does without y and xs, so that they need not be kept for it.
    """

    merge: Primitive
    gradient: Callable[..., Any]
    is_linear = False
    most: float = math.inf  # inputs

    def build(self, declare: lm.Declare, *inputs: lm.ArraySpec) -> lm.ArraySpec:
        if not 2 <= len(inputs) <= self.most:
            raise lm.GraphError(f"expected {'two' if self.most == 2 else 'two or more'} inputs, got {len(inputs)}")
        if not all(x.is_float for x in inputs):
            raise lm.GraphError(f"expected floats, got {_odd(inputs)}. {_AS_FLOATS}")
        rank = max(len(x.shape) for x in inputs)
        shapes = [("N", *(1,) * (rank - len(x.shape)), *x.shape[1:]) for x in inputs]
        whole = _broadcast(shapes)
        if any(size not in (1, most) for shape in shapes for size, most in zip(shape, whole, strict=True)):
            raise lm.GraphError(
                f"expected shapes that are equal, or 1 where they differ, got {_list(inputs)}. Axes that are missing "
                "are added after the batch; Reshape puts them elsewhere, Dense or a 1x1 convolution changes channels"
            )
        declare.features(None)
        return inputs[0].replace(shape=whole, low=None, high=None)

    def forward_pass(self, ctx: lm.Context, *inputs: Any) -> Any:
        rank = max(x.ndim for x in inputs)
        xs = [x[(slice(None), *(None,) * (rank - x.ndim), ...)] if x.ndim < rank else x for x in inputs]
        y = self.merge(ctx, *xs)
        ctx.save([x.shape for x in inputs], *(() if self.is_linear else (y, *xs)))
        return y

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        shapes, *values = ctx.saved
        return tuple(
            _sum_to(ctx.xp, self.gradient(ctx.xp, dy, k, len(shapes), *values), shape) if wanted else None
            for k, (shape, wanted) in enumerate(zip(shapes, ctx.wants_dx, strict=True))
        )


def _list(inputs: Sequence[lm.ArraySpec]) -> str:
    return " and ".join(map(str, inputs))


def _odd(inputs: Sequence[lm.ArraySpec]) -> str:
    """The inputs whose dtype is not that of most floats."""
    floats = [x.dtype for x in inputs if x.is_float] or [x.dtype for x in inputs]
    usual = max(floats, key=floats.count)
    places: dict[str, list[str]] = {}
    for k, x in enumerate(inputs):
        if x.dtype != usual:
            places.setdefault(x.dtype, []).append(f"inputs[{k}]")
    odd = [f"{dtype} for {', '.join(own)}" for dtype, own in places.items()]
    return f"{' and '.join(odd)}, and {usual} for the others" if odd else usual


_AS_FLOATS = (
    "Likely fix: lm.Input(shape) without a dtype, which takes integers as floats; for integers that stand for "
    "categories, an Embedding"
)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1  # in a traced graph, a size may be symbolic


def _broadcast(shapes: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """The sizes of arrays of equally many axes together."""
    return tuple(next((size for size in sizes if not _is_one(size)), 1) for sizes in zip(*shapes, strict=True))


def _sum_to(xp: Any, d: Any, shape: Sequence[Any]) -> Any:
    """Sum over the axes along which an array of this shape was repeated."""
    new = d.ndim - len(shape)  # axes after the batch
    once = (shape[0], *(1,) * new, *shape[1:])
    repeated = tuple(k for k in range(1, d.ndim) if _is_one(once[k]) and not _is_one(d.shape[k]))
    d = xp.sum(d, axis=repeated, keepdims=True) if repeated else d
    return xp.reshape(d, shape) if new else d


def _docs(node: str) -> str:
    return f"https://onnx.ai/onnx/operators/onnx__{node}.html"


@lm.primitive
def add(xp: Any, *xs: Any) -> Any:
    """x_1 + x_2 + ..."""
    return reduce(operator.add, xs)


@lm.primitive
def subtract(xp: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return a - b


@lm.primitive
def average(xp: Any, *xs: Any) -> Any:
    """(x_1 + x_2 + ...) / n."""
    return reduce(operator.add, xs) / float(len(xs))


@lm.primitive
def multiply(xp: Any, *xs: Any) -> Any:
    """x_1 x_2 ..."""
    return reduce(operator.mul, xs)


@lm.primitive
def maximum(xp: Any, *xs: Any) -> Any:
    """The greatest of x_1, x_2, ..."""
    return reduce(xp.maximum, xs)


@lm.primitive
def minimum(xp: Any, *xs: Any) -> Any:
    """The least of x_1, x_2, ..."""
    return reduce(xp.minimum, xs)


def _native(merge: Primitive, node: str, *, least: int = 2, dtypes: Sequence[str] = ("float32", "float64")) -> None:
    """One ONNX operator for any number of inputs, from ``least`` on, where onnxruntime has it for the dtype."""

    @merge.kernel("onnx")
    def _(xp: Any, *xs: Any) -> Any:
        if len(xs) < least or xs[0].dtype.name not in dtypes:
            return merge.reference(xp, *xs)
        return xp.node(node, *xs, shape=_broadcast([x.shape for x in xs]), dtype=xs[0].dtype)


_native(add, "Sum", least=3)
_native(average, "Mean", dtypes=("float32",))
_native(maximum, "Max")
_native(minimum, "Min")


class Add(_Merging):
    """The sum of the inputs: ``y = x_1 + x_2 + ...``.

    Shapes: two or more inputs (N, ...), equal or 1 where they differ -> (N, ...). Along an axis of size 1 an array is
    repeated, and its gradient is the sum over that axis. One with fewer axes gets new ones after the batch:
    (N, channels) goes with (N, time, channels).

    Raises:
        GraphError: for another number of inputs, integers, or shapes that do not go together.

    Source: https://onnx.ai/onnx/operators/onnx__Sum.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Add()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[10.,  6.]], dtype=float32)
    """

    merge, is_linear = add, True

    @staticmethod
    def gradient(xp: Any, dy: Any, k: int, count: int) -> Any:
        return dy


class Subtract(_Merging):
    """The first input minus the second: ``y = x_1 - x_2``.

    Shapes: two inputs (N, ...), broadcast as in `Add` -> (N, ...).

    Raises:
        GraphError: for another number of inputs, integers, or shapes that do not go together.

    Source: https://onnx.ai/onnx/operators/onnx__Sub.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Subtract()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[ 2., -2.]], dtype=float32)
    """

    merge, is_linear, most = subtract, True, 2

    @staticmethod
    def gradient(xp: Any, dy: Any, k: int, count: int) -> Any:
        return -dy if k else dy


class Average(_Merging):
    """The mean of n inputs: ``y = (x_1 + x_2 + ...) / n``.

    Shapes: two or more inputs (N, ...), broadcast as in `Add` -> (N, ...).

    Raises:
        GraphError: for another number of inputs, integers, or shapes that do not go together.

    Source: https://onnx.ai/onnx/operators/onnx__Mean.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Average()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[5., 3.]], dtype=float32)
    """

    merge, is_linear = average, True

    @staticmethod
    def gradient(xp: Any, dy: Any, k: int, count: int) -> Any:
        return dy * (1.0 / count)


class Multiply(_Merging):
    """The product of the inputs: ``y = x_1 x_2 ...``.

    Shapes: two or more inputs (N, ...), broadcast as in `Add` -> (N, ...).

    Raises:
        GraphError: for another number of inputs, integers, or shapes that do not go together.

    Source: https://onnx.ai/onnx/operators/onnx__Mul.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Multiply()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[24.,  8.]], dtype=float32)
    """

    merge = multiply

    @staticmethod
    def gradient(xp: Any, dy: Any, k: int, count: int, y: Any, *xs: Any) -> Any:
        return reduce(operator.mul, (*xs[:k], *xs[k + 1 :]), dy)


def _to_the_first(xp: Any, dy: Any, k: int, count: int, y: Any, *xs: Any) -> Any:
    """dy where x_k equals y and none before it does."""
    return dy * xp.astype(reduce(xp.logical_and, [x != y for x in xs[:k]], xs[k] == y), dy.dtype)


class Maximum(_Merging):
    """The greatest of the inputs: ``y = max(x_1, x_2, ...)``.

    Where several are equal, the first has the gradient; PyTorch divides it.

    Shapes: two or more inputs (N, ...), broadcast as in `Add` -> (N, ...).

    Raises:
        GraphError: for another number of inputs, integers, or shapes that do not go together.

    Source: https://onnx.ai/onnx/operators/onnx__Max.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Maximum()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[6., 4.]], dtype=float32)
    """

    merge, gradient = maximum, staticmethod(_to_the_first)


class Minimum(_Merging):
    """The least of the inputs: ``y = min(x_1, x_2, ...)``.

    Where several are equal, the first has the gradient; PyTorch divides it.

    Shapes: two or more inputs (N, ...), broadcast as in `Add` -> (N, ...).

    Raises:
        GraphError: for another number of inputs, integers, or shapes that do not go together.

    Source: https://onnx.ai/onnx/operators/onnx__Min.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Minimum()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[4., 2.]], dtype=float32)
    """

    merge, gradient = minimum, staticmethod(_to_the_first)


class Concatenate(lm.Layer):
    """Puts the inputs end to end along one axis: ``y = [x_1, x_2, ...]``.

    Arguments:
        axis: which one, counted with the batch axis; -1, the last, for features. Channels of images are axis 1.

    Shapes: two or more inputs (N, ...) that are equal but for the axis -> (N, ...), its sizes added.

    Raises:
        ArgumentError: if ``axis`` is no int, or the batch axis.
        GraphError: for fewer than two inputs, shapes that differ elsewhere, an axis of unknown size, or several dtypes.

    Source: https://onnx.ai/onnx/operators/onnx__Concat.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((1,))
    >>> lm.Model([a, b], Concatenate()(a, b)).predict(([[6.0, 2.0]], [[4.0]]))
    array([[6., 2., 4.]], dtype=float32)
    """

    def __init__(self, axis: int = -1):
        self.axis = _axis_argument(axis, "axis")

    def build(self, declare: lm.Declare, *inputs: lm.ArraySpec) -> lm.ArraySpec:
        if len(inputs) < 2:
            raise lm.GraphError(f"expected two or more inputs, got {len(inputs)}")
        if len({x.dtype for x in inputs}) > 1:
            raise lm.GraphError(f"expected inputs of one dtype, got {_odd(inputs)}. {_AS_FLOATS}")
        axes = [_place(x, self.axis) for x in inputs]
        others = {(*x.shape[:axis], "here", *x.shape[axis + 1 :]) for x, axis in zip(inputs, axes, strict=True)}
        sizes = [x.shape[axis] for x, axis in zip(inputs, axes, strict=True)]
        if len(others) > 1 or not all(isinstance(size, int) for size in sizes):
            raise lm.GraphError(
                f"expected shapes that are equal but for axis={self.axis}, where sizes must be known, got "
                f"{_list(inputs)}. Channels of images are axis 1, features the last"
            )
        axis = axes[0]
        declare.features(-1 if self.axis == -1 else None, fix=f"the argument axis=1, or axis={axis} if that is meant")
        total = sum(size for size in sizes if isinstance(size, int))
        lows, highs = ([limit for x in inputs if (limit := getattr(x, end)) is not None] for end in ("low", "high"))
        return inputs[0].replace(
            shape=(*inputs[0].shape[:axis], total, *inputs[0].shape[axis + 1 :]),
            low=min(lows) if len(lows) == len(inputs) else None,
            high=max(highs) if len(highs) == len(inputs) else None,
        )

    def forward_pass(self, ctx: lm.Context, *inputs: Any) -> Any:
        ctx.save([x.shape[self.axis] for x in inputs])
        return ctx.xp.concat(list(inputs), axis=self.axis)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (sizes,) = ctx.saved
        ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        before = (slice(None),) * (self.axis % dy.ndim)
        return tuple(dy[(*before, slice(end - size, end), ...)] for size, end in zip(sizes, ends, strict=True))


class Dot(lm.Layer):
    """Products summed along an axis of each of two inputs: ``y[n, i, j] = sum over k of a[n, i, k] b[n, j, k]``.

    Arguments:
        axes: the axis of both, or (that of the first, that of the second); counted with the batch axis, 0.
        normalize: whether vectors along these axes are brought to length 1 first, so that ``y`` is the cosine of the
            angle between them. Lengths below 1e-7 count as 1e-7.

    Shapes: (N, A..., K) and (N, B..., K), with K at the given axes -> (N, A..., B...); (N, K) and (N, K) -> (N, 1).

    Raises:
        ArgumentError: if ``axes`` are no ints, or the batch axis.
        GraphError: for another number of inputs, integers, or axes of different sizes.

    Source: https://onnx.ai/onnx/operators/onnx__MatMul.html

    >>> import lamella as lm
    >>> a, b = lm.Input((2,)), lm.Input((2,))
    >>> lm.Model([a, b], Dot(1)(a, b)).predict(([[6.0, 2.0]], [[4.0, 1.0]]))
    array([[26.]], dtype=float32)
    """

    def __init__(self, axes: int | tuple[int, int], normalize: bool = False):
        both = axes if isinstance(axes, tuple) else (axes, axes)
        if len(both) != 2:
            raise lm.ArgumentError(f"axes: expected an int or two ints, got {axes!r}")
        self.axes = tuple(_axis_argument(axis, "axes") for axis in both)
        self.normalize = flag(normalize, "normalize")

    def build(self, declare: lm.Declare, *inputs: lm.ArraySpec) -> lm.ArraySpec:
        if len(inputs) != 2:
            raise lm.GraphError(f"expected two inputs, got {len(inputs)}")
        if not all(x.is_float for x in inputs):
            raise lm.GraphError(f"expected floats, got {_odd(inputs)}. {_AS_FLOATS}")
        places = [_place(x, axis) for x, axis in zip(inputs, self.axes, strict=True)]
        along, other = (x.shape[k] for x, k in zip(inputs, places, strict=True))
        if along != other:
            raise lm.GraphError(
                f"expected equal sizes along axes={self.axes}, got {along!r} and {other!r} in {_list(inputs)}"
            )
        rest = [size for x, k in zip(inputs, places, strict=True) for size in (*x.shape[1:k], *x.shape[k + 1 :])]
        return inputs[0].replace(shape=("N", *(rest or [1])), low=None, high=None)

    def forward_pass(self, ctx: lm.Context, a: Any, b: Any) -> Any:
        xp = ctx.xp
        lengths = []
        if self.normalize:
            pairs = zip((a, b), self.axes, strict=True)
            lengths = [xp.sqrt(xp.sum(x * x, axis=axis, keepdims=True)) for x, axis in pairs]
            a, b = (x / xp.maximum(length, _EPSILON) for x, length in zip((a, b), lengths, strict=True))
        ctx.save(a, b, *lengths)
        (rows, first), (columns, second) = self._matrices(xp, a, b)
        rest = [*first[1:-1], *second[2:]]
        return xp.reshape(rows @ columns, (a.shape[0], *(rest or [1])))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        xp, (a, b, *lengths) = ctx.xp, ctx.saved
        (rows, first), (columns, second) = self._matrices(xp, a, b)
        d = xp.reshape(dy, (a.shape[0], rows.shape[1], columns.shape[2]))
        # d (N, I, J), rows (N, I, K), columns (N, K, J)
        products = (
            (a, d @ xp.permute_dims(columns, (0, 2, 1)), first, _last(a.ndim, self.axes[0])),
            (b, xp.permute_dims(rows, (0, 2, 1)) @ d, second, _front(b.ndim, self.axes[1])),
        )
        gradients = []
        for k, (x, product, shape, order) in enumerate(products):
            dx = xp.permute_dims(xp.reshape(product, shape), tuple(map(order.index, range(x.ndim))))
            if lengths:  # only what is perpendicular to a vector turns it; one shorter than epsilon also grows
                along = xp.sum(x * dx, axis=self.axes[k], keepdims=True)
                along = along * xp.astype(lengths[k] > _EPSILON, dx.dtype)
                dx = (dx - x * along) / xp.maximum(lengths[k], _EPSILON)
            gradients.append(dx)
        return tuple(gradients)

    def _matrices(self, xp: Any, a: Any, b: Any) -> Any:
        """(N, I, K) and (N, K, J), each with the shape that it has before its other axes are taken together."""
        a, b = (
            xp.permute_dims(a, _last(a.ndim, self.axes[0])),
            xp.permute_dims(b, _front(b.ndim, self.axes[1])),
        )
        # (N, A..., K) -> (N, I, K); (N, K, B...) -> (N, K, J)
        rows = xp.reshape(a, (a.shape[0], math.prod(a.shape[1:-1]), a.shape[-1]))
        columns = xp.reshape(b, (b.shape[0], b.shape[1], math.prod(b.shape[2:])))
        return (rows, a.shape), (columns, b.shape)


def _axis_argument(value: Any, name: str) -> int:
    if not is_axis(value) or value == 0:
        raise lm.ArgumentError(f"{name}: expected ints other than 0, the batch axis, got {shown(value)}")
    return value


def _place(x: lm.ArraySpec, axis: int) -> int:
    """An axis counted from the front."""
    rank = len(x.shape)
    if not (0 < axis < rank or -rank < axis < 0):
        raise lm.GraphError(f"expected axis {axis} to be one of the axes after the batch, got {x}")
    return axis % rank


def _last(rank: int, axis: int) -> tuple[int, ...]:
    """The order of axes that puts one last."""
    return (*(k for k in range(rank) if k != axis % rank), axis % rank)


def _front(rank: int, axis: int) -> tuple[int, ...]:
    """The order of axes that puts one right after the batch."""
    return (0, axis % rank, *(k for k in range(1, rank) if k != axis % rank))


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "add": Add,
        "average": Average,
        "concatenate": Concatenate,
        "dot": Dot,
        "maximum": Maximum,
        "minimum": Minimum,
        "multiply": Multiply,
        "subtract": Subtract,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    row, one, image = lm.ArraySpec(("N", 3)), lm.ArraySpec(("N", 1)), lm.ArraySpec(("N", 3, 2, 4))
    series, wide = lm.ArraySpec(("N", "T", 3)), lm.ArraySpec(("N", 2, "T", 3))
    labels = lm.ArraySpec(("N", 3), "int64", low=0, high=9)
    refuses = (
        ((row,), "inputs, got 1"),
        ((row, lm.ArraySpec(("N", 4))), "equal, or 1"),
        ((series, lm.ArraySpec(("N", 7, 3))), "equal, or 1"),
        ((row, labels), "expected floats"),
    )
    merging = [
        Specimen(layer(), inputs, nodes, docs=_docs(docs), refuses=refuses if inputs == (row, row) else ())
        for layer, node, docs in [
            (Add, "Add", "Sum"), (Average, "Mean", "Mean"), (Maximum, "Max", "Max"),
            (Minimum, "Min", "Min"), (Multiply, "Mul", "Mul"), (Subtract, "Sub", "Sub"),
        ]
        for inputs, nodes in [
            ((row, row), (node,)),
            ((series, row), ("Unsqueeze", node)),
            ((one, row, row), ("Sum",) if layer is Add else ("Mul", "Mul") if layer is Multiply else (node,)),
        ]
        if len(inputs) == 2 or layer is not Subtract
    ]  # fmt: skip
    ends, product = _docs("Concat"), _docs("MatMul")
    return [
        *merging,
        Specimen(Add(), (image, lm.ArraySpec(("N", 3, 1, 1))), ("Add",), docs=_docs("Sum")),
        Specimen(
            Concatenate(), (row, one, row), ("Concat",), docs=ends,
            refuses=(
                ((row,), "two or more inputs"),
                ((row, labels), "of one dtype"),
                ((series, row), "equal but for axis=-1"),
                ((lm.ArraySpec(("N",)),) * 2, "one of the axes after the batch"),
            ),
        ),
        Specimen(Concatenate(1), (image, image), ("Concat",), docs=ends, refuses=(((series,) * 2, "must be known"),)),
        Specimen(Concatenate(), (series, series), ("Concat",), docs=ends),
        Specimen(Concatenate(), (labels, labels), ("Concat",), docs=ends),
        Specimen(
            Dot(1), (row, row), ("Reshape", "Reshape", "MatMul", "Reshape"), docs=product,
            refuses=(
                ((row,), "expected two inputs"),
                ((row, labels), "expected floats"),
                ((row, one), "got 3 and 1"),
                ((lm.ArraySpec(("N",)),) * 2, "one of the axes after the batch"),
            ),
        ),
        Specimen(Dot((2, 2)), (series, series), ("Transpose", "MatMul"), docs=product),
        Specimen(Dot((-1, 1)), (series, wide.replace(shape=("N", 3, 2, 2))), None, docs=product),
        Specimen(Dot(-2, normalize=True), (series, wide), None, docs=product),
        Specimen(Dot(1, normalize=True), (row, row), None, docs=product),
    ]  # fmt: skip
