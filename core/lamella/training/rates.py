"""A learning rate to begin with, found by a short training in which the rate rises from step to step."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import file_path, knows, number, positive
from lamella.errors import ArgumentError, NonFiniteError, counted
from lamella.network import Network
from lamella.regularization import Constraint, Penalty
from lamella.schedules import Exponential
from lamella.training.data import ArrayBatches, batches_of
from lamella.training.step import TrainSteps
from lamella.training.task import AnyOptimizer, Losses, given_bounds, losses_of, optimizer_of

__all__ = ["LearningRateSearch", "find_learning_rate"]

_KEEPS = 0.9  # of the average of losses, at each step
_DIVERGED = 4.0  # times the lowest loss


class LearningRateSearch:
    """What a search found.

    Attributes:
        rates: the learning rates, rising.
        losses: the loss of each step, before it.
        smooth: a running average of the losses.
        suggestion: a tenth of the rate with the lowest average, where the loss still falls; None if it never fell.
    """

    def __init__(self, rates: list[float], losses: list[float]) -> None:
        average = _Average()
        self.rates, self.losses, self.smooth = rates, losses, [average.after(loss) for loss in losses]
        lowest = int(np.argmin(self.smooth))
        self.suggestion = self.rates[lowest] / 10.0 if lowest else None

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw losses over rates, with a ring at the suggestion; return a matplotlib figure.

        A notebook shows the figure; ``path`` writes it to a file. Needs matplotlib: ``pip install 'lamella[plot]'``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        path = None if path is None else file_path(path, "plot: path")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:  # an optional dependency
            raise ImportError("plot needs matplotlib: pip install 'lamella[plot]'") from error
        figure = Figure(figsize=(5.0, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="#9aa5b1", lw=0.8, label="loss")
        axes.plot(self.rates, self.smooth, color="#0b6e99", lw=1.6, label="average")
        if self.suggestion is not None:
            y = float(np.interp(self.suggestion, self.rates, self.smooth))
            axes.plot(self.suggestion, y, "o", color="#0b6e99", mfc="white", mew=1.6, ms=8)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def __repr__(self) -> str:
        last = f"{counted(len(self.rates), 'rate')} from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        found = "none" if self.suggestion is None else f"{self.suggestion:.3g}"
        return f"<LearningRateSearch: {last}, suggestion {found}>"


class _Average:
    """A running average of losses, without the weight of its start at 0."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def after(self, loss: float) -> float:
        self._count += 1
        self._sum = _KEEPS * self._sum + (1.0 - _KEEPS) * loss
        return self._sum / (1.0 - _KEEPS**self._count)


@knows(elsewhere.FIT)
def find_learning_rate(
    model: Network,
    x: Any,
    y: Any = None,
    *,
    loss: Losses,
    optimizer: AnyOptimizer,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    batch_size: int = 32,
    sample_weight: Any = None,
    class_weight: Mapping[Any, Any] | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    penalties: Mapping[str, Penalty] | None = None,
    constraints: Mapping[str, Constraint] | None = None,
) -> LearningRateSearch:
    """Train a copy of the model while the learning rate rises, and return losses, rates and a suggestion.

    The rate rises from ``lowest`` to ``highest`` by the same factor at each of so many ``steps``. The search ends early
    where the loss has grown to four times its lowest average, or is no longer finite. The model stays as it is.

    Arguments:
        lowest, highest: the first and the last rate.
        steps: how many batches are trained on; the data are gone through as often as that takes.

    The other arguments are those of `fit`; the learning rate of the optimizer makes no difference.

    Raises:
        ArgumentError: ``highest`` is not above ``lowest``, or what `fit` refuses.
        DataError: arrays that do not fit the model or the loss.

    Source: Smith, https://arxiv.org/abs/1506.01186, section 3.3

    >>> import lamella as lm
    >>> from lamella.datasets import digits
    >>> from lamella_layers import Dense, Flatten
    >>> images, labels = digits()
    >>> model = lm.Sequential([Flatten(), Dense(10)], input_shape=(1, 8, 8))
    >>> found = model.find_learning_rate(images / 16, labels, loss="softmax_cross_entropy", optimizer="adam")
    >>> 0.01 < found.suggestion < 1.0, model.step
    (True, 0)
    """
    low = number(lowest, "lowest", above=0.0)
    high, count = number(highest, "highest", above=0.0), positive(steps, "steps", minimum=2)
    if not low < high <= 1e30 * low:
        raise ArgumentError(f"highest: expected above lowest={lowest}, and at most 1e30 times it, got {highest}")
    losses, size = losses_of(model, loss), positive(batch_size, "batch_size")
    rising = optimizer_of(model, optimizer).with_learning_rate(Exponential(low, every=count - 1, factor=high / low))
    twin = model.copy()
    twin.optimizer_state = None
    weighting = {"sample_weight": sample_weight, "class_weight": class_weight}
    data = batches_of(twin, x, y, losses, size=size, shuffle=True, **weighting)
    bounds = given_bounds(clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints)
    training = TrainSteps(twin, losses, bounds)
    if not training.plan.parameters:
        raise ArgumentError("find_learning_rate: no layer has parameters that are not frozen; unfreeze some")
    arrays = data.data if isinstance(data, ArrayBatches) else None
    rates: list[float] = []
    told: list[float] = []
    average, lowest_average = _Average(), math.inf
    batches = itertools.chain.from_iterable(data.epoch() for _ in itertools.count())
    for rows in itertools.islice(batches, count):
        penalty = training.rules.penalty(twin.values)
        try:
            result = training.take(rows.batch, rows.size, rising, begins=not rates, data=arrays)
        except NonFiniteError:
            if not rates:
                raise
            break
        state = twin.values.optimizer
        assert state is not None
        rates.append(state.learning_rate(state.t))
        told.append(result.loss + penalty)
        now = average.after(told[-1])
        lowest_average = min(lowest_average, now)
        if now > _DIVERGED * lowest_average > 0.0:
            break
    return LearningRateSearch(rates, told)
