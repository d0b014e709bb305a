"""Losses of classifiers: one of several classes, by logits or by probabilities."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lamella.arguments import number
from lamella.errors import DataError
from lamella.losses.loss import (
    Loss,
    as_rows,
    class_targets,
    ignore_class_argument,
    label_smoothing_argument,
    value_targets,
)
from lamella.losses.values import mean_of_places, spread
from lamella.primitives import primitive
from lamella.protocol.context import Context
from lamella.protocol.spec import ArraySpec
from lamella.registry import snake_case

__all__ = [
    "CategoricalCrossEntropy",
    "KLDivergence",
    "SoftmaxCrossEntropy",
    "SoftmaxFocalCrossEntropy",
    "examine_probabilities",
]


class _OfClasses(Loss):
    """What losses of classes have in common: the forms of their targets."""

    label_smoothing: float

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        where = snake_case(type(self).__name__)
        return class_targets(where, prediction, target, ignore_class=self.ignore_class)

    def _rows(self, xp: Any, prediction: Any, target: Any) -> Any:
        return as_rows(xp, prediction, target, ignore_class=self.ignore_class, label_smoothing=self.label_smoothing)


class SoftmaxCrossEntropy(_OfClasses):
    """Cross entropy between classes and the softmax of logits, for classifiers that end without a softmax.

    ``L = log(sum_j exp(x_j)) - x_label``, or for one-hot rows and probabilities ``t``:
    ``L = sum_k t_k (log(sum_j exp(x_j)) - x_k)``. The gradient is ``softmax(x) sum_k t_k - t``. Logits of minus
    infinity are classes that can't be.

    Arguments:
        label_smoothing: the share of each target that is spread over all classes, in [0, 1]:
            ``t = (1 - label_smoothing) t + label_smoothing / C``.
        ignore_class: an integer label whose places do not count, such as -1 at padded steps; the loss is the mean over
            the others.

    Prediction (N, ..., C); target integer labels (N, ...) in [0, C), or one-hot (N, ..., C); `DataError` else.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4; smoothing: Szegedy et al. (2015),
    https://arxiv.org/abs/1512.00567.

    >>> SoftmaxCrossEntropy()(np.array([[0.0, 0.0], [100.0, 0.0]]), [1, 1]).round(4)
    array([  0.6931, 100.    ])
    """

    on_logits = True

    def __init__(self, *, label_smoothing: float = 0.0, ignore_class: int | None = None):
        self.label_smoothing = label_smoothing_argument(label_smoothing)
        self.ignore_class = ignore_class_argument(ignore_class)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        if self.label_smoothing or self.ignore_class is not None:
            target = self._rows(ctx.xp, prediction, target)
        each, e, total = softmax_cross_entropy(ctx, prediction, target)
        ctx.save(e, total, target)
        return each

    def backward(self, ctx: Context, d: Any) -> Any:
        return softmax_cross_entropy_dx(ctx, *ctx.saved, d)


@primitive
def softmax_cross_entropy(xp: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
    """The loss of each sample, ``e = exp(x - max(x))`` and its sum over classes."""
    t = as_rows(xp, x, target)
    z = x - xp.max(x, axis=-1, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=-1, keepdims=True)
    surprise = xp.log(total) - z
    return mean_of_places(xp, xp.sum(xp.where(t == 0.0, xp.zeros_like(t), t * surprise), axis=-1)), e, total


@primitive
def softmax_cross_entropy_dx(xp: Any, e: Any, total: Any, target: Any, d: Any) -> Any:
    """``(softmax(x) sum_k t_k - t) d``, with what the forward pass gave."""
    t = as_rows(xp, e, target)
    return (e / total * xp.sum(t, axis=-1, keepdims=True) - t) * spread(xp, d, t.shape, t.shape[1:-1])


@softmax_cross_entropy.kernel("numpy")
def _(xp: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
    if x.ndim != 2 or target.ndim != 1:
        return softmax_cross_entropy.reference(xp, x, target)  # type: ignore[no-any-return]
    z = x - np.maximum.reduce(x, -1, keepdims=True)
    e = np.exp(z)
    total = np.add.reduce(e, -1, keepdims=True)
    return np.log(total)[:, 0] - z.take(_places(z, target)), e, total


@softmax_cross_entropy_dx.kernel("numpy")
def _(xp: Any, e: Any, total: Any, target: Any, d: Any) -> Any:
    if e.ndim != 2 or target.ndim != 1:
        return softmax_cross_entropy_dx.reference(xp, e, total, target, d)
    slope = np.divide(e, total, order="C")
    flat, places = slope.reshape(-1), _places(e, target)
    flat[places] = flat.take(places) - 1.0
    slope *= d[:, None]
    return slope


def _places(rows: Any, target: Any) -> Any:
    """Where the entry of each row's label stands among all entries: faster than an index for each axis."""
    count, classes = rows.shape
    return target if count == 1 else _first_places(count, classes) + target


