"""What a loss is: one number for each sample, and the gradient of their weighted mean; and what targets must be."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import flag, number
from lamella.backends import get_backend
from lamella.errors import ArgumentError, DataError, shown
from lamella.primitives import one_hot
from lamella.protocol.configured import Configured
from lamella.protocol.context import Context
from lamella.protocol.inputs import as_array
from lamella.protocol.spec import ArraySpec, shape_in_words
from lamella.registry import snake_case

__all__ = [
    "LOSSES",
    "Loss",
    "Weighted",
    "as_column",
    "as_predictions",
    "class_targets",
    "spec_of",
    "value_targets",
]


_EACH_STEP = (
    " The model predicts for each place along axis 1, and there is one target for all of them: return_sequences=False "
    "in the last recurrent layer, or Flatten() before Dense?"
)


class Loss(Configured):
    """What training makes small: a function of prediction and target, in the same array code as a layer.

    The engine calls ``prepare`` on NumPy data before a step, then ``forward`` and ``backward`` for each slice of the
    batch. Sample weights are the engine's: they arrive in ``backward`` as ``d``.

    >>> import lamella as lm
    >>> class Quartic(lm.losses.Loss):
    ...     def forward(self, ctx, prediction, target):
    ...         r = prediction - target  # (N, D)
    ...         ctx.save(r)
    ...         return ctx.xp.mean(r * r * r * r, axis=1)
    ...     def backward(self, ctx, d):
    ...         (r,) = ctx.saved
    ...         return 4.0 * r * r * r * d[:, None] / r.shape[1]
    >>> Quartic()(np.array([[1.0, 3.0]]), [[1, 1]])
    array([8.])
    """

    _elsewhere = elsewhere.LOSS

    on_logits: bool | None = None
    """True where predictions are logits: training warns of a model that ends in probabilities, and accuracy takes a
    prediction above 0 for yes. False where predictions are on the scale of targets, and yes is above 0.5."""

    ignore_class: int | None = None
    """An integer label whose places do not count, neither here nor in metrics of the same output."""

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        """Return a NumPy target as ``forward`` takes it; raise `DataError` if it does not fit the prediction."""
        return value_targets(snake_case(type(self).__name__), prediction, target)

    def examine(self, prediction: np.ndarray) -> None:
        """Look at the predictions of a training's first batch; raise `DataError` where the loss can't take them."""

    def counted(self, xp: Any, target: Any, dtype: Any) -> Any:
        """Return which share of each sample counts, (N,) of a dtype; None where all of it does.

        The mean over samples is divided by the weight of what counts; the rest adds nothing in ``forward``. By default
        all counts but labels that are ``ignore_class``.
        """
        if self.ignore_class is None or target.dtype != xp.int64:
            return None
        counts = xp.astype(target != self.ignore_class, dtype)
        return counts if counts.ndim == 1 else xp.mean(counts, axis=tuple(range(1, counts.ndim)))

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        """Return the loss of each sample, (N,), averaged over the sample's other axes."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, ctx: Context, d: Any) -> Any:
        """Return the gradient of the prediction; ``d`` (N,) is each sample's weight over that of all that counts."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the loss of each sample, (N,), of NumPy arrays; the target as ``prepare`` gives it."""
        xp = get_backend("numpy").xp
        ctx: Any = SimpleNamespace(xp=xp, dtype=prediction.dtype, training=False, save=lambda *arrays: None)
        with np.errstate(all="ignore"):
            return np.asarray(self.forward(ctx, prediction, target))

    def __call__(self, prediction: Any, target: Any) -> np.ndarray:
        """Return the loss of each sample, (N,), of NumPy arrays."""
        where = snake_case(type(self).__name__)
        prediction = as_predictions(where, prediction)
        return self.per_sample(prediction, self.prepare(spec_of(where, prediction), target))


def as_predictions(where: str, prediction: Any) -> np.ndarray:
    """Return predictions as NumPy: floats, a row for each sample."""
    array = as_array(prediction, f"{where}: expected predictions")
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise DataError(
            f"{where}: prediction: expected an array of numbers with a row for each sample, got {array.dtype} "
            f"{array.shape}"
        )
    return array if array.dtype.kind == "f" else array.astype("float64")


def spec_of(where: str, prediction: np.ndarray) -> ArraySpec:
    """Return the spec of predictions."""
    try:
        return ArraySpec(prediction.shape, str(prediction.dtype))
    except ArgumentError as error:  # float16, for one
        raise DataError(f"{where}: prediction: {error}") from None


LOSSES = registry.Kind("losses", "lamella.losses.Loss", base=Loss)


