"""What errors of the engine likely come from."""

from __future__ import annotations

import re

__all__ = ["IMPURE", "WIDENED", "cause_of"]

WIDENED = re.compile(r"write scalars as Python floats|\) float32, got .*\) float64")
"""Words of the engine where float64 comes out of a float32 model."""

IMPURE = (
    "the object is configuration and frozen",
    "ctx.update outside training",
    "ctx.uniform is for",
    "are never written to",
)
"""Words of errors of the engine that tell of what a pure layer does not do."""

CAUSES = (
    (
        "ctx.uniform is for forward_pass in training",
        "noise in inference; return x as it is unless ctx.training, and draw in forward_pass only",
    ),
    ("ctx.update outside training", "statistics that are updated in inference; update only if ctx.training"),
    ("gave no gradient for parameter", "the parameter is declared and never used, or forgotten in ctx.grad(...)"),
    (
        "the object is configuration and frozen",
        "state kept on the layer. A layer may stand at several nodes and run in many threads: use ctx.save for the "
        "backward pass, declare.state and ctx.update for what lasts",
    ),
    ("build said", "build returns another shape or dtype than forward_pass gives"),
    ("ctx.update got different values", "statistics of a slice; yield sums, and update from the totals"),
)
"""Words of an error, and what it likely comes from."""


def cause_of(message: str) -> str:
    """What an error likely comes from, where its words tell."""
    if WIDENED.search(message):
        told = "Python floats keep" if "as Python floats" in message else "write scalars as Python floats, which keep"
        return f"a NumPy scalar or array of float64 in an expression, such as np.sqrt(2.0); {told} float32"
    return next((cause for words, cause in CAUSES if words in message), "")
