"""Losses: how far predictions are from targets, one number for each sample, and the gradient of their weighted mean."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import flag, number
from lamella.backends import Backend, get_backend
from lamella.errors import ArgumentError, DataError, LayerError, place_of
from lamella.hookspecs import hookimpl
from lamella.primitives import one_hot, primitive, relu, sigmoid
from lamella.protocol.configured import Configured
from lamella.protocol.context import Context
from lamella.protocol.inputs import as_array
from lamella.protocol.spec import ArraySpec, described, shape_in_words
from lamella.protocol.specimen import Specimen
from lamella.registry import snake_case

__all__ = [
    "BinaryCrossEntropy",
    "CategoricalCrossEntropy",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "SoftmaxCrossEntropy",
    "Weighted",
    "as_column",
    "as_predictions",
    "class_targets",
    "loss_and_slope",
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

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        """Return a NumPy target as ``forward`` takes it; raise `DataError` if it does not fit the prediction."""
        return value_targets(snake_case(type(self).__name__), prediction, target)

    def examine(self, prediction: np.ndarray) -> None:
        """Look at the predictions of a training's first batch; raise `DataError` where the loss can't take them."""

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        """Return the loss of each sample, (N,), averaged over the sample's other axes."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, ctx: Context, d: Any) -> Any:
        """Return the gradient of the prediction; ``d`` (N,) is each sample's weight over the sum of weights."""
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


def loss_and_slope(
    loss: Loss, ctx: Context, backend: Backend, prediction: Any, target: Any, weights: Any, *, wants_slope: bool
) -> tuple[float, Any]:
    """Return the sum of the losses of some rows times their weights, and its gradient, or None where not wanted.

    Raises:
        LayerError: the loss fails, or gives arrays of another shape or dtype.
    """
    prediction = backend.view(prediction)  # what metrics see too, and layers may have saved
    ctx.saved = ()
    try:
        each = loss.forward(ctx, prediction, target)
        slope = loss.backward(ctx, weights) if wants_slope else None
    except Exception as error:
        given = f"prediction {described(prediction)} and target {described(target)}"
        hint = "; make new arrays: predictions and targets are never written to" if "read-only" in str(error) else ""
        words = f"{type(error).__name__}: {error}{hint}{place_of(error)}"
        raise LayerError(f"{loss!r} failed on {given}: {words}") from error
    ctx.saved = ()
    if getattr(each, "shape", None) != weights.shape:
        raise LayerError(f"{loss!r}.forward must return one value per row, got {described(each)}")
    if slope is not None and (getattr(slope, "shape", None) != prediction.shape or slope.dtype != prediction.dtype):
        raise LayerError(
            f"{loss!r}.backward: expected the gradient of the prediction, {described(prediction)}, got "
            f"{described(slope)}"
        )
    if backend.has_numpy_arrays:  # without a call of the backend
        return float(each.astype(np.float64).dot(weights)), slope
    return backend.weighted_sum(each, weights), slope


def as_predictions(where: str, prediction: Any) -> np.ndarray:
    """Return predictions as NumPy: numbers, a row for each sample."""
    array = as_array(prediction, f"{where}: expected predictions")
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise DataError(
            f"{where}: prediction: expected an array of numbers with a row for each sample, got {array.dtype} "
            f"{array.shape}"
        )
    return array


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
            fix = " Use y.astype('float32')."
        elif known and math.prod(target.shape[1:]) == math.prod(n for n in own if isinstance(n, int)):
            fix = f" Use y.reshape({', '.join(map(str, (-1, *own)))})."
        elif target.dtype.kind in "iu" and _same(labels, prediction.shape[:-1]):
            rows = f"np.eye({own[-1]})[y{'' if labels == target.shape else '[..., 0]'}]"
            fix = f" Labels of classes want one-hot rows, {rows}, or the loss softmax_cross_entropy."
        elif len(prediction.shape) > 2 and _same(target.shape[1:], prediction.shape[2:]):
            fix = _EACH_STEP
        raise DataError(
            f"{where}: target must have the prediction's shape {shape_in_words(prediction.shape)}; "
            f"got {target.dtype} {target.shape}.{fix}"
        )
    if unit and target.size and not (target.min() >= 0 and target.max() <= 1):
        raise DataError(
            f"{where}: targets must lie in [0, 1]; got values from {target.min()} to {target.max()}. "
            "Labels of -1 and 1 become 0 and 1 with y > 0."
        )
    return np.asarray(target, prediction.dtype)