def value_targets(where: str, prediction: ArraySpec, target: Any, *, unit: bool = False) -> np.ndarray:
    """Return numbers of exactly the prediction's shape in its dtype; with ``unit`` they must lie in [0, 1].

    One number for each sample may come as (N,) where the prediction is (N, 1). Nothing else is broadcast: (N, 1)
    against (N,) would compare every sample with every other.

    >>> value_targets("mean_squared_error", ArraySpec(("N", 1)), [3, 4])
    array([[3.],
           [4.]], dtype=float32)
    >>> value_targets("mean_squared_error", ArraySpec(("N", 2)), np.zeros(32))
    Traceback (most recent call last):
    lamella.errors.DataError: mean_squared_error: target must have the prediction's shape (N, 2); got float64 (32,).
    """
    target, unit = as_array(target, f"{where}: expected targets"), flag(unit, "unit")
    target = as_column(target, prediction.shape)
    if not prediction.is_float:
        raise DataError(f"{where}: prediction must be float32 or float64, got {prediction}")
    if target.dtype.kind not in "biuf" or not _same(target.shape, prediction.shape):
        own = prediction.shape[1:]
        known = target.ndim and target.size and all(isinstance(n, int) for n in own)
        labels = target.shape[:-1] if target.shape[-1:] == (1,) else target.shape
        fix = ""
        if target.dtype.kind not in "biuf":
            fix = _as_numbers(target, "float32")
        elif known and math.prod(target.shape[1:]) == math.prod(n for n in own if isinstance(n, int)):
            fix = f" Use y.reshape({', '.join(map(str, (-1, *own)))})."
        elif own and target.dtype.kind in "iu" and _same(labels, prediction.shape[:-1]):
            rows = f"np.eye({own[-1]})[y{'' if labels == target.shape else '[..., 0]'}]"
            fix = f" Labels of classes want one-hot rows, {rows}, or the loss softmax_cross_entropy."
        elif len(prediction.shape) > 2 and _same(target.shape[1:], prediction.shape[2:]):
            fix = _EACH_STEP
        raise DataError(
            f"{where}: target must have the prediction's shape {shape_in_words(prediction.shape)}; "
            f"got {target.dtype} {target.shape}.{fix}"
        )
    if unit and target.size and not (target.min() >= 0 and target.max() <= 1):
        is_signed = np.isin(target, (-1, 1)).all()
        fix = " Labels of -1 and 1 become 0 and 1 with y > 0." if is_signed else _first(target, ~np.isfinite(target))
        raise DataError(f"{where}: targets must lie in [0, 1]; got values from {target.min()} to {target.max()}.{fix}")
    return np.asarray(target, prediction.dtype)


def _as_numbers(target: np.ndarray, dtype: str) -> str:
    """How targets of text, or of objects, become numbers; an empty string where they are neither."""
    if target.dtype.kind not in "OUST":
        return ""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if np.isfinite(target.astype(dtype)).all():
            return f" Use y.astype({dtype!r})."
    if target.dtype.kind == "O" and not all(isinstance(one, str | bytes) for one in target.ravel()):
        return ""
    return " Labels of text become numbers with numpy.unique(y, return_inverse=True)[1]."


def _first(target: np.ndarray, wrong: np.ndarray) -> str:
    """Where the first wrong number stands, or an empty string."""
    where = np.argwhere(wrong)
    return f" Row {where[0][0]} has {target[tuple(where[0])]}." if len(where) else ""


def as_column(target: np.ndarray, prediction: tuple[int | str, ...]) -> np.ndarray:
    """Return targets (N, ...) of predictions (N, ..., 1) with that last axis; others as they are.

    >>> as_column(np.zeros(32), (32, 1)).shape, as_column(np.zeros(32), (32,)).shape
    ((32, 1), (32,))
    """
    return target[..., None] if prediction[1:][-1:] == (1,) and _same(target.shape, prediction[:-1]) else target


