"""Convolution of series and images: learned filters that slide over them."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.testing import Specimen
from lamella_layers.convolution import kernels, onnx_operators  # noqa: F401  registers them
from lamella_layers.convolution.convolution import Conv1D, Conv2D, conv, conv_dw, conv_dx, conv_transpose, sum_pixels
from lamella_layers.convolution.separable import DepthwiseConv2D, SeparableConv2D
from lamella_layers.convolution.transpose import Conv2DTranspose

__all__ = [
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "DepthwiseConv2D",
    "SeparableConv2D",
    "conv",
    "conv_dw",
    "conv_dx",
    "conv_transpose",
    "sum_pixels",
]


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "conv1d": Conv1D,
        "conv2d": Conv2D,
        "conv2d_transpose": Conv2DTranspose,
        "depthwise_conv2d": DepthwiseConv2D,
        "separable_conv2d": SeparableConv2D,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    docs, back = (f"https://onnx.ai/onnx/operators/onnx__{name}.html" for name in ("Conv", "ConvTranspose"))
    image, odd, deep = lm.ArraySpec(("N", 3, 6, 8)), lm.ArraySpec(("N", 2, 7, 9)), lm.ArraySpec(("N", 4, 5, 5))
    small, series = lm.ArraySpec(("N", 4, 3, 2)), lm.ArraySpec(("N", 4, 9))
    no_images = (
        ((lm.ArraySpec(("N", 64)),), "expected images"),
        ((lm.ArraySpec(("N", 1, "H", "W")),), "known sizes"),
        ((image.replace(dtype="uint8"),), "astype"),
    )
    channels_last = ((lm.ArraySpec(("N", 28, 28, 1)),), "NHWC")
    no_series = (
        ((image,), "expected series"),
        ((lm.ArraySpec(("N", 4, 2)),), "(N, length, channels)"),
        ((lm.ArraySpec(("N", 4, "L")),), "known sizes"),
    )
    return [
        Specimen(Conv2D(4, 3), (image,), ("Conv",), docs=docs, refuses=(*no_images, channels_last)),
        Specimen(Conv2D(3, 3, padding="same", activation="relu"), (odd,), ("Conv", "Relu"), docs=docs),
        Specimen(Conv2D(3, 3, strides=2, padding="same"), (image,), ("Conv",), docs=docs),
        Specimen(Conv2D(3, (2, 3), strides=(3, 2), use_bias=False), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, 3, dilation_rate=(2, 3), padding="same"), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, (3, 1), strides=2, dilation_rate=2, padding=((3, 0), (1, 2))), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, 2, strides=3, padding=2), (odd,), ("Conv",), docs=docs),
        Specimen(Conv2D(6, 3, groups=2, strides=2), (deep,), ("Conv",), docs, refuses=(((image,), "groups=2"),)),
        Specimen(Conv2D(4, 3, groups=4, padding=1), (deep,), ("Conv",), docs=docs),
        Specimen(Conv2D(3, 1), (deep,), ("Conv",), docs=docs),
        Specimen(Conv2D(2, 5), (deep,), ("Conv",), docs=docs),
        Specimen(Conv1D(3, 3), (series,), ("Conv",), docs=docs, refuses=no_series),
        Specimen(Conv1D(3, 3, padding="same", strides=2, activation="tanh"), (series,), ("Conv", "Tanh"), docs=docs),
        Specimen(Conv1D(4, 2, padding=(3, 0), dilation_rate=3, groups=2), (series,), ("Conv",), docs=docs),
        Specimen(Conv2DTranspose(2, 3), (small,), ("ConvTranspose",), back, refuses=no_images),
        Specimen(
            Conv2DTranspose(6, 3, strides=2, padding="same", groups=2, activation="tanh"),
            (small,),
            ("ConvTranspose", "Tanh"),
            docs=back,
            refuses=(((image,), "groups=2"),),
        ),
        Specimen(
            Conv2DTranspose(3, (3, 2), strides=(3, 2), padding=((1, 0), (0, 1)), output_padding=(2, 1), use_bias=False),
            (small,),
            ("ConvTranspose",),
            docs=back,
        ),
        Specimen(
            Conv2DTranspose(2, 2, strides=3, dilation_rate=(1, 2), padding=1),
            (small,),
            ("ConvTranspose",),
            docs=back,
            refuses=(((lm.ArraySpec(("N", 1, 1, 1)),), "cuts off the whole output"),),
        ),
        Specimen(Conv2DTranspose(2, (1, 2), strides=3, padding="same"), (small,), ("ConvTranspose",), docs=back),
        Specimen(DepthwiseConv2D(3, padding="same"), (image,), ("Conv",), docs=docs, refuses=no_images),
        Specimen(
            DepthwiseConv2D((2, 3), depth_multiplier=2, strides=2, activation="relu"),
            (odd,),
            ("Conv", "Relu"),
            docs=docs,
        ),
        Specimen(
            DepthwiseConv2D(2, depth_multiplier=3, dilation_rate=(2, 3), padding=1, use_bias=False),
            (odd,),
            ("Conv",),
            docs=docs,
        ),
        Specimen(SeparableConv2D(4, 3), (odd,), ("Conv", "Conv"), docs="https://arxiv.org/abs/1610.02357"),
        Specimen(
            SeparableConv2D(3, 2, strides=2, padding="same", depth_multiplier=2, use_bias=False, activation="relu"),
            (odd,),
            ("Conv", "Conv", "Relu"),
            docs="https://arxiv.org/abs/1610.02357",
        ),
    ]
