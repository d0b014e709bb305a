"""What training is asked for: losses, metrics and optimizers as users give them, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lamella.errors import ArgumentError
from lamella.losses import LOSSES, Loss
from lamella.metrics import Metric
from lamella.network import Network
from lamella.optimizers import OPTIMIZERS, Optimizer
from lamella.optimizers.optimizer import rules_of
from lamella.protocol.inputs import for_each

__all__ = ["AnyOptimizer", "Losses", "Metrics", "given_bounds", "losses_of", "optimizer_of"]

OneLoss = str | Loss | type[Loss]
Losses = OneLoss | Sequence[OneLoss | None] | Mapping[str, OneLoss | None]
OneMetric = str | Metric | type[Metric]
Metrics = OneMetric | Iterable[OneMetric] | Mapping[str, OneMetric | Iterable[OneMetric]]
AnyOptimizer = str | Optimizer | type[Optimizer]


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
