"""Convolution: each pixel of the output is the product of what one window sees of the image with a kernel.

N batch, C channels, H W image, F filters, G groups, k = kh * kw cells of a window, h w grid of windows: the output.
For series read L in place of H W, and so on. With W for the kernel as a matrix, (k*C/G, F/G) for each group:

    y = im2col(x) W + b                                   (N, C, H, W) -> (N, F, h, w)
    dW = im2col(x)^T dy;   db = sum of dy over N, h, w;   dx = col2im(dy W^T)

`im2col` has these matrices; `kernels` never holds the columns of a whole batch, and `onnx_operators` leaves them to
ONNX's operators.
"""

from __future__ import annotations

import math
from typing import Any

import lamella as lm
from lamella.arguments import flag, initializer_argument, positive
from lamella_layers.activation import Activation
from lamella_layers.convolution.im2col import col2im, from_rows, im2col, kernel_matrix, matrix_kernel, to_rows
from lamella_layers.windows import Padding, Size, Windows, image_shape, padding_argument, window_argument

__all__ = [
    "Conv1D",
    "Conv2D",
    "Convolution",
    "Function",
    "conv",
    "conv_dw",
    "conv_dx",
    "conv_transpose",
    "elementwise",
    "sum_pixels",
]

Function = str | lm.ActivationFunction | None


