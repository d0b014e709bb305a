"""What pooling by windows takes as arguments, and the shape of what it gives."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella_layers.windows import Padding, Size, Windows, image_shape, padding_argument, window_argument

__all__ = ["WindowPooling"]


class WindowPooling(lm.Layer):
    """What max and average pooling have in common: everything but the passes. Abstract."""

    axes: int  # that windows move along

    def __init__(self, pool_size: Size = 2, strides: Size | None = None, padding: Padding | Size = "valid"):
        self.pool_size = window_argument(pool_size, "pool_size", self.axes)
        self.strides = self.pool_size if strides is None else window_argument(strides, "strides", self.axes)
        self.padding = padding_argument(padding, self.axes)
        for size, pads in zip(self.pool_size, () if isinstance(self.padding, str) else self.padding, strict=False):
            if max(pads) >= size:
                raise lm.ArgumentError(
                    f"padding={padding!r}: expected less on each side than pool_size={pool_size!r}; a window of "
                    "nothing but padding has no value"
                )

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        channels, *_ = image_shape(x, self.axes)
        declare.features(1)
        return x.replace(shape=("N", channels, *self._windows(x).grid))

    def _windows(self, x: Any) -> Windows:
        return Windows.over(tuple(x.shape[2:]), size=self.pool_size, strides=self.strides, padding=self.padding)
