"""The forward pass of a network in onnxruntime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from lamella.engine.values import Values
from lamella.graph.slicing import cost_of
from lamella.network import Network
from lamella_onnx.backend.sessions import Sessions
from lamella_onnx.models import trace_model
from lamella_onnx.runtime import explained

__all__ = ["Inference"]

LARGEST = 1 << 24  # bytes of what the largest layer takes and gives in a run; longer batches run in parts

Array = np.ndarray[Any, Any]


class Inference:
    """The inference of one network: a graph that takes arrays as inputs, and one that holds those of now.

    onnxruntime packs weights that a graph holds once, and multiplies faster with them, but to load such a graph costs
    as much as some small batches. So the first values, and later ones if those before them served twice or more, are
    put into the graph; those that are asked for once between training steps are inputs. What was decided holds as long
    as the values stand still: equal inputs give equal bits.

    Raises:
        TraceError: a layer does something that can't be written down.
        ParityError: onnxruntime can't load the graph.
    """

    def __init__(self, network: Network) -> None:
        graph = network.graph
        trace = trace_model(network, given=tuple(graph.arrays), as_stored=True)
        self._names = network.input_names
        self._outputs = list(network.output_names)
        self._proto = trace.proto
        self._open = Sessions(self._proto.SerializeToString())
        self._open.get()
        self._rows = max(1, LARGEST // max(1, cost_of(graph).largest))
        self._lock = threading.Lock()
        self._of: tuple[Any, ...] = ()  # the values that were served last
        self._served = 0
        self._held: Sessions | None = None
        self._arrays: dict[str, Array] = {}

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
            with explained("the graph of inference"):
                parts.append(loaded.run(self._outputs, feeds | arrays))
        if len(parts) == 1:
            return tuple(parts[0])
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _serving(self, values: Values) -> tuple[Sessions, dict[str, Array]]:
        """The graph to run, and the arrays that it takes."""
        now = values, values.parameters.version, values.state.version
        with self._lock:
            if self._of and self._of[0] is values and self._of[1:] == now[1:]:
                self._served += 1
            else:
                holds = not self._of or self._served > 1
                stored = {**values.parameters.stored(), **values.state.stored()}
                self._held = Sessions(self._holding(stored)) if holds else None
                self._arrays = {} if holds else stored
                self._of, self._served = now, 1
            return self._held or self._open, self._arrays

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