class Convolution(lm.Layer):
    """What convolutions have in common: a kernel that moves along some axes, a bias and an activation. Abstract."""

    axes = 2  # that the kernel moves along

    def __init__(
        self,
        filters: int,
        kernel_size: Size,
        *,
        strides: Size = 1,
        padding: Padding | Size = "valid",
        dilation_rate: Size = 1,
        groups: int = 1,
        use_bias: bool = True,
        activation: Function = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
    ):
        self.filters = positive(filters, "filters")
        self.kernel_size = window_argument(kernel_size, "kernel_size", self.axes)
        self.strides = window_argument(strides, "strides", self.axes)
        self.padding = padding_argument(padding, self.axes)
        self.dilation_rate = window_argument(dilation_rate, "dilation_rate", self.axes)
        self.groups = positive(groups, "groups")
        self.use_bias = flag(use_bias, "use_bias")
        self.activation = elementwise(activation)
        self.kernel_initializer = initializer_argument(kernel_initializer, "kernel_initializer")
        self.bias_initializer = initializer_argument(bias_initializer, "bias_initializer")
        if self.filters % self.groups:
            raise lm.ArgumentError(f"filters={filters}: expected a multiple of groups={groups}")

    def expand(self, x: lm.Node) -> Any:
        if self.activation is None:
            return None
        return self.activation(self.replace(activation=None).named("")(x), name="activation")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x, self.axes)
        filters, groups = self._split(channels)
        if channels % groups:
            raise lm.GraphError(f"expected a number of channels that groups={groups} divides, got {channels} in {x}")
        grid = self._windows(x).grid
        declare.features(1)
        self._declare(declare, channels, filters, groups, shape=(filters, channels // groups))
        return x.replace(shape=("N", filters, *grid))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # y = im2col(x) W + b
        ctx.save(x)
        _, groups = self._split(x.shape[1])
        return conv(ctx, x, ctx.params.kernel, self._bias(ctx), self._windows(x), groups=groups)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # dW = im2col(x)^T dy; db = sum of dy over N, h, w; dx = col2im(dy W^T)
        (x,) = ctx.saved
        windows, (_, groups) = self._windows(x), self._split(x.shape[1])
        if ctx.trainable:
            ctx.grad(kernel=conv_dw(ctx, x, dy, windows, groups=groups))
            if self.use_bias:
                ctx.grad(bias=sum_pixels(ctx, dy))
        return conv_dx(ctx, dy, ctx.params.kernel, windows, groups=groups) if ctx.wants_dx[0] else None

    def _split(self, channels: int) -> tuple[int, int]:
        """Return how many filters and how many groups there are."""
        return self.filters, self.groups

    def _windows(self, x: Any) -> Windows:
        return Windows.over(
            tuple(x.shape[2:]),
            size=self.kernel_size,
            strides=self.strides,
            dilations=self.dilation_rate,
            padding=self.padding,
        )

    def _declare(
        self,
        declare: lm.Declare,
        channels: int,
        filters: int,
        groups: int,
        shape: tuple[int, int],
        unit_axis: int | None = None,
    ) -> None:
        """Ask for a kernel, which lies in memory as a matrix for the rows of im2col, and for a bias."""
        cells = math.prod(self.kernel_size)
        fan_in, fan_out = channels // groups * cells, filters // groups * cells
        declare.parameter(
            "kernel",
            (*shape, *self.kernel_size),
            self.kernel_initializer,
            fan_in=fan_in,
            fan_out=fan_out,
            memory=(*range(2, 2 + self.axes), 1, 0),
            unit_axis=unit_axis,
            groups=groups,
        )
        if self.use_bias:
            declare.parameter("bias", (filters,), self.bias_initializer, fan_in=fan_in, fan_out=fan_out)

    def _bias(self, ctx: lm.Context) -> Any:
        return ctx.params.bias if self.use_bias else None


class Conv1D(Convolution):
    """Slides learned filters along a series.

    ``y[n, f, p] = activation(b[f] + sum over c, i of W[f, c, i] x[n, c, p s + i d - left])``
    with stride ``s``, dilation ``d``, and zeros where ``x`` is outside of the series. Channels come before the length,
    as in ONNX and PyTorch; in Keras they come last.

    Arguments:
        filters: how many filters, and so output channels.
        kernel_size: length of a filter.
        strides: how far the window moves.
        padding: "valid" (none), "same" (an output of ceil(length / stride), the odd cell at the end), an int, or
            (left, right); ((kernel_size - 1) * dilation_rate, 0) looks at the past only ("causal").
        dilation_rate: the distance between the cells of a window.
        groups: channels and filters are split into so many groups that do not see each other.
        use_bias: whether to add ``b``.
        activation: a registered name or an elementwise `ActivationFunction`, or None.
        kernel_initializer: how ``W`` starts.
        bias_initializer: how ``b`` starts.

    Shapes: (N, channels, length) -> (N, filters, l), with
    ``l = (length + left + right - (kernel_size - 1) d - 1) // s + 1``. Parameters: ``kernel`` (filters,
    channels / groups, kernel_size), ``bias`` (filters,).

    Raises:
        ArgumentError: if ``filters`` does not divide into ``groups``, or ``activation`` runs along an axis, as softmax
            does: ``Activation("softmax", axis=1)`` after the layer takes the channels.
        GraphError: if the input is no series, is shorter than a window, or its channels do not divide into groups.

    Source: https://onnx.ai/onnx/operators/onnx__Conv.html

    >>> import lamella as lm
    >>> model = lm.Sequential([Conv1D(4, 3, padding=(2, 0))], input_shape=(2, 10))
    >>> model.output_specs[0].shape, model.parameters["conv1d_1.kernel"].shape
    (('N', 4, 10), (4, 2, 3))
    """

    axes = 1


class Conv2D(Convolution):
    """Slides learned filters over an image.

    ``y[n, f, p, q] = activation(b[f] + sum over c, i, j of W[f, c, i, j] x[n, c, p s + i d - top, q s + j d - left])``
    with stride ``s``, dilation ``d``, and zeros where ``x`` is outside of the image.

    Arguments:
        filters: how many filters, and so output channels.
        kernel_size: height and width of a filter; one int for both, as in the next three.
        strides: how far the window moves.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).
        dilation_rate: the distance between the cells of a window.
        groups: channels and filters are split into so many groups that do not see each other.
        use_bias: whether to add ``b``.
        activation: a registered name or an elementwise `ActivationFunction`, or None.
        kernel_initializer: how ``W`` starts.
        bias_initializer: how ``b`` starts.

    Shapes: (N, channels, height, width) -> (N, filters, h, w), with
    ``h = (height + top + bottom - (kh - 1) d - 1) // s + 1``. Parameters: ``kernel`` (filters, channels / groups,
    kh, kw), ``bias`` (filters,).

    Raises:
        ArgumentError: if ``filters`` does not divide into ``groups``, or ``activation`` runs along an axis, as softmax
            does: ``Activation("softmax", axis=1)`` after the layer takes the channels.
        GraphError: if the input is no image, is smaller than a window, or its channels do not divide into groups.

    Source: https://onnx.ai/onnx/operators/onnx__Conv.html

    >>> import lamella as lm
    >>> model = lm.Sequential([Conv2D(4, 3, padding="same", strides=2)], input_shape=(3, 9, 9))
    >>> model.output_specs[0].shape, model.parameters["conv2d_1.kernel"].shape
    (('N', 4, 5, 5), (4, 3, 3, 3))
    """


def elementwise(function: Function) -> Activation | None:
    """The layer of an activation. One along an axis, such as softmax, would take the last one, not the channels."""
    layer = None if function is None else Activation(function)
    if layer is not None and layer.has_axis:
        raise lm.ArgumentError(
            f"activation: expected an elementwise function, got {function!r}, which would run along the last axis and "
            f"not along the channels. Likely fix: Activation({function!r}, axis=1) after this layer"
        )
    return layer


@lm.primitive
def conv(xp: Any, x: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    """``y = im2col(x) W + b``: (N, C, H, W) and kernels (F, C/G, kh, kw) -> (N, F, h, w); the bias (F,) may be None."""
    rows = im2col(xp, x, windows, groups) @ kernel_matrix(xp, kernel, groups)
    return _plus(xp, from_rows(xp, rows, windows, x.shape[0], kernel.shape[0]), bias)


@lm.primitive
def conv_transpose(xp: Any, y: Any, kernel: Any, bias: Any, windows: Windows, *, groups: int = 1) -> Any:
    """``x = col2im(y W^T) + b``: (N, F, h, w) -> (N, C, H, W); the bias (C,) may be None.

    Each kernel, times what ``y`` holds, is added to its window. This is the transpose of `conv` as a matrix, and so its
    gradient for the images.
    """
    columns = to_rows(xp, y, groups) @ xp.permute_dims(kernel_matrix(xp, kernel, groups), (0, 2, 1))
    return _plus(xp, col2im(xp, columns, windows, y.shape[0]), bias)


@lm.primitive
def conv_dx(xp: Any, dy: Any, kernel: Any, windows: Windows, *, groups: int = 1) -> Any:
    """``dx = col2im(dy W^T)``: the gradient of `conv` for the images."""
    return conv_transpose(xp, dy, kernel, None, windows, groups=groups)


@lm.primitive
def conv_dw(xp: Any, x: Any, dy: Any, windows: Windows, *, groups: int = 1) -> Any:
    """``dW = im2col(x)^T dy``: the gradient of `conv` for the kernel, a sum over all windows."""
    columns = xp.permute_dims(im2col(xp, x, windows, groups), (0, 2, 1))
    return matrix_kernel(xp, columns @ to_rows(xp, dy, groups), windows)


@lm.primitive
def sum_pixels(xp: Any, dy: Any) -> Any:
    """``db``: the gradient of `conv` for the bias, (N, F, h, w) -> (F,)."""
    return xp.sum(dy, axis=(0, *range(2, dy.ndim)))


def _plus(xp: Any, y: Any, bias: Any) -> Any:
    return y if bias is None else y + xp.reshape(bias, (1, -1, *(1,) * (y.ndim - 2)))
