"""Layers that put the elements of each sample into another shape, in C order of (N, ...), or repeat them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import choice, pair
from lamella.errors import shown
from lamella.primitives import pad
from lamella.testing import Specimen
from lamella_layers.windows import image_shape

__all__ = ["Flatten", "Permute", "Reshape", "UpSampling2D", "upsample", "upsample_dx"]


class Flatten(lm.Layer):
    """All elements of a sample in one row: ``y[n, (c H + h) W + w] = x[n, c, h, w]``.

    Shapes: (N, ...) -> (N, product of ...). Images are read channel by channel, as ONNX and PyTorch do.

    Raises:
        GraphError: if an axis beside the batch has no known size.

    Source: https://onnx.ai/onnx/operators/onnx__Flatten.html

    >>> import lamella as lm
    >>> lm.Sequential([Flatten()], input_shape=(3, 8, 8)).predict([[[[0.5] * 8] * 8] * 3]).shape
    (1, 192)
    """

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        return x.replace(shape=("N", math.prod(_known(x))))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return ctx.xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        return ctx.xp.reshape(dy, x.shape)


class Reshape(lm.Layer):
    """The elements of each sample in another shape: element k, in C order, stays element k, ``y[n][k] = x[n][k]``.

    Arguments:
        shape: the new shape without the batch axis. One size may be -1: what is left over.

    Shapes: (N, ...) -> (N, *shape).

    Raises:
        ArgumentError: if ``shape`` holds anything but positive sizes and at most one -1.
        GraphError: if the sizes do not multiply to the number of elements of a sample.

    Source: https://onnx.ai/onnx/operators/onnx__Reshape.html

    >>> import lamella as lm
    >>> lm.Sequential([Reshape((1, 8, -1))], input_shape=(64,)).predict([[0.0] * 64]).shape
    (1, 1, 8, 8)
    """

    def __init__(self, shape: tuple[int, ...]):
        shape = (shape,) if isinstance(shape, int) else shape
        sizes = isinstance(shape, tuple) and all(type(n) is int and (0 < n < 2**31 or n == -1) for n in shape)
        if not sizes or shape.count(-1) > 1:
            raise lm.ArgumentError(f"shape: expected positive ints, one of which may be -1, got {shown(shape)}")
        self.shape = shape

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        size, given = math.prod(_known(x)), math.prod(n for n in self.shape if n != -1)
        if size % given if -1 in self.shape else size != given:
            raise lm.GraphError(
                f"expected {'a multiple of ' if -1 in self.shape else ''}{given} elements in each sample for "
                f"shape={self.shape}, got {size} in {x}. The batch axis stays and is not part of shape"
            )
        return x.replace(shape=("N", *(size // given if n == -1 else n for n in self.shape)))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        rest = math.prod(x.shape[1:]) // math.prod(n for n in self.shape if n != -1)
        return ctx.xp.reshape(x, (x.shape[0], *(rest if n == -1 else n for n in self.shape)))

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        return ctx.xp.reshape(dy, x.shape)


class Permute(lm.Layer):
    """The axes of each sample in another order: axis ``k`` of the output is axis ``dims[k - 1]`` of the input.

    With dims (3, 1, 2), ``y[n, k, i, j] = x[n, i, j, k]``.

    Arguments:
        dims: the axes 1, 2, ... of the input in the order in which the output has them; the batch, axis 0, stays.

    Shapes: (N, s_1, s_2, ...) -> (N, s_dims[0], s_dims[1], ...).

    Raises:
        ArgumentError: if ``dims`` is no permutation of 1, 2, ...
        GraphError: if the input has another number of axes.

    Source: https://onnx.ai/onnx/operators/onnx__Transpose.html

    >>> import lamella as lm
    >>> lm.Sequential([Permute((3, 1, 2))], input_shape=(28, 32, 3)).output_specs[0].shape  # NHWC to NCHW
    ('N', 3, 28, 32)
    """

    def __init__(self, dims: tuple[int, ...]):
        ints = isinstance(dims, tuple) and all(type(axis) is int for axis in dims)
        if not ints or sorted(dims) != list(range(1, len(dims) + 1)):
            raise lm.ArgumentError(
                f"dims: expected each of the axes 1, 2, ... once, such as (2, 1), got {shown(dims)}; the batch, axis "
                "0, stays where it is"
            )
        self.order = (0, *dims)

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if len(x.shape) != len(self.order):
            raise lm.GraphError(f"expected {len(self.order) - 1} axes beside the batch, one for each of dims, got {x}")
        return x.replace(shape=tuple(x.shape[axis] for axis in self.order))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        return ctx.xp.permute_dims(x, self.order)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return ctx.xp.permute_dims(dy, tuple(map(self.order.index, range(len(self.order)))))


class UpSampling2D(lm.Layer):
    """Makes images larger: every pixel becomes a block of pixels.

    Nearest: ``y[n, c, p, q] = x[n, c, p // sh, q // sw]``; its gradient is the sum over the block. Bilinear: pixel p of
    the output lies at ``u = (p + 1/2) / s - 1/2`` of the input and is ``(1 - f) x[i] + f x[i + 1]`` with ``i`` the
    whole and ``f`` the rest of ``u``, along both axes; beyond the border, the image goes on as its last pixel.

    Arguments:
        size: how many times as high and as wide; one int for both.
        interpolation: "nearest" or "bilinear".

    Shapes: (N, channels, height, width) -> (N, channels, height sh, width sw).

    Raises:
        ArgumentError: if ``size`` is not positive, or ``interpolation`` another word.
        GraphError: if the input is no image.

    Source: https://onnx.ai/onnx/operators/onnx__Resize.html, with "half_pixel" coordinates for bilinear; PyTorch calls
    these ``align_corners=False``.

    >>> import lamella as lm
    >>> lm.Sequential([UpSampling2D((1, 2))], input_shape=(1, 1, 2)).predict([[[[0.0, 1.0]]]])
    array([[[[0., 0., 1., 1.]]]], dtype=float32)
    >>> lm.Sequential([UpSampling2D((1, 2), "bilinear")], input_shape=(1, 1, 2)).predict([[[[0.0, 1.0]]]])
    array([[[[0.  , 0.25, 0.75, 1.  ]]]], dtype=float32)
    """

    def __init__(self, size: int | tuple[int, int] = 2, interpolation: str = "nearest"):
        self.size = pair(size, "size")
        self.interpolation = choice(interpolation, "interpolation", ("nearest", "bilinear"))

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, height, width = image_shape(x)
        declare.features(1)
        return x.replace(shape=("N", channels, height * self.size[0], width * self.size[1]))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        return upsample(ctx, x, self.size, self.interpolation)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return upsample_dx(ctx, dy, self.size, self.interpolation)


@lm.primitive
def upsample(xp: Any, x: Any, size: tuple[int, int], interpolation: str) -> Any:
    """Images that are ``size`` times as high and wide: along each axis, the pixels that each pixel becomes."""
    for axis, times in enumerate(size, start=2):
        n = x.shape[axis]
        x = xp.concat([_cut(x, axis, slice(1)), x, _cut(x, axis, slice(n - 1, n))], axis=axis)
        three = [_cut(x, axis, slice(k, k + n)) for k in range(3)]
        x = xp.stack([_mix(shares, three) for shares in _shares(times, interpolation)], axis=axis + 1)
        # (N, C, H, s, W) -> (N, C, H*s, W), or (N, C, H, W, s) -> (N, C, H, W*s)
        x = xp.reshape(x, (*x.shape[:axis], n * times, *x.shape[axis + 2 :]))
    return x


@lm.primitive
def upsample_dx(xp: Any, dy: Any, size: tuple[int, int], interpolation: str) -> Any:
    """The gradient of `upsample`: each pixel takes its shares of all that it went into."""
    for axis, times in enumerate(size, start=2):
        parts = [_cut(dy, axis, slice(k, None, times)) for k in range(times)]
        n, shares = parts[0].shape[axis], zip(*_shares(times, interpolation), strict=True)
        dx = sum(_around(xp, _mix(share, parts), axis, k, 2 - k) for k, share in enumerate(shares) if any(share))
        # what went beyond a border comes from the pixel at it
        before, dy, after = (_cut(dx, axis, part) for part in (slice(1), slice(1, n + 1), slice(n + 1, n + 2)))
        dy = dy + _around(xp, before, axis, 0, n - 1) + _around(xp, after, axis, n - 1, 0)
    return dy


def _shares(times: int, interpolation: str) -> list[tuple[float, float, float]]:
    """For each of the pixels that one becomes, the shares of the pixel before, of itself and of the one after."""
    if interpolation == "nearest":
        return [(0.0, 1.0, 0.0)] * times
    offsets = [(k + 0.5) / times - 0.5 for k in range(times)]
    return [(max(-d, 0.0), 1.0 - abs(d), max(d, 0.0)) for d in offsets]


def _mix(shares: Sequence[float], parts: Sequence[Any]) -> Any:
    """The sum of parts times shares."""
    return reduce(operator.add, [share * part for share, part in zip(shares, parts, strict=True) if share])


def _cut(x: Any, axis: int, part: slice) -> Any:
    return x[(*(slice(None),) * axis, part, ...)]


def _around(xp: Any, x: Any, axis: int, before: int, after: int) -> Any:
    """An array with zeros around it along one axis."""
    return pad(xp, x, [(before, after) if k == axis else (0, 0) for k in range(x.ndim)])


# The NumPy kernels keep channels last in memory, and add the shares of neighbours in place.


@upsample.kernel("numpy")
def _(xp: Any, x: Any, size: tuple[int, int], interpolation: str) -> Any:
    if interpolation == "nearest":
        (n, c, h, w), (sh, sw) = x.shape, size
        y = np.empty((n, h, sh, w, sw, c), x.dtype)
        y[...] = x.transpose(0, 2, 3, 1)[:, :, None, :, None, :]
        return y.reshape(n, h * sh, w * sw, c).transpose(0, 3, 1, 2)
    for axis, times in enumerate(size, start=2):
        y = _zeros([m * times if k == axis else m for k, m in enumerate(x.shape)], x.dtype)
        for part, share, there, here in _moves(times):
            place = _cut(_cut(y, axis, part), axis, there)
            place += share * _cut(x, axis, here)
        x = y
    return x


@upsample_dx.kernel("numpy")
def _(xp: Any, dy: Any, size: tuple[int, int], interpolation: str) -> Any:
    if interpolation == "nearest":
        return reduce(operator.add, [dy[:, :, i :: size[0], j :: size[1]] for i, j in np.ndindex(size)])
    for axis, times in enumerate(size, start=2):
        dx = _zeros([m // times if k == axis else m for k, m in enumerate(dy.shape)], dy.dtype)
        for part, share, there, here in _moves(times):
            place = _cut(dx, axis, here)
            place += share * _cut(_cut(dy, axis, part), axis, there)
        dy = dx
    return dy


def _zeros(shape: Sequence[int], dtype: Any) -> Any:
    n, c, h, w = shape
    return np.zeros((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def _moves(times: int) -> Iterator[tuple[slice, float, slice, slice]]:
    """Which part of the output takes which share, where in the part, from where in the input."""
    rest, front, back, first, last = slice(None), slice(None, -1), slice(1, None), slice(1), slice(-1, None)
    for k, shares in enumerate(_shares(times, "bilinear")):
        ways = ([(back, front), (first, first)], [(rest, rest)], [(front, back), (last, last)])
        for share, neighbours in zip(shares, ways, strict=True):
            yield from ((slice(k, None, times), share, there, here) for there, here in neighbours if share)


@upsample.kernel("onnx")
def _(xp: Any, x: Any, size: tuple[int, int], interpolation: str) -> Any:
    if x.dtype != xp.float32:  # onnxruntime has it in float32 only
        return upsample.reference(xp, x, size, interpolation)
    how = (
        {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        if interpolation == "nearest"
        else {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    )
    shape = (*x.shape[:2], x.shape[2] * size[0], x.shape[3] * size[1])
    return xp.node("Resize", x, None, np.array([1, 1, *size], "float32"), shape=shape, dtype=x.dtype, **how)


def _known(x: lm.ArraySpec) -> tuple[int, ...]:
    sizes = tuple(size for size in x.shape[1:] if isinstance(size, int))
    if len(sizes) < len(x.shape) - 1:
        raise lm.GraphError(f"expected known sizes beside the batch axis, got {x}; give them in input_shape or Input")
    return sizes


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"flatten": Flatten, "permute": Permute, "reshape": Reshape, "up_sampling2d": UpSampling2D}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    flat, shaped, transposed, resized = (
        f"https://onnx.ai/onnx/operators/onnx__{name}.html" for name in ("Flatten", "Reshape", "Transpose", "Resize")
    )
    image, symbolic = lm.ArraySpec(("N", 3, 4, 5)), lm.ArraySpec(("N", "T", 5))
    labels = lm.ArraySpec(("N", 6), "int64", low=0, high=10)
    return [
        Specimen(Flatten(), (image,), ("Reshape",), docs=flat, refuses=(((symbolic,), "known sizes"),)),
        Specimen(Flatten(), (lm.ArraySpec(("N",)),), ("Reshape",), docs=flat),
        Specimen(Reshape((5, 12)), (image,), ("Reshape",), docs=shaped, refuses=(((labels,), "60 elements"),)),
        Specimen(Reshape((2, -1, 3)), (image,), ("Reshape",), docs=shaped, refuses=(((symbolic,), "known sizes"),)),
        Specimen(Reshape((3, 2)), (labels,), ("Reshape",), docs=shaped),
        Specimen(Permute((3, 1, 2)), (image,), ("Transpose",), docs=transposed, refuses=(((labels,), "3 axes"),)),
        Specimen(Permute((2, 1)), (symbolic,), ("Transpose",), docs=transposed),
        Specimen(Permute((1,)), (labels,), (), docs=transposed),
        Specimen(UpSampling2D(), (image,), ("Resize",), docs=resized, refuses=(((labels,), "expected images"),)),
        Specimen(UpSampling2D((3, 1)), (lm.ArraySpec(("N", 2, 1, 3)),), ("Resize",), docs=resized),
        Specimen(UpSampling2D(2, "bilinear"), (image,), ("Resize",), docs=resized),
        Specimen(UpSampling2D((4, 3), "bilinear"), (lm.ArraySpec(("N", 2, 3, 1)),), ("Resize",), docs=resized),
    ]
