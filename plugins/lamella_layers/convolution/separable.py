"""Convolution of each channel by itself, and that with a mixture of channels after it.

Both are convolutions as in `convolution`: the first has as many groups as channels, the second windows of one pixel.
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import initializer_argument, positive
from lamella_layers.convolution.convolution import Conv2D, Convolution, Function, elementwise
from lamella_layers.windows import Padding, Size

__all__ = ["DepthwiseConv2D", "SeparableConv2D"]


class DepthwiseConv2D(Convolution):
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
        activation: a registered name or an elementwise `ActivationFunction`, or None.
        depthwise_initializer: how ``W`` starts.
        bias_initializer: how ``b`` starts.

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
        *,
        depth_multiplier: int = 1,
        strides: Size = 1,
        padding: Padding | Size = "valid",
        dilation_rate: Size = 1,
        use_bias: bool = True,
        activation: Function = None,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
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
            kernel_initializer=initializer_argument(depthwise_initializer, "depthwise_initializer"),
            bias_initializer=bias_initializer,
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
        activation: a registered name or an elementwise `ActivationFunction`, or None.
        depthwise_initializer: how the kernel of the first step starts.
        pointwise_initializer: how that of the second starts.
        bias_initializer: how the bias of the second starts.

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
        bias_initializer: Any = "zeros",
    ):
        self.depthwise = DepthwiseConv2D(
            kernel_size,
            depth_multiplier=depth_multiplier,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            use_bias=False,
            depthwise_initializer=initializer_argument(depthwise_initializer, "depthwise_initializer"),
        )
        self.pointwise = Conv2D(
            filters,
            1,
            use_bias=use_bias,
            kernel_initializer=initializer_argument(pointwise_initializer, "pointwise_initializer"),
            bias_initializer=bias_initializer,
        )
        self.activation = elementwise(activation)

    def expand(self, x: lm.Node) -> Any:
        y = self.pointwise(self.depthwise(x, name="depthwise"), name="pointwise")
        return y if self.activation is None else self.activation(y, name="activation")
