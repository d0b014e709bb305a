"""Layers that put the same numbers into another shape, in C order of (N, ...)."""

from __future__ import annotations

import math
from typing import Any

import lamella as lm

__all__ = ["Flatten", "Reshape"]


class Flatten(lm.Layer):
    """All numbers of a sample in one row: ``y[n, (c H + h) W + w] = x[n, c, h, w]``.

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
    """The numbers of each sample, in C order, in another shape.

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
        sizes = isinstance(shape, tuple) and all(type(n) is int and (n > 0 or n == -1) for n in shape)
        if not sizes or shape.count(-1) > 1:
            raise lm.ArgumentError(f"shape: expected positive ints, one of which may be -1, got {shape!r}")
        self.shape = shape

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        size, given = math.prod(_known(x)), math.prod(n for n in self.shape if n != -1)
        if size % given if -1 in self.shape else size != given:
            raise lm.GraphError(
                f"expected {'a multiple of ' if -1 in self.shape else ''}{given} numbers in each sample for "
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


def _known(x: lm.ArraySpec) -> tuple[int, ...]:
    sizes = tuple(size for size in x.shape[1:] if isinstance(size, int))
    if len(sizes) < len(x.shape) - 1:
        raise lm.GraphError(f"expected known sizes beside the batch axis, got {x}; give them in input_shape or Input")
    return sizes


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"flatten": Flatten, "reshape": Reshape}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    flat, shaped = (f"https://onnx.ai/onnx/operators/onnx__{name}.html" for name in ("Flatten", "Reshape"))
    image, symbolic = lm.ArraySpec(("N", 3, 4, 5)), lm.ArraySpec(("N", "T", 5))
    labels = lm.ArraySpec(("N", 6), "int64", low=0, high=10)
    return [
        Specimen(Flatten(), (image,), ("Reshape",), docs=flat, refuses=(((symbolic,), "known sizes"),)),
        Specimen(Flatten(), (lm.ArraySpec(("N",)),), ("Reshape",), docs=flat),
        Specimen(Reshape((5, 12)), (image,), ("Reshape",), docs=shaped, refuses=(((labels,), "60 numbers"),)),
        Specimen(Reshape((2, -1, 3)), (image,), ("Reshape",), docs=shaped, refuses=(((symbolic,), "known sizes"),)),
        Specimen(Reshape((3, 2)), (labels,), ("Reshape",), docs=shaped),
    ]
