"""Real data, small enough to travel with the package."""

from __future__ import annotations

import numpy as np

__all__ = ["digits"]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1797 handwritten digits: float32 images (1797, 1, 8, 8), values 0..16, and int64 labels (1797,).

    Thirteen people wrote them; each pixel counts the inked dots in a 4x4 block of the scan. These are all test
    images of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak 1998, CC BY 4.0).

    Source: https://doi.org/10.24432/C50P49

    >>> images, labels = digits()
    >>> images.shape, images.max(), labels[:5]
    ((1797, 1, 8, 8), np.float32(16.0), array([0, 1, 2, 3, 4]))
    """
    from importlib import resources

    file = resources.files(__name__).joinpath("digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return arrays["images"].astype("float32"), arrays["labels"].astype("int64")


def __dir__() -> list[str]:
    return __all__
