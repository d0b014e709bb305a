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
        from lamella_onednn import kernels

        self._convolution, self._add, self._takes = Convolution, add, kernels.recurrent.takes
        self.writers = kernels.optimizers.WRITERS
        self.xp = Namespace("onednn", np, kernels=("onednn", "numpy"))

    def runs_whole(self, graph: Any, rows: int) -> bool:
        """Return whether a graph has convolutions, recurrent layers that oneDNN has, or products that rule."""
        if any(isinstance(operation.layer, self._convolution) for operation in graph.operations):
            return cost_of(graph).work * rows >= LEAST_WORK
        recurrent = [operation for operation in graph.operations if operation.layer.recurrent]
        if not recurrent:
            return runs_whole(graph, rows)
        inputs = [tuple(graph.specs[value] for value in operation.inputs) for operation in recurrent]
        pairs = zip(recurrent, inputs, strict=True)
        return graph.dtype == "float32" and all(self._takes(operation.layer, given) for operation, given in pairs)

    def added(self, a: Any, b: Any) -> Any:
        return self._add(self.xp, a, b)

    @property
    def sliced(self) -> Backend:
        """NumPy: its kernels leave the other cores to the other slices."""
        return get_backend("numpy")
