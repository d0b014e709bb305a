"""Losses of yes-no decisions, each number of a prediction by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.arguments import flag, number
from lamella.errors import ArgumentError, DataError, shown
from lamella.losses.classes import examine_probabilities
from lamella.losses.loss import Loss, label_smoothing_argument, value_targets
from lamella.losses.values import mean_of_places, spread
from lamella.primitives import relu, sigmoid
from lamella.protocol.context import Context
from lamella.protocol.spec import ArraySpec

__all__ = ["BinaryCrossEntropy", "BinaryFocalCrossEntropy", "Hinge"]


class BinaryCrossEntropy(Loss):
    """Cross entropy of yes-no targets, by default on logits, for models that end without a sigmoid.

    ``L = max(x, 0) - x t + log(1 + exp(-|x|))``, which is ``-t log(s) - (1 - t) log(1 - s)`` with ``s = sigmoid(x)``
    and never overflows. The gradient is ``s - t``.

    On probabilities ``L = -t log(p) - (1 - t) log(1 - p)`` with ``p`` held between 1e-7 and 1 - 1e-7, Keras's limits.
    The gradient is exact: ``(p - t) / (p (1 - p))`` between the limits and 0 beyond them, so that a decision that is
    quite sure no longer learns. Prefer logits, which have no limits.

    Arguments:
        from_logits: whether predictions are logits; False for models that end with a sigmoid.
        label_smoothing: how far targets are moved to one half, in [0, 1]:
            ``t = (1 - label_smoothing) t + label_smoothing / 2``.

    Prediction and target of one shape (N, ...); targets are labels, booleans or probabilities; `DataError` else, and
    where training begins with predictions that are no probabilities and should be.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn/sigmoid_cross_entropy_with_logits

    >>> BinaryCrossEntropy()(np.array([0.0, 1000.0, 1000.0]), [1, 1, 0]).round(4)
    array([6.931e-01, 0.000e+00, 1.000e+03])
    >>> BinaryCrossEntropy(from_logits=False)(np.array([0.5, 0.25]), [1, 0]).round(4)
    array([0.6931, 0.2877])
    """

    def __init__(self, *, from_logits: bool = True, label_smoothing: float = 0.0):
        self.from_logits = self.on_logits = flag(from_logits, "from_logits")
        self.label_smoothing = label_smoothing_argument(label_smoothing)

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return value_targets("binary_cross_entropy", prediction, target, unit=True)

    def examine(self, prediction: np.ndarray) -> None:
        if not self.from_logits:
            examine_probabilities("binary_cross_entropy", prediction, "from_logits=True, or end with a sigmoid")

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp, x, t = ctx.xp, prediction, smoothed(target, self.label_smoothing)
        ctx.save(x, t)
        if self.from_logits:
            return mean_of_places(xp, _on_logits(xp, x, t))
        p = _held(xp, x)
        return mean_of_places(xp, -(t * xp.log(p) + (1.0 - t) * xp.log1p(-p)))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (x, t) = ctx.xp, ctx.saved
        d = spread(xp, d, x.shape, x.shape[1:])
        if self.from_logits:
            return (sigmoid(ctx, x) - t) * d
        p = _held(xp, x)
        return xp.where(p == x, (p - t) / (p * (1.0 - p)), xp.zeros_like(p)) * d


class BinaryFocalCrossEntropy(Loss):
    """Binary cross entropy that counts decisions less the surer the model is of them, on logits: for a rare yes.

    With ``s = sigmoid(x)`` and ``q = t (1 - s) + (1 - t) s``, what is missing to the right answer:
    ``L = a q^gamma B``, where ``B`` is the binary cross entropy and ``a = alpha t + (1 - alpha) (1 - t)``. The gradient
    is ``a q^gamma (s - t - gamma B (2 t - 1) s (1 - s) / q)``.

    Arguments:
        gamma: how much less, at least 0; 0 is `BinaryCrossEntropy`.
        alpha: the weight of yes, in [0, 1], where no has ``1 - alpha``; None for no weights.
        label_smoothing: as in `BinaryCrossEntropy`.

    Prediction and target of one shape (N, ...); targets are labels, booleans or probabilities; `DataError` else.

    Source: Lin et al., https://arxiv.org/abs/1708.02002

    >>> BinaryFocalCrossEntropy()(np.array([2.0, -2.0]), [1, 1]).round(4)
    array([0.0018, 1.6501])
    """

    on_logits = True

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, *, label_smoothing: float = 0.0):
        self.gamma = number(gamma, "gamma", minimum=0.0)
        self.alpha = None if alpha is None else number(alpha, "alpha", minimum=0.0)
        if self.alpha is not None and self.alpha > 1.0:
            raise ArgumentError(f"alpha: expected a number in [0, 1], got {shown(alpha)}")
        self.label_smoothing = label_smoothing_argument(label_smoothing)

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return value_targets("binary_focal_cross_entropy", prediction, target, unit=True)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp, x, t = ctx.xp, prediction, smoothed(target, self.label_smoothing)
        ctx.save(x, t)
        _, factor = self._missing(ctx, x, t)
        return mean_of_places(xp, factor * _on_logits(xp, x, t))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (x, t) = ctx.xp, ctx.saved
        s, (q, factor) = sigmoid(ctx, x), self._missing(ctx, x, t)
        share = s * sigmoid(ctx, -x) / xp.maximum(q, xp.full_like(q, 1e-30))  # at most 1, as q >= s (1 - s)
        slope = s - t - self.gamma * _on_logits(xp, x, t) * (2.0 * t - 1.0) * share
        return factor * slope * spread(xp, d, x.shape, x.shape[1:])

    def _missing(self, ctx: Context, x: Any, t: Any) -> tuple[Any, Any]:
        """q, and a q^gamma."""
        q = t * sigmoid(ctx, -x) + (1.0 - t) * sigmoid(ctx, x)
        factor = q**self.gamma
        return q, factor if self.alpha is None else factor * (self.alpha * t + (1.0 - self.alpha) * (1.0 - t))


class Hinge(Loss):
    """How far decisions are from being right by a margin of 1: ``L = mean(max(0, 1 - s x))``.

    ``s`` is 1 for yes and -1 for no. The gradient is ``-s / D`` where ``s x < 1``, 0 where it is more, and half of it
    at the kink between them.

    Prediction and target of one shape (N, ...), D numbers for each sample; targets are 0 and 1, booleans, or -1 and 1;
    `DataError` else.

    Source: https://keras.io/api/losses/hinge_losses/#hinge-class

    >>> Hinge()(np.array([2.0, 0.5, 0.5]), [1, 1, 0])
    array([0. , 0.5, 1.5])
    """

    on_logits = True

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        values = value_targets("hinge", prediction, target)
        found = set(np.unique(values).tolist())
        if not (found <= {0.0, 1.0} or found <= {-1.0, 1.0}):
            odd = sorted(found - {-1.0, 0.0, 1.0})
            got = f"{odd[0]:g}" if odd else "-1 and 0"
            raise DataError(f"hinge: targets must be 0 and 1, or -1 and 1; got {got}. Use y > 0 for yes.")
        return values

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp = ctx.xp
        sign = xp.where(target > 0.0, xp.ones_like(target), -xp.ones_like(target))
        short = 1.0 - sign * prediction
        ctx.save(sign, short)
        return mean_of_places(xp, relu(xp, short))

    def backward(self, ctx: Context, d: Any) -> Any:
        xp, (sign, short) = ctx.xp, ctx.saved
        return -sign * (0.5 + 0.5 * xp.sign(short)) * spread(xp, d, sign.shape, sign.shape[1:])


def smoothed(target: Any, label_smoothing: float) -> Any:
    """Yes-no targets moved to one half."""
    return (1.0 - label_smoothing) * target + 0.5 * label_smoothing if label_smoothing else target


def _on_logits(xp: Any, x: Any, t: Any) -> Any:
    """The binary cross entropy of each logit."""
    return relu(xp, x) - x * t + xp.log1p(xp.exp(-xp.abs(x)))


def _held(xp: Any, p: Any) -> Any:
    """Probabilities within Keras's limits."""
    return xp.clip(p, 1e-7, 1.0 - 1e-7)
