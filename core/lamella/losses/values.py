"""Losses of predicted numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lamella.arguments import flag, number
from lamella.errors import ArgumentError, DataError
from lamella.losses.loss import Loss, value_targets
from lamella.protocol.context import Context
from lamella.protocol.spec import ArraySpec

__all__ = ["CosineSimilarity", "Huber", "LogCosh", "MeanAbsoluteError", "MeanSquaredError", "Poisson"]


def mean_of_places(xp: Any, losses: Any) -> Any:
    """(N, ...) -> (N,), the mean over all axes but the first."""
    return losses if losses.ndim == 1 else xp.mean(losses, axis=tuple(range(1, losses.ndim)))


def spread(xp: Any, d: Any, shape: tuple[Any, ...], averaged: tuple[Any, ...]) -> Any:
    """The backward pass of `mean_of_places`: (N,) -> (N, 1, ..., 1), shared among the numbers that were averaged."""
    return xp.reshape(d, (shape[0], *(1 for _ in shape[1:]))) / math.prod(averaged)


class MeanSquaredError(Loss):
    """The mean of squared differences, ``L = mean((y - t)^2)``; its gradient is ``2 (y - t) / D``.

    Prediction and target of one shape (N, ...), D numbers for each sample; `DataError` else, nothing is broadcast.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html

    >>> MeanSquaredError()(np.array([[1.0, 2.0]]), [[0, 0]])
    array([2.5])
    """

    on_logits = False

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        r = prediction - target
        ctx.save(r)
        return mean_of_places(ctx.xp, r * r)

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return 2.0 * r * spread(ctx.xp, d, r.shape, r.shape[1:])


class MeanAbsoluteError(Loss):
    """The mean of absolute differences, ``L = mean(|y - t|)``; its gradient is ``sign(y - t) / D``.

    Prediction and target of one shape (N, ...), D numbers for each sample; `DataError` else, nothing is broadcast.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html

    >>> MeanAbsoluteError()(np.array([[1.0, -2.0]]), [[0, 0]])
    array([1.5])
    """

    on_logits = False

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        r = prediction - target
        ctx.save(r)
        return mean_of_places(ctx.xp, ctx.xp.abs(r))

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return ctx.xp.sign(r) * spread(ctx.xp, d, r.shape, r.shape[1:])


class Huber(Loss):
    """Squared for small differences, linear for large ones, so that outliers pull less.

    With ``r = y - t``: ``L = mean(r^2 / 2)`` where ``|r| <= delta``, ``delta (|r| - delta / 2)`` elsewhere. The
    gradient is ``clip(r, -delta, delta) / D``.

    Arguments:
        delta: where the parabola meets the straight line, more than 0.

    Prediction and target of one shape (N, ...), D numbers for each sample; `DataError` else, nothing is broadcast.

    Source: Huber, Robust Estimation of a Location Parameter (1964), https://doi.org/10.1214/aoms/1177703732

    >>> Huber(delta=2.0)(np.array([[1.0], [5.0]]), [[0], [0]])
    array([0.5, 8. ])
    """

    on_logits = False

    def __init__(self, delta: float = 1.0):
        self.delta = number(delta, "delta", minimum=0.0)
        if not self.delta:
            raise ArgumentError("delta: expected a number above 0, got 0; mean_absolute_error is all slope")

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        r = prediction - target
        ctx.save(r)
        clipped = ctx.xp.clip(r, -self.delta, self.delta)  # c (r - c / 2) is both branches in one
        return mean_of_places(ctx.xp, clipped * (r - 0.5 * clipped))

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return ctx.xp.clip(r, -self.delta, self.delta) * spread(ctx.xp, d, r.shape, r.shape[1:])


class LogCosh(Loss):
    """Squared for small differences and linear for large ones, smooth everywhere: ``L = mean(log(cosh(y - t)))``.

    Its gradient is ``tanh(y - t) / D``.

    Prediction and target of one shape (N, ...), D numbers for each sample; `DataError` else, nothing is broadcast.

    Source: https://keras.io/api/losses/regression_losses/#logcosh-class

    >>> LogCosh()(np.array([[1.0], [1000.0]]), [[0], [0]]).round(4)
    array([4.338000e-01, 9.993069e+02])
    """

    on_logits = False

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp, r = ctx.xp, prediction - target
        ctx.save(r)
        size = xp.abs(r)
        return mean_of_places(xp, size + xp.log1p(xp.exp(-2.0 * size)) - math.log(2.0))

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return ctx.xp.tanh(r) * spread(ctx.xp, d, r.shape, r.shape[1:])


class Poisson(Loss):
    """The negative log-likelihood of counts whose means are predicted, but for a term without them.

    ``L = mean(y - t log(y + 1e-7))``, with Keras's 1e-7; its gradient is ``(1 - t / (y + 1e-7)) / D``. With
    ``log_input``, predictions are the logarithms of means, and may be any numbers: ``L = mean(exp(y) - t y)``, with the
    gradient ``(exp(y) - t) / D``.

    Arguments:
        log_input: whether predictions are logarithms of means, so that a model may end without an activation.

    Prediction and target of one shape (N, ...), D numbers for each sample, targets at least 0; `DataError` else, and
    where training begins with predicted means below 0.

    Source: https://keras.io/api/losses/probabilistic_losses/#poisson-class,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.PoissonNLLLoss.html

    >>> Poisson(log_input=True)(np.array([0.0, 1.0]), [2, 2]).round(4)
    array([1.    , 0.7183])
    """

    on_logits = False

    def __init__(self, *, log_input: bool = False):
        self.log_input = flag(log_input, "log_input")

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        counts = value_targets("poisson", prediction, target)
        if counts.size and not counts.min() >= 0.0:
            raise DataError(f"poisson: targets are counts, and must be at least 0; got {counts.min():g}")
        return counts

    def examine(self, prediction: np.ndarray) -> None:
        if not self.log_input and prediction.size and prediction.min() < 0.0:
            raise DataError(
                f"poisson: predictions are means, and must be at least 0; got {prediction.min():.4g}. End with "
                "activation='softplus', or use lm.losses.Poisson(log_input=True) for logarithms of means"
            )

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp, y = ctx.xp, prediction
        ctx.save(y, target)
        return mean_of_places(xp, xp.exp(y) - target * y if self.log_input else y - target * xp.log(y + 1e-7))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (y, t) = ctx.xp, ctx.saved
        slope = xp.exp(y) - t if self.log_input else 1.0 - t / (y + 1e-7)
        return slope * spread(xp, d, y.shape, y.shape[1:])


class CosineSimilarity(Loss):
    """The negative cosine of the angle between prediction and target: ``L = -sum_k y_k t_k / (|y| |t|)``.

    It is -1 for vectors of one direction, 0 for orthogonal ones and 1 for opposite ones, whatever their lengths;
    lengths are held above 1e-6, so that for vectors of zeros it is 0. The gradient is ``(c y / |y| - t / |t|) / |y|``
    with the cosine ``c``.

    Prediction and target of one shape (N, ..., D), vectors along the last axis; `DataError` else.

    Source: https://keras.io/api/losses/regression_losses/#cosinesimilarity-class

    >>> CosineSimilarity()(np.array([[1.0, 0.0], [3.0, 3.0]]), [[0, 2], [1, 1]]).round(4)
    array([-0., -1.])
    """

    on_logits = False

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        if len(prediction.shape) < 2:
            raise DataError(
                f"cosine_similarity: prediction must have vectors along its last axis, as in (N, 10); got {prediction}"
            )
        return value_targets("cosine_similarity", prediction, target)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp = ctx.xp
        (y, length), (t, _) = _unit(xp, prediction), _unit(xp, target)
        cosine = xp.sum(y * t, axis=-1, keepdims=True)
        ctx.save(y, length, t, cosine)
        return mean_of_places(xp, -xp.squeeze(cosine, axis=-1))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (y, length, t, cosine) = ctx.xp, ctx.saved
        turns = xp.astype(length > _SHORTEST, y.dtype)  # shorter ones are only scaled
        return (turns * cosine * y - t) / length * spread(xp, d, y.shape, y.shape[1:-1])


_SHORTEST = 1e-6


def _unit(xp: Any, x: Any) -> tuple[Any, Any]:
    """Vectors of length 1, and the lengths that they had."""
    length = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    length = xp.maximum(length, xp.full_like(length, _SHORTEST))
    return x / length, length
