"""Borders: an image gets one, filled with one value, or loses one."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import number
from lamella.primitives import pad
from lamella.testing import Specimen
from lamella_layers.windows import border_argument, image_shape

__all__ = ["ConstantPadding2D", "Cropping2D", "ZeroPadding2D"]

Border = tuple[tuple[int, int], ...]  # ((top, bottom), (left, right))
AnyBorder = int | tuple[int | tuple[int, int], int | tuple[int, int]]


class _Padding2D(lm.Layer):
    """A border of one value."""

    padding: Border
    value: float

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, height, width = image_shape(x)
        declare.features(1)
        rows, columns = self.padding
        return x.replace(shape=("N", channels, height + sum(rows), width + sum(columns)))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        return pad(ctx, x, ((0, 0), (0, 0), *self.padding), value=self.value)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return _crop(dy, self.padding)


class ZeroPadding2D(_Padding2D):
    """Adds a border of zeros: ``y[n, c, top + i, left + j] = x[n, c, i, j]``, and 0 around it.

    Arguments:
        padding: how many rows and columns: an int, (vertical, horizontal) or ((top, bottom), (left, right)).

    Shapes: (N, channels, height, width) -> (N, channels, top + height + bottom, left + width + right).

    Raises:
        ArgumentError: if ``padding`` is something else, or negative.
        GraphError: if the input is no image.

    Source: https://onnx.ai/onnx/operators/onnx__Pad.html

    >>> import lamella as lm
    >>> lm.Sequential([ZeroPadding2D((0, 1))], input_shape=(1, 1, 2)).predict([[[[3.0, 4.0]]]])
    array([[[[0., 3., 4., 0.]]]], dtype=float32)
    """

    def __init__(self, padding: AnyBorder = 1):
        self.padding, self.value = border_argument(padding, "padding"), 0.0


class ConstantPadding2D(_Padding2D):
    """Adds a border of one value: ``y[n, c, top + i, left + j] = x[n, c, i, j]``, and the value around it.

    Arguments:
        padding: how many rows and columns: an int, (vertical, horizontal) or ((top, bottom), (left, right)).
        value: what the border is filled with.

    Shapes: (N, channels, height, width) -> (N, channels, top + height + bottom, left + width + right).

    Raises:
        ArgumentError: if ``padding`` is something else or negative, or ``value`` no finite number.
        GraphError: if the input is no image.

    Source: https://onnx.ai/onnx/operators/onnx__Pad.html

    >>> import lamella as lm
    >>> lm.Sequential([ConstantPadding2D((0, 1), -1.0)], input_shape=(1, 1, 2)).predict([[[[3.0, 4.0]]]])
    array([[[[-1.,  3.,  4., -1.]]]], dtype=float32)
    """

    def __init__(self, padding: AnyBorder, value: float = 0.0):
        self.padding, self.value = border_argument(padding, "padding"), number(value, "value")


class Cropping2D(lm.Layer):
    """Takes a border away: ``y[n, c, i, j] = x[n, c, top + i, left + j]``.

    Arguments:
        cropping: how many rows and columns: an int, (vertical, horizontal) or ((top, bottom), (left, right)).

    Shapes: (N, channels, height, width) -> (N, channels, height - top - bottom, width - left - right).

    Raises:
        ArgumentError: if ``cropping`` is something else, or negative.
        GraphError: if the input is no image, or nothing would be left of it.

    Source: https://onnx.ai/onnx/operators/onnx__Slice.html

    >>> import lamella as lm
    >>> lm.Sequential([Cropping2D(((0, 0), (1, 0)))], input_shape=(1, 1, 3)).predict([[[[3.0, 4.0, 5.0]]]])
    array([[[[4., 5.]]]], dtype=float32)
    """

    def __init__(self, cropping: AnyBorder = 0):
        self.cropping = border_argument(cropping, "cropping")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *size = image_shape(x)
        height, width = (n - sum(border) for n, border in zip(size, self.cropping, strict=True))
        if min(height, width) < 1:
            raise lm.GraphError(
                f"expected an image that is larger than cropping={self.cropping}, which takes away "
                f"{sum(self.cropping[0])} rows and {sum(self.cropping[1])} columns, got {x}"
            )
        declare.features(1)
        return x.replace(shape=("N", channels, height, width))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        return _crop(x, self.cropping)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return pad(ctx, dy, ((0, 0), (0, 0), *self.cropping))


def _crop(x: Any, border: Border) -> Any:
    (top, bottom), (left, right) = border
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"constant_padding2d": ConstantPadding2D, "cropping2d": Cropping2D, "zero_padding2d": ZeroPadding2D}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    image = lm.ArraySpec(("N", 2, 5, 4))
    refuses = (((lm.ArraySpec(("N", 64)),), "expected images"),)
    small = (((lm.ArraySpec(("N", 1, 3, 9)),), "takes away 3 rows and 0 columns"),)
    pad_docs, slice_docs = (f"https://onnx.ai/onnx/operators/onnx__{name}.html" for name in ("Pad", "Slice"))
    return [
        Specimen(ZeroPadding2D(), (image,), ("Pad",), docs=pad_docs, refuses=refuses),
        Specimen(ZeroPadding2D(((0, 2), (1, 0))), (image,), ("Pad",), docs=pad_docs),
        Specimen(ZeroPadding2D(0), (image,), (), docs=pad_docs),
        Specimen(ConstantPadding2D((2, 0), -1.5), (image,), ("Pad",), docs=pad_docs, refuses=refuses),
        Specimen(Cropping2D(1), (image,), ("Slice",), docs=slice_docs, refuses=refuses),
        Specimen(Cropping2D(((1, 2), (0, 0))), (image,), ("Slice",), docs=slice_docs, refuses=small),
        Specimen(Cropping2D(), (image,), (), docs=slice_docs),
    ]