def as_column(target: np.ndarray, prediction: tuple[int | str, ...]) -> np.ndarray:
    """Return targets (N, ...) of predictions (N, ..., 1) with that last axis; others as they are.

    >>> as_column(np.zeros(32), (32, 1)).shape, as_column(np.zeros(32), (32,)).shape
    ((32, 1), (32,))
    """
    return target[..., None] if prediction[1:][-1:] == (1,) and _same(target.shape, prediction[:-1]) else target


def class_targets(where: str, prediction: ArraySpec, target: Any) -> np.ndarray:
    """Return labels as int64, or one-hot rows and probabilities in the prediction's dtype; classes stand last.

    >>> class_targets("accuracy", ArraySpec(("N", 3)), [0, 3])
    Traceback (most recent call last):
    lamella.errors.DataError: accuracy: labels must be integers in [0, 3); got 3 in row 1. Does the last layer have \
as many units as there are classes?
    """
    target = as_array(target, f"{where}: expected targets")
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
        if target.dtype.kind == "f" and _same(target.shape, axes):
            fix = " Use y.astype('int64')."
        elif target.ndim and target.shape[-1] == 1 and _same(target.shape[:-1], axes):
            fix = " Use y[..., 0]" + (".astype('int64')." if target.dtype.kind == "f" else ".")
        elif len(axes) > 1 and target.shape[1:] in [(), (classes,)]:
            fix = _EACH_STEP
        raise DataError(
            f"{where}: labels must be integers in [0, {classes}) of shape {shape_in_words(axes)}, or one-hot "
            f"{shape_in_words(prediction.shape)}; got {target.dtype} {target.shape}.{fix}"
        )
    if target.size and (target.min() < 0 or target.max() >= classes):
        wrong = np.argwhere((target < 0) | (target >= classes))[0]
        fix = "Does the last layer have as many units as there are classes?"
        if target.min() < 0:
            fix = "Labels count from 0; rows that should not count get sample_weight 0 and any label."
        if target.min() == 1 and target.max() == classes:
            fix = "Labels that count from 1 become right with y - 1."
        raise DataError(
            f"{where}: labels must be integers in [0, {classes}); got {target[tuple(wrong)]} in row {wrong[0]}. {fix}"
        )
    return np.asarray(target, "int64")


class SoftmaxCrossEntropy(Loss):
    """Cross entropy between classes and the softmax of logits, for classifiers that end without a softmax.

    ``L = log(sum_j exp(x_j)) - x_label``, or for one-hot rows and probabilities ``t``:
    ``L = sum_k t_k (log(sum_j exp(x_j)) - x_k)``. The gradient is ``softmax(x) sum_k t_k - t``. Logits of minus
    infinity are classes that can't be.

    Prediction (N, ..., C); target integer labels (N, ...) in [0, C), or one-hot (N, ..., C); `DataError` else.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4.

    >>> SoftmaxCrossEntropy()(np.array([[0.0, 0.0], [100.0, 0.0]]), [1, 1]).round(4)
    array([  0.6931, 100.    ])
    """

    on_logits = True

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return class_targets("softmax_cross_entropy", prediction, target)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        each, e, total = softmax_cross_entropy(ctx, prediction, target)
        ctx.save(e, total, target)
        return each

    def backward(self, ctx: Context, d: Any) -> Any:
        return softmax_cross_entropy_dx(ctx, *ctx.saved, d)


@primitive
def softmax_cross_entropy(xp: Any, x: Any, target: Any) -> tuple[Any, Any, Any]:
    """The loss of each sample, ``e = exp(x - max(x))`` and its sum over classes."""
    t = _as_rows(xp, x, target)
    z = x - xp.max(x, axis=-1, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=-1, keepdims=True)
    surprise = xp.log(total) - z
    return _per_sample(xp, xp.sum(xp.where(t == 0.0, xp.zeros_like(t), t * surprise), axis=-1)), e, total


@primitive
def softmax_cross_entropy_dx(xp: Any, e: Any, total: Any, target: Any, d: Any) -> Any:
    """``(softmax(x) sum_k t_k - t) d``, with what the forward pass gave."""
    t = _as_rows(xp, e, target)
    return (e / total * xp.sum(t, axis=-1, keepdims=True) - t) * _spread(xp, d, t.shape, t.shape[1:-1])


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


