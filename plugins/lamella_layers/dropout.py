"""Layers that add noise in training so that a network can't lean on single features."""

from __future__ import annotations

import math
from typing import Any

import lamella as lm
from lamella.arguments import fraction, number
from lamella.testing import Specimen
from lamella_layers.windows import image_shape

__all__ = ["Dropout", "GaussianNoise", "SpatialDropout2D"]


class _Dropout(lm.Layer):
    """Dropout of elements, or of blocks that share one draw."""

    def __init__(self, rate: float):
        self.rate = fraction(rate, "rate")

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        if not ctx.training:
            return x
        mask = ctx.xp.astype(ctx.uniform(self._draws(x)) >= self.rate, ctx.dtype) * (1.0 / (1.0 - self.rate))
        ctx.save(mask)
        return x * mask

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        if not ctx.saved:  # gradients of a model in inference mode
            return dy
        (mask,) = ctx.saved
        return dy * mask

    def _draws(self, x: Any) -> tuple[Any, ...]:
        """The shape of the draws."""
        shape: tuple[Any, ...] = x.shape
        return shape


class Dropout(_Dropout):
    """Sets elements to zero at random in training, and passes them on unchanged in inference.

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

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        return _floats(declare, x, "Dropout")


class SpatialDropout2D(_Dropout):
    """Sets whole channels to zero at random in training, and passes images on unchanged in inference.

    ``y[n, c, i, j] = x[n, c, i, j] m[n, c] / (1 - rate)`` with ``m`` 0 with probability ``rate``, else 1: neighbouring
    pixels are so alike that single ones are not missed.

    Arguments:
        rate: the fraction of channels that is dropped, in [0, 1).

    Shapes: (N, channels, height, width) -> the same.

    Raises:
        ArgumentError: if ``rate`` is not in [0, 1).
        GraphError: if the input is no image.

    Source: Tompson et al., https://arxiv.org/abs/1411.4280

    >>> import lamella as lm
    >>> lm.Sequential([SpatialDropout2D(0.5)], input_shape=(1, 1, 2)).predict([[[[1.0, 2.0]]]])
    array([[[[1., 2.]]]], dtype=float32)
    """

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        image_shape(x)
        declare.features(1)
        return x

    def _draws(self, x: Any) -> tuple[Any, ...]:
        return (x.shape[0], x.shape[1], 1, 1)


class GaussianNoise(lm.Layer):
    """Adds normal noise in training, and passes its input on unchanged in inference.

    ``y = x + stddev z`` with ``z = sqrt(-2 log(1 - u)) cos(2 pi v)`` (Box and Muller) for uniform ``u, v`` in [0, 1).
    These have 24 bits, so that no ``z`` is beyond 5.8.

    Arguments:
        stddev: the standard deviation of the noise, 0 or more.

    Shapes: any floats -> the same.

    Raises:
        ArgumentError: if ``stddev`` is negative.
        GraphError: if the input is of integers.

    Source: https://doi.org/10.1214/aoms/1177706645

    >>> import lamella as lm
    >>> lm.Sequential([GaussianNoise(0.5)], input_shape=(3,)).predict([[1.0, 2.0, 3.0]])
    array([[1., 2., 3.]], dtype=float32)
    """

    def __init__(self, stddev: float):
        self.stddev = number(stddev, "stddev", minimum=0.0)

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        return _floats(declare, x, "GaussianNoise")

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        if not ctx.training:
            return x
        xp, u, v = ctx.xp, ctx.uniform(x.shape), ctx.uniform(x.shape)
        z = xp.sqrt(-2.0 * xp.log(1.0 - u)) * xp.cos((2.0 * math.pi) * v)
        return x + xp.astype(z, ctx.dtype) * self.stddev

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return dy


def _floats(declare: lm.Declare, x: lm.ArraySpec, name: str) -> lm.ArraySpec:
    if not x.is_float:
        raise lm.GraphError(f"expected floats, got {x}; integers can't be scaled. Put {name} after an embedding")
    declare.features(None)
    return x


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"dropout": Dropout, "gaussian_noise": GaussianNoise, "spatial_dropout2d": SpatialDropout2D}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    spatial, noise = "https://arxiv.org/abs/1411.4280", "https://doi.org/10.1214/aoms/1177706645"
    row, image = lm.ArraySpec(("N", 7)), lm.ArraySpec(("N", 2, 3, 5))
    docs = "https://jmlr.org/papers/v15/srivastava14a.html"
    labels = lm.ArraySpec(("N", 6), "int64", low=0, high=10)
    return [
        Specimen(Dropout(0.4), (row,), (), docs=docs, refuses=(((labels,), "expected floats"),)),
        Specimen(Dropout(0.25), (image,), (), docs=docs),
        Specimen(Dropout(0.0), (lm.ArraySpec(("N", 3, 4)),), (), docs=docs),
        Specimen(SpatialDropout2D(0.4), (image,), (), docs=spatial, refuses=(((labels,), "expected images"),)),
        Specimen(GaussianNoise(0.7), (row,), (), docs=noise, refuses=(((labels,), "expected floats"),)),
        Specimen(GaussianNoise(0.0), (image,), (), docs=noise),
    ]
