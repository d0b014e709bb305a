"""NumPy: the reference backend, and the fast one on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends.base import Backend
from lamella.backends.namespace import Namespace

__all__ = ["NumPyBackend"]


class NumPyBackend(Backend):
    """NumPy on all cores: slices of a batch side by side, or one slice and BLAS on all threads."""

    name = "numpy"
    views_are_live = writes_in_place = uses_threads = knows_shapes = has_numpy_arrays = True

    def __init__(self) -> None:
        self.xp = Namespace("numpy", np)

    def dtype(self, name: str) -> Any:
        return np.dtype(name)

    def settled(self, array: Any) -> Any:
        """Return the array with its last axis fastest in memory, or as it is if that is axis 1 of images; else a copy.

        The OpenBLAS of NumPy 2.4.4 to 2.4.6 (0.3.31) gives wrong results, and damages memory, where two threads at
        once multiply small float32 matrices of which both factors lie transposed in memory, on processors with AVX-512.
        Where layers get their arrays like this, a product ``x.T @ dy`` transposes one factor only.
        """
        if array.flags.c_contiguous or array.strides[-1] == array.itemsize:
            return array
        return array if array.ndim == 4 and array.strides[1] == array.itemsize else np.ascontiguousarray(array)

    def zeros(self, size: int, dtype: str) -> Any:
        return np.zeros(size, dtype)

    def view(self, storage: Any) -> Any:
        view = storage.view()
        view.flags.writeable = False
        return view

    def storable(self, array: Any) -> Any:
        return array

    def asarray(self, array: Any) -> Any:
        return self.view(
            self.settled(np.asarray(array))
        )  # a layer that writes into its input would write into the user's data

    asnumpy = staticmethod(np.asarray)  # type: ignore[assignment]
