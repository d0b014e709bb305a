"""Layers that add noise in training so that a network can't lean on single features."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import fraction

__all__ = ["Dropout"]


class Dropout(lm.Layer):
    """Sets numbers to zero at random in training, and passes them on unchanged in inference.

    ``y = x m / (1 - rate)`` with ``m`` 0 with probability ``rate``, else 1: "inverted", so that the mean stays.

    Arguments:
        rate: the fraction that is dropped, in [0, 1).

    Shapes: any floats -> the same.

    Raises:
        ArgumentError: if ``rate`` is not in [0, 1).

    Source: Srivastava et al., https://jmlr.org/papers/v15/srivastava14a.html

    >>> import lamella as lm
    >>> lm.Sequential([Dropout(0.5)], input_shape=(3,)).predict([[1.0, 2.0, 3.0]])
    array([[1., 2., 3.]], dtype=float32)
    """

    def __init__(self, rate: float):
        self.rate = fraction(rate, "rate")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if not x.is_float:
            raise lm.GraphError(f"expected floats, got {x}; integers can't be scaled. Put Dropout after an embedding")
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        if not ctx.training:
            return x
        mask = ctx.xp.astype(ctx.uniform(x.shape) >= self.rate, ctx.dtype) * (1.0 / (1.0 - self.rate))
        ctx.save(mask)
        return x * mask

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        if not ctx.saved:  # gradients of a model in inference mode
            return dy
        (mask,) = ctx.saved
        return dy * mask


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"dropout": Dropout}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    from lamella.testing import Specimen

    docs = "https://jmlr.org/papers/v15/srivastava14a.html"
    labels = lm.ArraySpec(("N", 6), "int64", low=0, high=10)
    return [
        Specimen(Dropout(0.4), (lm.ArraySpec(("N", 7)),), (), docs=docs, refuses=(((labels,), "expected floats"),)),
        Specimen(Dropout(0.25), (lm.ArraySpec(("N", 2, 3, 5)),), (), docs=docs),
        Specimen(Dropout(0.0), (lm.ArraySpec(("N", 3, 4)),), (), docs=docs),
    ]
