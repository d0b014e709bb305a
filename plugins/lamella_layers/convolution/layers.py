"""The layers: what they are told, which arrays they declare, and which convolution primitives they call."""

from __future__ import annotations

import math
from typing import Any

import lamella as lm
from lamella.arguments import flag, pair, positive
from lamella_layers.activation import Activation
from lamella_layers.convolution.primitives import conv, conv_dw, conv_transpose, sum_pixels
from lamella_layers.windows import Padding, Windows, image_shape, padding_argument, window_argument

__all__ = ["Conv1D", "Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D"]

Size = int | tuple[int, int]
Function = str | lm.ActivationFunction | None


def _elementwise(function: Function) -> Activation | None:
    """The layer of an activation. One along an axis, such as softmax, would take the last one, not the channels."""
    layer = None if function is None else Activation(function)
    if layer is not None and layer.has_axis:
        raise lm.ArgumentError(
            f"activation: expected a function of single numbers, got {function!r}, which would run along the last axis "
            f"and not along the channels. Likely fix: Activation({function!r}, axis=1) after this layer"
        )
    return layer


class _Convolution(lm.Layer):
    """A kernel that moves along some axes, a bias and an activation."""

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
    ):
        self.filters = positive(filters, "filters")
        self.kernel_size = window_argument(kernel_size, "kernel_size", self.axes)
        self.strides = window_argument(strides, "strides", self.axes)
        self.padding = padding_argument(padding, self.axes)
        self.dilation_rate = window_argument(dilation_rate, "dilation_rate", self.axes)
        self.groups = positive(groups, "groups")
        self.use_bias = flag(use_bias, "use_bias")
        self.activation = _elementwise(activation)
        self.kernel_initializer = kernel_initializer
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
        self._declare(declare, channels, filters, groups, shape=(filters, channels // groups))
        return x.replace(shape=("N", filters, *grid))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        _, groups = self._split(x.shape[1])
        return conv(ctx, x, ctx.params.kernel, self._bias(ctx), self._windows(x), groups=groups)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        windows, (_, groups) = self._windows(x), self._split(x.shape[1])
        if ctx.trainable:
            ctx.grad(kernel=conv_dw(ctx, x, dy, windows, groups=groups))
            if self.use_bias:
                ctx.grad(bias=sum_pixels(ctx, dy))
        return conv_transpose(ctx, dy, ctx.params.kernel, None, windows, groups=groups) if ctx.wants_dx[0] else None

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

    def _declare(self, declare: lm.Declare, channels: int, filters: int, groups: int, shape: tuple[int, int]) -> None:
        """Ask for a kernel, which lies in memory as a matrix for the rows of im2col, and for a bias."""
        cells = math.prod(self.kernel_size)
        declare.parameter(
            "kernel",
            (*shape, *self.kernel_size),
            self.kernel_initializer,
            fan_in=channels // groups * cells,
            fan_out=filters // groups * cells,
            memory=(*range(2, 2 + self.axes), 1, 0),
        )
        if self.use_bias:
            declare.parameter("bias", (filters,), "zeros")

    def _bias(self, ctx: lm.Context) -> Any:
        return ctx.params.bias if self.use_bias else None


class Conv1D(_Convolution):
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
        activation: a registered name or an `ActivationFunction` of single numbers, or None.
        kernel_initializer: how ``W`` starts; ``b`` starts at zero.

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


class Conv2D(_Convolution):
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
        activation: a registered name or an `ActivationFunction` of single numbers, or None.
        kernel_initializer: how ``W`` starts; ``b`` starts at zero.

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


class Conv2DTranspose(_Convolution):
    """The way back of a `Conv2D` with the same arguments: each pixel adds learned filters, times itself, to the output.

    ``y[n, f, p s + i d - top, q s + j d - left] += W[c, f, i, j] x[n, c, p, q]`` summed over ``c, i, j, p, q``, plus
    ``b[f]``, with stride ``s`` and dilation ``d``, inside of the output; then the activation.

    Arguments:
        filters: how many output channels.
        kernel_size: height and width of a filter; one int for both, as in the next four.
        strides: how many times larger the output is.
        padding: what is cut off around: "valid" (nothing), "same" (an output of size * stride; what is odd at the end),
            an int, (vertical, horizontal) or ((top, bottom), (left, right)).
        output_padding: rows and columns added at the end, fewer than ``strides``: what sizes of `Conv2D` round off.
        dilation_rate: the distance between the cells of a window.
        groups: channels and filters are split into so many groups that do not see each other.
        use_bias: whether to add ``b``.
        activation: a registered name or an `ActivationFunction` of single numbers, or None.
        kernel_initializer: how ``W`` starts; ``b`` starts at zero.

    Shapes: (N, channels, h, w) -> (N, filters, height, width), with
    ``height = (h - 1) s + (kh - 1) d + 1 - top - bottom + output_padding``. Parameters: ``kernel`` (channels,
    filters / groups, kh, kw), ``bias`` (filters,).

    Raises:
        ArgumentError: if ``filters`` does not divide into ``groups``; if ``output_padding`` is not smaller than
            ``strides``, or is given with padding "same"; if ``activation`` runs along an axis.
        GraphError: if the input is no image, its channels do not divide into groups, or padding leaves no output.

    Source: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html

    >>> import lamella as lm
    >>> model = lm.Sequential([Conv2DTranspose(4, 3, padding="same", strides=2)], input_shape=(3, 5, 5))
    >>> model.output_specs[0].shape, model.parameters["conv2d_transpose_1.kernel"].shape
    (('N', 4, 10, 10), (3, 4, 3, 3))
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Size,
        *,
        strides: Size = 1,
        padding: Padding | Size = "valid",
        output_padding: Size = 0,
        dilation_rate: Size = 1,
        groups: int = 1,
        use_bias: bool = True,
        activation: Function = None,
        kernel_initializer: Any = "glorot_uniform",
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            groups=groups,
            use_bias=use_bias,
            activation=activation,
            kernel_initializer=kernel_initializer,
        )
        self.output_padding = pair(output_padding, "output_padding", minimum=0)
        if any(more >= stride for more, stride in zip(self.output_padding, self.strides, strict=True)):
            raise lm.ArgumentError(f"output_padding={output_padding!r}: expected less than strides={strides!r}")
        if self.padding == "same" and any(self.output_padding):
            raise lm.ArgumentError(
                f"output_padding={output_padding!r}: padding='same' makes an output of size * strides; leave "
                "output_padding out, or give padding in numbers"
            )

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x)
        if channels % self.groups:
            raise lm.GraphError(
                f"expected a number of channels that groups={self.groups} divides, got {channels} in {x}"
            )
        image = self._windows(x).image
        self._declare(declare, channels, self.filters, self.groups, shape=(channels, self.filters // self.groups))
        return x.replace(shape=("N", self.filters, *image))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return conv_transpose(ctx, x, ctx.params.kernel, self._bias(ctx), self._windows(x), groups=self.groups)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        windows = self._windows(x)
        if ctx.trainable:
            ctx.grad(kernel=conv_dw(ctx, dy, x, windows, groups=self.groups))
            if self.use_bias:
                ctx.grad(bias=sum_pixels(ctx, dy))
        return conv(ctx, dy, ctx.params.kernel, None, windows, groups=self.groups) if ctx.wants_dx[0] else None

    def _windows(self, x: Any) -> Windows:
        """The windows on the output: one for each pixel of the input."""
        options = {"size": self.kernel_size, "strides": self.strides, "dilations": self.dilation_rate}
        padding: Any = self.padding
        if padding == "same":
            image = tuple(n * s for n, s in zip(x.shape[2:], self.strides, strict=True))
        else:
            padding = ((0, 0), (0, 0)) if padding == "valid" else padding
            image = tuple(
                (n - 1) * s + (k - 1) * d + 1 - sum(pads) + more
                for n, k, s, d, pads, more in zip(
                    x.shape[2:],
                    self.kernel_size,
                    self.strides,
                    self.dilation_rate,
                    padding,
                    self.output_padding,
                    strict=True,
                )
            )
        if min(image) < 1:
            raise lm.GraphError(
                f"expected an output of one pixel or more, got {image[0]}x{image[1]}: padding={self.padding!r} "
                f"cuts off the whole output of {x}. Use less padding, or larger strides or kernels"
            )
        return Windows.over(image, **options, padding=padding)


class DepthwiseConv2D(_Convolution):
    """Slides learned filters over each channel of an image by itself: a `Conv2D` with as many groups as channels.

    ``y[n, c m + k, p, q] = activation(b[c m + k] + sum over i, j of W[c m + k, 0, i, j] x[n, c, p s + i d - top,
    q s + j d - left])`` with ``m`` filters for each channel, stride ``s``, dilation ``d``, and zeros where ``x`` is
    outside of the image.

    Arguments:
        kernel_size: height and width of a filter; one int for both, as in strides, padding and dilation_rate.
        depth_multiplier: ``m``, how many filters each channel has.
        strides: how far the window moves.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).
        dilation_rate: the distance between the cells of a window.
        use_bias: whether to add ``b``.
        activation: a registered name or an `ActivationFunction` of single numbers, or None.
        depthwise_initializer: how ``W`` starts; ``b`` starts at zero.

    Shapes: (N, channels, height, width) -> (N, channels * m, h, w), with h and w as in `Conv2D`. Parameters:
    ``kernel`` (channels * m, 1, kh, kw), ``bias`` (channels * m,).

    Raises:
        ArgumentError: if ``activation`` runs along an axis.
        GraphError: if the input is no image or is smaller than a window.

    Source: https://onnx.ai/onnx/operators/onnx__Conv.html

    >>> import lamella as lm
    >>> model = lm.Sequential([DepthwiseConv2D(3, depth_multiplier=2)], input_shape=(5, 9, 9))
    >>> model.output_specs[0].shape, model.parameters["depthwise_conv2d_1.kernel"].shape
    (('N', 10, 7, 7), (10, 1, 3, 3))
    """

    def __init__(
        self,
        kernel_size: Size,
        depth_multiplier: int = 1,
        *,
        strides: Size = 1,
        padding: Padding | Size = "valid",
        dilation_rate: Size = 1,
        use_bias: bool = True,
        activation: Function = None,
        depthwise_initializer: Any = "glorot_uniform",
    ):
        self.depth_multiplier = positive(depth_multiplier, "depth_multiplier")
        super().__init__(
            self.depth_multiplier,  # filters of one group
            kernel_size,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            use_bias=use_bias,
            activation=activation,
            kernel_initializer=depthwise_initializer,
        )

    def _split(self, channels: int) -> tuple[int, int]:
        return channels * self.depth_multiplier, channels


class SeparableConv2D(lm.Layer):
    """A `Conv2D` in two small steps: filters on each channel by itself, then a mixture of channels, pixel by pixel.

    ``y = activation(pointwise(depthwise(x)))``: a `DepthwiseConv2D` without bias, and a `Conv2D` with windows of one
    pixel.

    Arguments:
        filters: how many output channels.
        kernel_size: height and width of the filters of the first step; one int for both, as in the next three.
        strides: how far their window moves.
        padding: "valid" (none), "same" (an output of ceil(size / stride), the odd cell at the end), an int,
            (vertical, horizontal) or ((top, bottom), (left, right)).
        dilation_rate: the distance between the cells of a window.
        depth_multiplier: how many filters each channel has in the first step.
        use_bias: whether the second step adds a bias.
        activation: a registered name or an `ActivationFunction` of single numbers, or None.
        depthwise_initializer: how the kernel of the first step starts.
        pointwise_initializer: how that of the second starts.

    Shapes: (N, channels, height, width) -> (N, filters, h, w), with h and w as in `Conv2D`. Parameters:
    ``depthwise.kernel`` (channels * depth_multiplier, 1, kh, kw), ``pointwise.kernel`` (filters,
    channels * depth_multiplier, 1, 1), ``pointwise.bias`` (filters,).

    Raises:
        ArgumentError: if ``activation`` runs along an axis.
        GraphError: if the input is no image or is smaller than a window.

    Source: https://arxiv.org/abs/1610.02357

    >>> import lamella as lm
    >>> model = lm.Sequential([SeparableConv2D(8, 3)], input_shape=(5, 9, 9))
    >>> list(model.parameters)[:2]
    ['separable_conv2d_1/depthwise.kernel', 'separable_conv2d_1/pointwise.kernel']
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Size,
        *,
        strides: Size = 1,
        padding: Padding | Size = "valid",
        dilation_rate: Size = 1,
        depth_multiplier: int = 1,
        use_bias: bool = True,
        activation: Function = None,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
    ):
        self.depthwise = DepthwiseConv2D(
            kernel_size,
            depth_multiplier,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            use_bias=False,
            depthwise_initializer=depthwise_initializer,
        )
        self.pointwise = Conv2D(filters, 1, use_bias=use_bias, kernel_initializer=pointwise_initializer)
        self.activation = _elementwise(activation)

    def expand(self, x: lm.Node) -> Any:
        y = self.pointwise(self.depthwise(x, name="depthwise"), name="pointwise")
        return y if self.activation is None else self.activation(y, name="activation")