class CategoricalCrossEntropy(Loss):
    """Cross entropy between classes and probabilities, for classifiers that end with a softmax.

    ``L = -sum_k t_k log(clip(p_k, 1e-7, 1 - 1e-7))`` with Keras's limits. The gradient is exact: ``-t / p`` between
    the limits and 0 beyond them, so a class whose probability fell under 1e-7 no longer learns. Prefer
    ``softmax_cross_entropy`` on logits, which has no limits. Rows are taken as they are, not rescaled to the sum 1.

    Prediction (N, ..., C); target integer labels (N, ...) in [0, C), or one-hot (N, ..., C); `DataError` else, and
    where training begins with predictions that are no probabilities.

    Source: https://keras.io/api/losses/probabilistic_losses/#categoricalcrossentropy-class

    >>> CategoricalCrossEntropy()(np.array([[0.25, 0.75], [0.0, 1.0]]), [0, 0]).round(4)
    array([ 1.3863, 16.1181])
    """

    on_logits = False

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return class_targets("categorical_cross_entropy", prediction, target)

    def examine(self, prediction: np.ndarray) -> None:
        if prediction.size and (prediction.min() < -1e-3 or prediction.max() > 1.001):
            raise DataError(
                f"categorical_cross_entropy: predictions must be probabilities; got values from {prediction.min():.4g} "
                f"to {prediction.max():.4g}. On logits use softmax_cross_entropy, or end with a softmax."
            )

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        t = _as_rows(ctx.xp, prediction, target)
        ctx.save(prediction, t)
        return _per_sample(ctx.xp, -ctx.xp.sum(t * ctx.xp.log(self._clip(ctx.xp, prediction)), axis=-1))

    def backward(self, ctx: Context, d: Any) -> Any:
        p, t = ctx.saved
        clipped = self._clip(ctx.xp, p)
        slope = ctx.xp.where(clipped == p, -t / clipped, ctx.xp.zeros_like(p))
        return slope * _spread(ctx.xp, d, p.shape, p.shape[1:-1])

    @staticmethod
    def _clip(xp: Any, p: Any) -> Any:
        return xp.clip(p, 1e-7, 1.0 - 1e-7)


class BinaryCrossEntropy(Loss):
    """Cross entropy of yes-no targets on logits, for models that end without a sigmoid.

    ``L = max(x, 0) - x t + log(1 + exp(-|x|))``, which is ``-t log(s) - (1 - t) log(1 - s)`` with ``s = sigmoid(x)``
    and never overflows. The gradient is ``s - t``.

    Prediction and target of one shape (N, ...); targets are labels, booleans or probabilities; `DataError` else.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn/sigmoid_cross_entropy_with_logits

    >>> BinaryCrossEntropy()(np.array([0.0, 1000.0, 1000.0]), [1, 1, 0]).round(4)
    array([6.931e-01, 0.000e+00, 1.000e+03])
    """

    on_logits = True

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return value_targets("binary_cross_entropy", prediction, target, unit=True)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        xp, x = ctx.xp, prediction
        ctx.save(x, target)
        return _per_sample(xp, relu(xp, x) - x * target + xp.log1p(xp.exp(-xp.abs(x))))

    def backward(self, ctx: Context, d: Any) -> Any:
        x, t = ctx.saved
        return (sigmoid(ctx, x) - t) * _spread(ctx.xp, d, x.shape, x.shape[1:])


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
        return _per_sample(ctx.xp, r * r)

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return 2.0 * r * _spread(ctx.xp, d, r.shape, r.shape[1:])


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
        return _per_sample(ctx.xp, ctx.xp.abs(r))

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return ctx.xp.sign(r) * _spread(ctx.xp, d, r.shape, r.shape[1:])


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
        return _per_sample(ctx.xp, clipped * (r - 0.5 * clipped))

    def backward(self, ctx: Context, d: Any) -> Any:
        (r,) = ctx.saved
        return ctx.xp.clip(r, -self.delta, self.delta) * _spread(ctx.xp, d, r.shape, r.shape[1:])


def _as_rows(xp: Any, prediction: Any, target: Any) -> Any:
    """Labels (N, ...) -> one-hot (N, ..., C); one-hot stays."""
    if target.ndim == prediction.ndim:
        return target
    return one_hot(xp, target, prediction.shape[-1], dtype=prediction.dtype)


