"""The kernels, one file for each family. Importing this package registers them."""

from __future__ import annotations

from lamella_onednn.kernels import (  # noqa: F401
    convolution,
    dense,
    elementwise,
    normalization,
    optimizers,
    pooling,
    recurrent,
)

__all__: list[str] = []