def class_targets(where: str, prediction: ArraySpec, target: Any, *, ignore_class: int | None = None) -> np.ndarray:
    """Return labels as int64, or one-hot rows and probabilities in the prediction's dtype; classes stand last.

    Labels may also be ``ignore_class``, which does not count.

    >>> class_targets("accuracy", ArraySpec(("N", 3)), [0, 3])
    Traceback (most recent call last):
    lamella.errors.DataError: accuracy: labels must be integers in [0, 3); got 3 in row 1. Does the last layer have \
as many units as there are classes?
    """
    target, ignore_class = as_array(target, f"{where}: expected targets"), ignore_class_argument(ignore_class)
    axes, classes = prediction.shape[:-1], prediction.shape[-1] if prediction.shape else 0
    if not axes or not isinstance(classes, int) or classes < 2:
        raise DataError(
            f"{where}: prediction must have classes on its last axis, two or more, as in (N, 10); got {prediction}. "
            "For one logit of two classes there is binary_cross_entropy."
        )
    if target.dtype.kind in "biuf" and target.ndim > 1 and _same(target.shape, prediction.shape):
        return value_targets(where, prediction, target, unit=True)
    if target.dtype.kind not in "biu" or not _same(target.shape, axes):
        fix = ""
        if target.dtype.kind not in "biuf":
            fix = _as_numbers(target, "int64")
        elif target.dtype.kind == "f" and _same(target.shape, axes):
            fix = _first(target, ~(np.floor(target) == target)) or " Use y.astype('int64')."
        elif target.ndim and target.shape[-1] == 1 and _same(target.shape[:-1], axes):
            fix = " Use y[..., 0]" + (".astype('int64')." if target.dtype.kind == "f" else ".")
        elif len(axes) > 1 and target.shape[1:] in [(), (classes,)]:
            fix = _EACH_STEP
        raise DataError(
            f"{where}: labels must be integers in [0, {classes}) of shape {shape_in_words(axes)}, or one-hot "
            f"{shape_in_words(prediction.shape)}; got {target.dtype} {target.shape}.{fix}"
        )
    if target.size and (target.min() < 0 or target.max() >= classes):
        odd = (target < 0) | (target >= classes)
        if ignore_class is not None:
            odd &= target != ignore_class
            if not odd.any():
                return np.asarray(target, "int64")
        wrong = np.argwhere(odd)[0]
        fix = "Does the last layer have as many units as there are classes?"
        if target[odd].min() < 0:
            fix = (
                "Labels count from 0; those that should not count are named by ignore_class=, as in "
                "lm.losses.SoftmaxCrossEntropy(ignore_class=-1)."
            )
        if target.min() == 1 and target.max() == classes:
            fix = "Labels that count from 1 become right with y - 1."
        raise DataError(
            f"{where}: labels must be integers in [0, {classes}); got {target[tuple(wrong)]} in row {wrong[0]}. {fix}"
        )
    return np.asarray(target, "int64")


def as_rows(
    xp: Any, prediction: Any, target: Any, *, ignore_class: int | None = None, label_smoothing: float = 0.0
) -> Any:
    """Labels (N, ...) -> one-hot (N, ..., C), rows of zeros where they do not count; one-hot stays.

    Smoothed, a class keeps ``1 - label_smoothing`` of what it has, and all classes share the rest.
    """
    classes, counts, total = prediction.shape[-1], None, 1.0
    if target.ndim == prediction.ndim:
        rows = target
        total = xp.sum(rows, axis=-1, keepdims=True) if label_smoothing else total
    else:
        if ignore_class is not None:
            counts = target != ignore_class
            target = xp.where(counts, target, xp.zeros_like(target))
        rows = one_hot(xp, target, classes, dtype=prediction.dtype)
    if label_smoothing:
        rows = (1.0 - label_smoothing) * rows + (label_smoothing / classes) * total
    return rows if counts is None else rows * xp.expand_dims(xp.astype(counts, prediction.dtype), axis=-1)


def _same(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether a shape is as expected; names of axes stand for any size."""
    return len(shape) == len(expected) and all(
        isinstance(want, str) or have == want for have, want in zip(shape, expected, strict=True)
    )


class Weighted(Loss):
    """Another loss times a number, which is how losses of several outputs get their shares of the sum.

    What `fit` and `evaluate` report as the output's loss is the product.

    Arguments:
        loss: a registered name or a `Loss`.
        weight: the number, of at least 0.

    Source: ``loss_weights`` in https://keras.io/api/models/model_training_apis/

    >>> Weighted("mean_squared_error", 0.5)(np.array([[1.0, 3.0]]), [[1, 1]])
    array([1.])
    """

    def __init__(self, loss: str | Loss, weight: float):
        self.loss: Loss = LOSSES.resolve(loss, classes=False)
        self.weight = number(weight, "weight", minimum=0.0)
        self.on_logits, self.ignore_class = self.loss.on_logits, self.loss.ignore_class

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return self.loss.prepare(prediction, target)

    def examine(self, prediction: np.ndarray) -> None:
        self.loss.examine(prediction)

    def counted(self, xp: Any, target: Any, dtype: Any) -> Any:
        return self.loss.counted(xp, target, dtype)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        return self.loss.forward(ctx, prediction, target) * self.weight

    def backward(self, ctx: Context, d: Any) -> Any:
        return self.loss.backward(ctx, d * self.weight)


# Arguments


def label_smoothing_argument(value: Any) -> float:
    """Return how much of a class is shared among all, in [0, 1]."""
    result = number(value, "label_smoothing", minimum=0.0)
    if result > 1.0:
        raise ArgumentError(f"label_smoothing: expected a number in [0, 1], got {shown(value)}")
    return result


def ignore_class_argument(value: Any) -> int | None:
    """Return a label that does not count, or None."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ArgumentError(f"ignore_class: expected an integer label such as -1, or None, got {shown(value)}")
    return value
