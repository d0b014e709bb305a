"""Transposed convolution: the passes of a convolution with forward and backward exchanged.

Letters are those of `convolution`. Images (N, C, H, W) and the grid of windows (N, F, h, w) have changed places too:
the input is on the grid, and the output is the image.

    y = col2im(x W^T) + b                                  (N, F, h, w) -> (N, C, H, W)
    dW = im2col(dy)^T x;   db = sum of dy over N, H, W;    dx = im2col(dy) W
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import pair
from lamella_layers.convolution.convolution import Convolution, Function, conv, conv_dw, conv_transpose, sum_pixels
from lamella_layers.windows import Padding, Size, Windows, image_shape

__all__ = ["Conv2DTranspose"]


class Conv2DTranspose(Convolution):
    """The transpose of a `Conv2D` with the same arguments: each pixel adds filters, times its value, to the output.

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
        activation: a registered name or an elementwise `ActivationFunction`, or None.
        kernel_initializer: how ``W`` starts.
        bias_initializer: how ``b`` starts.

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
        bias_initializer: Any = "zeros",
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
            bias_initializer=bias_initializer,
        )
        self.output_padding = pair(output_padding, "output_padding", minimum=0)
        if any(more >= stride for more, stride in zip(self.output_padding, self.strides, strict=True)):
            raise lm.ArgumentError(f"output_padding={output_padding!r}: expected less than strides={strides!r}")
        if self.padding == "same" and any(self.output_padding):
            raise lm.ArgumentError(
                f"output_padding={output_padding!r}: padding='same' makes an output of size * strides; leave "
                "output_padding out, or give padding as ints"
            )

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x)
        if channels % self.groups:
            raise lm.GraphError(
                f"expected a number of channels that groups={self.groups} divides, got {channels} in {x}"
            )
        image = self._windows(x).image
        declare.features(1)
        shape = (channels, self.filters // self.groups)
        self._declare(declare, channels, self.filters, self.groups, shape, unit_axis=1)
        return x.replace(shape=("N", self.filters, *image))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        # y = col2im(x W^T) + b
        ctx.save(x)
        return conv_transpose(ctx, x, ctx.params.kernel, self._bias(ctx), self._windows(x), groups=self.groups)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # dW = im2col(dy)^T x; db = sum of dy over N, H, W; dx = im2col(dy) W
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