@functools.lru_cache(maxsize=16)
def _first_places(count: int, classes: int) -> np.ndarray[Any, Any]:
    return np.arange(0, count * classes, classes)


class CategoricalCrossEntropy(_OfClasses):
    """Cross entropy between classes and probabilities, for classifiers that end with a softmax.

    ``L = -sum_k t_k log(clip(p_k, 1e-7, 1 - 1e-7))`` with Keras's limits. The gradient is exact: ``-t / p`` between
    the limits and 0 beyond them, so a class whose probability fell under 1e-7 no longer learns. Prefer
    ``softmax_cross_entropy`` on logits, which has no limits. Rows are taken as they are, not rescaled to the sum 1.

    Arguments:
        label_smoothing, ignore_class: as in `SoftmaxCrossEntropy`.

    Prediction (N, ..., C); target integer labels (N, ...) in [0, C), or one-hot (N, ..., C); `DataError` else, and
    where training begins with predictions that are no probabilities.

    Source: https://keras.io/api/losses/probabilistic_losses/#categoricalcrossentropy-class

    >>> CategoricalCrossEntropy()(np.array([[0.25, 0.75], [0.0, 1.0]]), [0, 0]).round(4)
    array([ 1.3863, 16.1181])
    """

    on_logits = False

    def __init__(self, *, label_smoothing: float = 0.0, ignore_class: int | None = None):
        self.label_smoothing = label_smoothing_argument(label_smoothing)
        self.ignore_class = ignore_class_argument(ignore_class)

    def examine(self, prediction: np.ndarray) -> None:
        examine_probabilities("categorical_cross_entropy", prediction, "softmax_cross_entropy, or end with a softmax")

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        t = self._rows(ctx.xp, prediction, target)
        ctx.save(prediction, t)
        return mean_of_places(ctx.xp, -ctx.xp.sum(t * ctx.xp.log(self._clip(ctx.xp, prediction)), axis=-1))

    def backward(self, ctx: Context, d: Any) -> Any:
        p, t = ctx.saved
        clipped = self._clip(ctx.xp, p)
        slope = ctx.xp.where(clipped == p, -t / clipped, ctx.xp.zeros_like(p))
        return slope * spread(ctx.xp, d, p.shape, p.shape[1:-1])

    @staticmethod
    def _clip(xp: Any, p: Any) -> Any:
        return xp.clip(p, 1e-7, 1.0 - 1e-7)


def examine_probabilities(where: str, prediction: np.ndarray, instead: str) -> None:
    """Raise unless predictions can be probabilities; ``instead`` ends the advice for logits."""
    if prediction.size and (prediction.min() < -1e-3 or prediction.max() > 1.001):
        raise DataError(
            f"{where}: predictions must be probabilities; got values from {prediction.min():.4g} to "
            f"{prediction.max():.4g}. On logits use {instead}."
        )


