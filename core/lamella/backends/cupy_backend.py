"""CuPy: the same array code on an NVIDIA GPU. Needs CuPy 14 or newer and a CUDA device."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends.base import Backend
from lamella.backends.namespace import Namespace

__all__ = ["CuPyBackend"]


class CuPyBackend(Backend):
    """CuPy: the batch is one slice."""

    name = "cupy"
    views_are_live = knows_shapes = True
    writes_in_place = uses_threads = False

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:  # an optional dependency
            raise ImportError(
                "the 'cupy' backend needs CuPy: pip install 'lamella[cuda12]' or 'lamella[cuda13]'"
            ) from error
        self.cupy = cupy
        self.xp = Namespace("cupy", cupy)

    def dtype(self, name: str) -> Any:
        return np.dtype(name)

    def settled(self, array: Any) -> Any:
        return array

    def zeros(self, size: int, dtype: str) -> Any:
        return self.cupy.zeros(size, dtype)

    def view(self, storage: Any) -> Any:
        return storage  # CuPy has no read-only arrays

    def storable(self, array: Any) -> Any:
        return array

    def asarray(self, array: Any) -> Any:
        return self.cupy.asarray(array)

    def asnumpy(self, array: Any) -> Any:
        return array if isinstance(array, np.ndarray) else self.cupy.asnumpy(array)
