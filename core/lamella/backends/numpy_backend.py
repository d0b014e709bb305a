"""NumPy: the reference backend, and the fast one on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends.namespace import Namespace

__all__ = ["NumPyBackend"]


class NumPyBackend:
    name = "numpy"
    views_are_live = True

    def __init__(self) -> None:
        self.xp = Namespace("numpy", np)

    def zeros(self, size: int, dtype: str) -> Any:
        return np.zeros(size, dtype)

    def view(self, storage: Any) -> Any:
        view = storage.view()
        view.flags.writeable = False
        return view

    def storable(self, array: Any) -> Any:
        return array

    def asarray(self, array: Any) -> Any:
        return self.view(np.asarray(array))  # a layer that writes into its input would write into the user's data

    def asnumpy(self, array: Any) -> Any:
        return np.asarray(array)
