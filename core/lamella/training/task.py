"""What training is asked for: losses, metrics and optimizers as users give them, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from lamella.errors import ArgumentError
from lamella.losses import LOSSES, Loss
from lamella.metrics import Metric
from lamella.network import Network
from lamella.optimizers import OPTIMIZERS, Optimizer
from lamella.optimizers.optimizer import rules_of
from lamella.protocol.inputs import for_each

__all__ = ["AnyOptimizer", "Losses", "Metrics", "Task", "given_bounds", "losses_of", "optimizer_of"]

OneLoss = str | Loss | type[Loss]
Losses = OneLoss | Sequence[OneLoss | None] | Mapping[str, OneLoss | None]
OneMetric = str | Metric | type[Metric]
Metrics = OneMetric | Iterable[OneMetric] | Mapping[str, OneMetric | Iterable[OneMetric]]
AnyOptimizer = str | Optimizer | type[Optimizer]


class Task(TypedDict):
    """What `Model.fit` and `Model.evaluate` both take, as a dict that type checkers know the arguments of.

    When a program runs it is a plain dict. ``task: lm.Task = {...}`` says the same.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> task = lm.Task(loss="mean_squared_error", metrics=["mae", lm.metrics.R2()])
    >>> model = lm.Sequential([Dense(1)], input_shape=2)
    >>> history = model.fit([[0, 1], [1, 0]], [1, 2], **task, optimizer="adam")
    >>> list(model.evaluate([[0, 1], [1, 0]], [1, 2], **task))
    ['loss', 'mae', 'r2']
    """

    loss: Losses
    metrics: NotRequired[Metrics]


def losses_of(model: Network, loss: Losses) -> tuple[Loss | None, ...]:
    """Return a loss for each output, None where an output is not trained on."""
    if isinstance(loss, str | Loss | type):
        loss = (loss,) * len(model.output_names)
    given = for_each("loss", loss, model.output_names)
    if all(one is None for one in given):
        raise ArgumentError("loss: expected a name or a Loss for one output at least, got None")
    return tuple(None if one is None else LOSSES.resolve(one) for one in given)


def optimizer_of(model: Network, optimizer: AnyOptimizer) -> Optimizer:
    """Return an optimizer whose patterns match parameters of the model."""
    found: Optimizer = OPTIMIZERS.resolve(optimizer)
    rules_of(found, model.values.parameters.layout.declarations)
    return found


def given_bounds(**bounds: Any) -> dict[str, Any]:
    """Return those penalties, clips and constraints that are not None."""
    return {name: own for name, own in bounds.items() if own is not None}
