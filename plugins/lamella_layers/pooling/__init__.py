"""Pooling: one value for each window of an image or a series, or for all of it, channel by channel.

N batch, C channels, then H W, height and width of an image, or L, length of a series: (N, C, L) is the layout of ONNX
and PyTorch, where Keras has (N, L, C), which `Permute((2, 1))` turns into it.
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.testing import Specimen
from lamella_layers.pooling import kernels  # noqa: F401  registers them
from lamella_layers.pooling.average_pooling import AveragePooling1D, AveragePooling2D, average_pool, average_pool_dx
from lamella_layers.pooling.global_pooling import (
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    global_average_pool,
    global_average_pool_dx,
    global_max_pool,
    global_max_pool_dx,
)
from lamella_layers.pooling.max_pooling import (
    MaxPooling1D,
    MaxPooling2D,
    max_pool,
    max_pool_dx,
    max_pool_step,
    max_pool_step_dx,
)

__all__ = [
    "AveragePooling1D",
    "AveragePooling2D",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "MaxPooling1D",
    "MaxPooling2D",
    "average_pool",
    "average_pool_dx",
    "global_average_pool",
    "global_average_pool_dx",
    "global_max_pool",
    "global_max_pool_dx",
    "max_pool",
    "max_pool_dx",
    "max_pool_step",
    "max_pool_step_dx",
]


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "average_pooling1d": AveragePooling1D,
        "average_pooling2d": AveragePooling2D,
        "global_average_pooling1d": GlobalAveragePooling1D,
        "global_average_pooling2d": GlobalAveragePooling2D,
        "global_max_pooling1d": GlobalMaxPooling1D,
        "global_max_pooling2d": GlobalMaxPooling2D,
        "max_pooling1d": MaxPooling1D,
        "max_pooling2d": MaxPooling2D,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    image, odd = lm.ArraySpec(("N", 3, 6, 8)), lm.ArraySpec(("N", 2, 7, 5))
    series, symbolic = lm.ArraySpec(("N", 3, 7)), lm.ArraySpec(("N", 2, "T"))
    refuses = (
        ((lm.ArraySpec(("N", 64)),), "expected images"),
        ((lm.ArraySpec(("N", 28, 28, 1)),), "NHWC"),
        ((lm.ArraySpec(("N", 1, "H", "W")),), "known sizes"),
        ((image.replace(dtype="uint8"),), "astype"),
    )
    refuses_1d = (
        ((lm.ArraySpec(("N", 64)),), "expected series"),
        ((lm.ArraySpec(("N", 28, 1)),), "(N, length, channels)"),
        ((symbolic,), "known sizes"),
    )
    rows = (
        (MaxPooling1D, MaxPooling2D, GlobalMaxPooling1D, GlobalMaxPooling2D, "MaxPool"),
        (AveragePooling1D, AveragePooling2D, GlobalAveragePooling1D, GlobalAveragePooling2D, "AveragePool"),
    )
    return [
        specimen
        for of_series, of_images, of_a_series, of_an_image, node in rows
        for docs in [f"https://onnx.ai/onnx/operators/onnx__{node}.html"]
        for specimen in (
            Specimen(of_images(), (image,), (node,), docs=docs, refuses=refuses),
            Specimen(of_images(), (odd,), (node,), docs=docs),
            Specimen(of_images(3, strides=2), (odd,), (node,), docs=docs),
            Specimen(of_images(3, strides=1, padding="same"), (odd,), (node,), docs=docs),
            Specimen(of_images((2, 3), strides=(1, 2), padding="same"), (image,), (node,), docs=docs),
            Specimen(of_images(3, strides=2, padding=((1, 0), (2, 1))), (image,), (node,), docs=docs),
            Specimen(of_images((1, 4), strides=(2, 3)), (image,), (node,), docs=docs),
            Specimen(of_images((18, 2), strides=(18, 1)), (lm.ArraySpec(("N", 2, 37, 3)),), (node,), docs=docs),
            Specimen(of_series(), (series,), (node,), docs=docs, refuses=refuses_1d),
            Specimen(of_series(3, strides=2, padding=(0, 2)), (series,), (node,), docs=docs),
            Specimen(of_series(2, strides=3, padding="same"), (series,), (node,), docs=docs),
            Specimen(of_an_image(), (odd,), (f"Global{node}", "Squeeze"), docs=docs, refuses=refuses[:1] + refuses[3:]),
            Specimen(of_an_image(keepdims=True), (odd,), (f"Global{node}",), docs=docs),
            Specimen(of_a_series(), (symbolic,), (f"Global{node}", "Squeeze"), docs=docs, refuses=refuses_1d[:1]),
        )
    ]
