"""Images made larger by channels that become pixels."""

import lamella as lm
from lamella.arguments import positive
from lamella_layers import Conv2D

__all__ = ["DepthToSpace", "SubpixelConv2D", "depth_to_space", "space_to_depth"]


@lm.primitive
def depth_to_space(xp, x, block):
    """Every ``block * block`` channels become a square of pixels of one channel."""
    n, channels, height, width = x.shape
    # (N, b*b*C, H, W) -> (N, b, b, C, H, W) -> (N, C, H, b, W, b) -> (N, C, H*b, W*b)
    x = xp.reshape(x, (n, block, block, channels // block**2, height, width))
    x = xp.permute_dims(x, (0, 3, 4, 1, 5, 2))
    return xp.reshape(x, (n, channels // block**2, height * block, width * block))


@depth_to_space.kernel("onnx")
def _(xp, x, block):
    n, channels, height, width = x.shape
    shape = (n, channels // block**2, height * block, width * block)
    return xp.node("DepthToSpace", x, shape=shape, dtype=x.dtype, blocksize=block)


@lm.primitive
def space_to_depth(xp, x, block):
    """The inverse, and so the gradient, of `depth_to_space`."""
    n, channels, height, width = x.shape
    # (N, C, H*b, W*b) -> (N, C, H, b, W, b) -> (N, b, b, C, H, W) -> (N, b*b*C, H, W)
    x = xp.reshape(x, (n, channels, height // block, block, width // block, block))
    x = xp.permute_dims(x, (0, 3, 5, 1, 2, 4))
    return xp.reshape(x, (n, channels * block**2, height // block, width // block))


@space_to_depth.kernel("onnx")
def _(xp, x, block):
    n, channels, height, width = x.shape
    shape = (n, channels * block**2, height // block, width // block)
    return xp.node("SpaceToDepth", x, shape=shape, dtype=x.dtype, blocksize=block)


class DepthToSpace(lm.Layer):
    """Turns channels into pixels: ``y[c, h b + i, w b + j] = x[(i b + j) C + c, h, w]``, with C channels in the output.

    Arguments:
        block_size: how many times larger the image becomes in height and width, b.

    Shapes: (N, b b C, height, width) -> (N, C, b height, b width).

    Raises:
        GraphError: if the input is no image, its sizes are not known, or b b does not divide its channels.

    Source: https://onnx.ai/onnx/operators/onnx__DepthToSpace.html

    >>> import lamella as lm
    >>> lm.Sequential([DepthToSpace(2)], input_shape=(4, 1, 1)).predict([[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]])
    array([[[[1., 2.],
             [3., 4.]]]], dtype=float32)
    """

    def __init__(self, block_size: int):
        self.block_size = positive(block_size, "block_size", minimum=2)

    def build(self, declare, x):
        known = len(x.shape) == 4 and all(isinstance(size, int) for size in x.shape[1:])
        if not known or x.shape[1] % self.block_size**2 or not x.is_float:
            raise lm.GraphError(
                f"expected float images (N, channels, height, width) of known sizes and a multiple of "
                f"{self.block_size**2} channels, got {x}. Likely fix: a Conv2D with that many filters before this layer"
            )
        channels, height, width = x.shape[1:]
        b = self.block_size
        return x.replace(shape=("N", channels // b**2, height * b, width * b))

    def forward_pass(self, ctx, x):
        return depth_to_space(ctx, x, self.block_size)

    def backward_pass(self, ctx, dy):
        return space_to_depth(ctx, dy, self.block_size)


class SubpixelConv2D(lm.Layer):
    """A convolution whose result is larger than its input: ``y = depth_to_space(convolution(x))``.

    Arguments:
        filters: how many channels come out.
        kernel_size: of the convolution; its padding is "same".
        scale: how many times larger the image becomes.
        activation: a registered name or an `ActivationFunction`, or None.

    Shapes: (N, channels, height, width) -> (N, filters, scale height, scale width).

    Source: Shi et al., https://arxiv.org/abs/1609.05158

    >>> import lamella as lm
    >>> lm.Sequential([SubpixelConv2D(3, 5, scale=2)], input_shape=(1, 4, 6)).output_specs
    (ArraySpec(('N', 3, 8, 12), 'float32'),)
    """

    def __init__(self, filters: int, kernel_size: int = 3, *, scale: int = 2, activation=None):
        many = positive(filters, "filters") * positive(scale, "scale", minimum=2) ** 2
        self.convolution = Conv2D(many, kernel_size, padding="same", activation=activation)
        self.larger = DepthToSpace(scale)

    def expand(self, x):
        return self.larger(self.convolution.named("")(x), name="larger")


@lm.hookimpl
def lamella_layers():
    return {"depth_to_space": DepthToSpace, "subpixel_conv2d": SubpixelConv2D}


@lm.hookimpl
def lamella_specimens():
    from lamella.testing import Specimen

    docs, image = "https://onnx.ai/onnx/operators/onnx__DepthToSpace.html", lm.ArraySpec(("N", 8, 2, 3))
    refuses = (
        ((lm.ArraySpec(("N", 6, 2, 3)),), "a multiple of 4 channels"),
        ((lm.ArraySpec(("N", 4, "H", 3)),), "known sizes"),
        ((image.replace(dtype="int32"),), "expected float images"),
    )
    return [
        Specimen(DepthToSpace(2), (image,), ("DepthToSpace",), docs=docs, refuses=refuses),
        Specimen(DepthToSpace(3), (lm.ArraySpec(("N", 9, 1, 2)),), ("DepthToSpace",), docs=docs),
        Specimen(
            SubpixelConv2D(2, 3, activation="relu"),
            (lm.ArraySpec(("N", 1, 3, 4)),),
            ("Conv", "Relu", "DepthToSpace"),
            docs="https://arxiv.org/abs/1609.05158",
        ),
    ]
