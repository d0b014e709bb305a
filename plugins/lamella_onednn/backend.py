"""The backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends import Backend, Namespace, get_backend
from lamella.backends.numpy_backend import NumPyBackend
from lamella.graph.slicing import cost_of, runs_whole

__all__ = ["OneDNNBackend"]

LEAST_WORK = 1 << 17  # multiplications below which a step with convolutions is faster on NumPy's kernels


class OneDNNBackend(NumPyBackend):
    """NumPy, whose kernels oneDNN's precede. Where these pay, a batch is one slice, on the threads of oneDNN."""

    name = "onednn"

    def __init__(self) -> None:
        from lamella_onednn.library import keep_freed_memory, library

        library()
        keep_freed_memory()
        from lamella_layers.convolution.convolution import Convolution
        from lamella_layers.merging import add
        from lamella_onednn import kernels  # noqa: F401  registers them

        self._convolution, self._add = Convolution, add
        self.xp = Namespace("onednn", np, kernels=("onednn", "numpy"))

    def runs_whole(self, graph: Any, rows: int) -> bool:
        """Return whether a graph has convolutions, or its products rule and it walks not over time, step by step."""
        if any(isinstance(operation.layer, self._convolution) for operation in graph.operations):
            return cost_of(graph).work * rows >= LEAST_WORK
        return runs_whole(graph, rows) and not cost_of(graph).recurrent

    def added(self, a: Any, b: Any) -> Any:
        return self._add(self.xp, a, b)

    @property
    def sliced(self) -> Backend:
        """NumPy: its kernels leave the other cores to the other slices."""
        return get_backend("numpy")
