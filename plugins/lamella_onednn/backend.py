"""The backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends import Backend, Namespace, get_backend
from lamella.backends.numpy_backend import NumPyBackend
from lamella.graph.slicing import runs_whole

__all__ = ["OneDNNBackend"]


class OneDNNBackend(NumPyBackend):
    """NumPy, whose kernels oneDNN's precede. Where these pay, a batch is one slice, on the threads of oneDNN."""

    name = "onednn"

    def __init__(self) -> None:
        from lamella_onednn.library import library

        library()
        from lamella_onednn import kernels  # noqa: F401  registers them

        self.xp = Namespace("onednn", np, kernels=("onednn", "numpy"))

    def runs_whole(self, graph: Any, rows: int) -> bool:
        """Return whether a graph has convolutions, or a batch is one slice on NumPy too, since products rule."""
        shapes = (array.shape for array in graph.arrays.values() if array.trainable)
        return any(len(shape) > 2 for shape in shapes) or runs_whole(graph, rows)

    @property
    def sliced(self) -> Backend:
        """NumPy: its kernels leave the other cores to the other slices."""
        return get_backend("numpy")
