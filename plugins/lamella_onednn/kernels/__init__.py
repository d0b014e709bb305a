"""The kernels, one file for each family. Importing this package registers them."""

from __future__ import annotations

from lamella_onednn.kernels import convolution, dense, elementwise, normalization, pooling, recurrent  # noqa: F401

__all__: list[str] = []