class SoftmaxFocalCrossEntropy(_OfClasses):
    """Softmax cross entropy that counts classes less the surer the model is of them: for rare ones among many.

    With ``p = softmax(x)``: ``L = -sum_k (1 - p_k)^gamma t_k log(p_k)``. The gradient, with
    ``g_k = t_k (gamma (1 - p_k)^(gamma - 1) p_k log(p_k) - (1 - p_k)^gamma)``, is ``g - p sum_k g_k``. Logits of minus
    infinity are classes that can't be.

    Arguments:
        gamma: how much less, at least 0; 0 is `SoftmaxCrossEntropy`.
        label_smoothing, ignore_class: as in `SoftmaxCrossEntropy`.

    Prediction (N, ..., C); target integer labels (N, ...) in [0, C), or one-hot (N, ..., C); `DataError` else.

    Source: Lin et al., https://arxiv.org/abs/1708.02002

    >>> SoftmaxFocalCrossEntropy()(np.log([[0.75, 0.25], [0.25, 0.75]]), [0, 0]).round(4)
    array([0.018 , 0.7798])
    """

    on_logits = True

    def __init__(self, gamma: float = 2.0, *, label_smoothing: float = 0.0, ignore_class: int | None = None):
        self.gamma = number(gamma, "gamma", minimum=0.0)
        self.label_smoothing = label_smoothing_argument(label_smoothing)
        self.ignore_class = ignore_class_argument(ignore_class)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp = ctx.xp
        t = self._rows(xp, prediction, target)
        z = prediction - xp.max(prediction, axis=-1, keepdims=True)
        log_p = z - xp.log(xp.sum(xp.exp(z), axis=-1, keepdims=True))
        ctx.save(log_p, t)
        terms = xp.where(t == 0.0, xp.zeros_like(t), t * self._modulation(xp, log_p) * log_p)
        return mean_of_places(xp, -xp.sum(terms, axis=-1))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (log_p, t) = ctx.xp, ctx.saved
        p, others = xp.exp(log_p), -xp.expm1(log_p)
        # p log(p) / (1 - p), which is -1 where p is 1; times (1 - p)^gamma it is 0 there
        ratio = xp.where(p == 0.0, xp.zeros_like(p), p * log_p) / xp.maximum(others, xp.full_like(others, 1e-30))
        g = t * self._modulation(xp, log_p) * (self.gamma * ratio - 1.0)
        return (g - p * xp.sum(g, axis=-1, keepdims=True)) * spread(xp, d, p.shape, p.shape[1:-1])

    def _modulation(self, xp: Any, log_p: Any) -> Any:
        """(1 - p)^gamma."""
        return (-xp.expm1(log_p)) ** self.gamma


class KLDivergence(Loss):
    """How far predicted probabilities are from those of the target: ``L = sum_k t_k log(t_k / p_k)``.

    ``p`` is held above 1e-7, as in Keras; where ``t_k`` is 0 the term is 0. The gradient is ``-t / p``, and 0 where
    ``p`` is below the limit.

    Prediction and target (N, ..., C), probabilities; `DataError` else.

    Source: https://keras.io/api/losses/probabilistic_losses/#kldivergence-class

    >>> KLDivergence()(np.array([[0.5, 0.5], [0.5, 0.5]]), [[0.5, 0.5], [1.0, 0.0]]).round(4)
    array([0.    , 0.6931])
    """

    on_logits = False

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        if len(prediction.shape) < 2:
            raise DataError(
                f"kl_divergence: prediction must have probabilities of classes on its last axis, as in (N, 10); got "
                f"{prediction}"
            )
        return value_targets("kl_divergence", prediction, target, unit=True)

    def examine(self, prediction: np.ndarray) -> None:
        examine_probabilities("kl_divergence", prediction, "softmax_cross_entropy, or end with a softmax")

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp, t = ctx.xp, target
        ctx.save(prediction, t)
        nothing = xp.zeros_like(t)
        terms = t * (xp.log(xp.where(t > 0.0, t, xp.ones_like(t))) - xp.log(_held(xp, prediction)))
        return mean_of_places(xp, xp.sum(xp.where(t > 0.0, terms, nothing), axis=-1))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (p, t) = ctx.xp, ctx.saved
        held = _held(xp, p)
        slope = xp.where(held == p, -t / held, xp.zeros_like(p))
        return slope * spread(xp, d, p.shape, p.shape[1:-1])


def _held(xp: Any, p: Any) -> Any:
    return xp.clip(p, 1e-7, 1.0)