def _per_sample(xp: Any, losses: Any) -> Any:
    """(N, ...) -> (N,), the mean over all axes but the first."""
    return losses if losses.ndim == 1 else xp.mean(losses, axis=tuple(range(1, losses.ndim)))


def _spread(xp: Any, d: Any, shape: tuple[Any, ...], averaged: tuple[Any, ...]) -> Any:
    """The backward pass of `_per_sample`: (N,) -> (N, 1, ..., 1), shared among the numbers that were averaged."""
    return xp.reshape(d, (shape[0], *(1 for _ in shape[1:]))) / math.prod(averaged)


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
        self.loss: Loss = LOSSES.resolve(loss)
        self.weight = number(weight, "weight", minimum=0.0)
        self.on_logits = self.loss.on_logits

    def prepare(self, prediction: ArraySpec, target: Any) -> np.ndarray:
        return self.loss.prepare(prediction, target)

    def examine(self, prediction: np.ndarray) -> None:
        self.loss.examine(prediction)

    def forward(self, ctx: Context, prediction: Any, target: Any) -> Any:
        return self.loss.forward(ctx, prediction, target) * self.weight

    def backward(self, ctx: Context, d: Any) -> Any:
        return self.loss.backward(ctx, d * self.weight)


@hookimpl
def lamella_losses() -> dict[str, type]:
    return {
        "softmax_cross_entropy": SoftmaxCrossEntropy,
        "categorical_cross_entropy": CategoricalCrossEntropy,
        "binary_cross_entropy": BinaryCrossEntropy,
        "mean_squared_error": MeanSquaredError,
        "mean_absolute_error": MeanAbsoluteError,
        "huber": Huber,
        "weighted": Weighted,
    }


@hookimpl
def lamella_specimens() -> list[Specimen]:
    rows, labels = ArraySpec(("N", 5)), ArraySpec(("N",), "int64", low=0, high=5)
    steps, step_labels = ArraySpec(("N", 3, 4)), ArraySpec(("N", 3), "int64", low=0, high=4)
    many, some = ArraySpec(("N", 5), "int64", low=0, high=2), ArraySpec(("N",))

    def shares(*axes: int) -> ArraySpec:
        return ArraySpec(("N", *axes), low=0.0, high=1.0)

    column = (((some, ArraySpec(("N", 1))), "Use y.reshape(-1)"),)
    wrong = (((rows, some), "Use y.astype('int64')"), ((ArraySpec(("N", 1)), labels), "binary_cross_entropy"))
    softmax = "https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html"
    keras = "https://keras.io/api/losses/probabilistic_losses/#categoricalcrossentropy-class"
    binary = "https://www.tensorflow.org/api_docs/python/tf/nn/sigmoid_cross_entropy_with_logits"
    torch = "https://docs.pytorch.org/docs/stable/generated/torch.nn."
    return [
        Specimen(SoftmaxCrossEntropy(), (rows, labels), docs=softmax, refuses=wrong),
        Specimen(SoftmaxCrossEntropy(), (rows, many), docs=softmax),
        Specimen(SoftmaxCrossEntropy(), (steps, step_labels), docs=softmax),
        Specimen(CategoricalCrossEntropy(), (shares(5), labels), docs=keras, refuses=wrong),
        Specimen(CategoricalCrossEntropy(), (shares(3, 4), step_labels), docs=keras),
        Specimen(BinaryCrossEntropy(), (rows, many), docs=binary, refuses=column),
        Specimen(MeanSquaredError(), (rows, rows), docs=f"{torch}MSELoss.html", refuses=column),
        Specimen(MeanSquaredError(), (some, some), docs=f"{torch}MSELoss.html"),
        Specimen(MeanAbsoluteError(), (rows, rows), docs=f"{torch}L1Loss.html", refuses=column),
        Specimen(Huber(), (steps, steps), docs=f"{torch}HuberLoss.html", refuses=column),
        Specimen(Huber(delta=0.25), (rows, rows), docs=f"{torch}HuberLoss.html"),
        Specimen(Weighted("huber", 0.3), (rows, rows), docs="https://keras.io/api/models/model_training_apis/"),
    ]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise AttributeError(elsewhere.absent(__name__, name, elsewhere.LOSSES))
