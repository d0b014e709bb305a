"""The tracer: array code runs on arrays without values, and is written down as an ONNX graph.

- `dims`: sizes that are not known when a graph is traced
- `arrays`: the arrays
- `graph`: nodes and constants, as they are added
- `functions`: what each function of the namespace adds
- `kernels`: what each primitive of the core adds; those of plugins stand beside their primitives
- `writer`: the graph as a file's content
"""

from __future__ import annotations

from lamella_onnx.tracer import kernels
from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, TraceError, same_shape
from lamella_onnx.tracer.functions import FUNCTIONS
from lamella_onnx.tracer.graph import Graph
from lamella_onnx.tracer.writer import write

__all__ = ["Dim", "Graph", "TraceError", "Traced", "new_graph", "same_shape", "write"]


def new_graph(opset: int, *, stable: bool = False) -> Graph:
    """Return an empty graph that knows every function of the namespace and the core's primitives.

    With ``stable``, operators that round worse than their primitive's reference give way to it.

    >>> graph = new_graph(21)
    >>> x = graph.input("x", ("N", 4), "float32")
    >>> [node.op_type for node in write(graph, {"y": graph.xp.tanh(x) + 1.0}).graph.node]
    ['Tanh', 'Add']
    """
    kernels.register()
    return Graph(opset, FUNCTIONS, stable=stable)
