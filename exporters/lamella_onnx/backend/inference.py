"""The forward pass of a network in onnxruntime."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from lamella.engine.threads import thread_count
from lamella.engine.values import Values
from lamella.graph.slicing import cost_of
from lamella.network import Network, inference_of
from lamella_onnx.backend.sessions import Sessions
from lamella_onnx.models import trace_model
from lamella_onnx.runtime import refusal

__all__ = ["Inference"]

LARGEST = 1 << 24  # bytes of what the largest layer takes and gives in a run; longer batches run in parts

HELD = 1 << 28  # bytes of arrays that a graph holds at most: it is copied while it loads

Array = np.ndarray[Any, Any]


class Inference:
    """The inference of one network. Its graph holds the arrays of now, since onnxruntime packs what a graph holds.

    Products with packed weights, and convolutions, are up to twice as fast; a graph loads in some milliseconds, anew
    where the arrays have changed. Networks with more than 256 MB of arrays have them as inputs instead. Nothing else
    decides on it, so that equal arrays give equal bits.

    Raises:
        TraceError: a layer does something that can't be written down.
        ParityError: onnxruntime can't load the graph.
    """

    def __init__(self, network: Network) -> None:
        graph, self._device = network.graph, network.device
        self._graph = graph
        itemsize = np.dtype(graph.dtype).itemsize
        self._holds = itemsize * sum(math.prod(one.shape) for one in graph.arrays.values()) <= HELD
        self._names, self._outputs = network.input_names, list(network.output_names)
        self._proto = trace_model(network, given=tuple(graph.arrays), as_stored=True).proto
        self._sessions = Sessions(self._proto.SerializeToString())  # with arrays as inputs, until some are held
        self._sessions.get()
        self._rows = max(1, LARGEST // max(1, cost_of(graph).largest))
        self._lock = threading.Lock()
        self._of: tuple[Any, ...] = (None,)  # the values that were served last
        self._given: dict[str, Array] = {}

    def infer(
        self, values: Values, inputs: Sequence[Any], bring: Callable[[Sequence[Any]], Sequence[Any]] = tuple
    ) -> tuple[Array, ...]:
        """Return the outputs of a batch; large ones run in parts."""
        sessions, arrays = self._serving(values)
        loaded, rows = sessions.get(), inputs[0].shape[0]
        parts = []
        for start in range(0, rows, self._rows):
            some = bring(inputs if rows <= self._rows else [x[start : start + self._rows] for x in inputs])
            feeds = dict(zip(self._names, map(np.ascontiguousarray, some), strict=True))
            try:
                parts.append(loaded.run(self._outputs, feeds | arrays))
            except Exception as error:  # onnxruntime's own have no common base
                # the engine says what is wrong with the data
                inference_of(self._graph, self._device, rows, thread_count()).infer(values, inputs, bring)
                raise refusal("the graph of inference", error) from error
        if len(parts) == 1:
            return tuple(parts[0])
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _serving(self, values: Values) -> tuple[Sessions, dict[str, Array]]:
        """The graph to run, and the arrays that it takes."""
        versions = values.parameters.version, values.state.version
        with self._lock:
            if self._of[0] is not values or self._of[1:] != versions:
                stored = {**values.parameters.stored(), **values.state.stored()}
                if self._holds:
                    self._sessions = Sessions(self._holding(stored))
                else:
                    self._given = stored
                self._of = values, *versions
            return self._sessions, self._given

    def _holding(self, arrays: Mapping[str, Array]) -> bytes:
        """The graph with arrays as constants."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        inputs = [value for value in proto.graph.input if value.name not in arrays]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
        content: bytes = proto.SerializeToString()
        return content
