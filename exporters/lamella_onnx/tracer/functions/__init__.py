"""What layer code may do with traced arrays: every function of `lamella.backends.NAMESPACE`, and slicing.

Each function takes the graph first. Where onnxruntime has no kernel for a small integer type, the operator runs in a
wider one between two casts.

Values are NumPy's, but for a few that are onnxruntime's: ``max``, ``min``, ``argmax`` and ``argmin`` pass over NaN;
``infinity // y`` and ``(-infinity) ** 0.5`` are infinity, not NaN; an integer divided by 0 is an error, and the
smallest int32 or int64 divided by -1 ends the process.
"""

from __future__ import annotations

from lamella_onnx.tracer.functions import conversion, creation, elementwise, indexing, reductions, shaping
from lamella_onnx.tracer.table import Table

__all__ = ["FUNCTIONS"]

FUNCTIONS = Table(
    conversion.TABLE | creation.TABLE | elementwise.TABLE | indexing.TABLE | reductions.TABLE | shaping.TABLE
)
