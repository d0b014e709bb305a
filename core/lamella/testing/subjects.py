"""What specimens show: losses and activations as layers, and every subject in a few words."""

from __future__ import annotations

from typing import Any

from lamella import registry
from lamella.activations import ActivationFunction
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.protocol import ArraySpec, Declare, Layer
from lamella.schedules import Schedule

__all__ = ["ActivationLayer", "LossLayer", "as_layer", "described", "kind_of", "with_inputs"]


class LossLayer(Layer):
    """A loss as a layer of two inputs, prediction and target, whose output is the loss of each sample."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def build(self, declare: Declare, *inputs: ArraySpec) -> ArraySpec:
        return inputs[0].replace(shape=("N",), low=None, high=None)

    def forward_pass(self, ctx: Any, *inputs: Any) -> Any:
        return self.loss.forward(ctx, *inputs)

    def backward_pass(self, ctx: Any, *gradients: Any) -> Any:
        return self.loss.backward(ctx, *gradients), None


class ActivationLayer(Layer):
    """An activation as a layer, along the last axis if it works along one."""

    def __init__(self, function: ActivationFunction) -> None:
        self.function = function

    def build(self, declare: Declare, x: ArraySpec) -> ArraySpec:
        return x.replace(low=None, high=None)

    def forward_pass(self, ctx: Any, x: Any) -> Any:
        y = self.function.forward(ctx.xp, x)
        ctx.save(x if self.function.uses_x else None, y)
        return y

    def backward_pass(self, ctx: Any, dy: Any) -> Any:
        x, y = ctx.saved
        return self.function.backward(ctx.xp, x, y, dy)


def as_layer(subject: Any) -> Any:
    """The layer that shows a layer, a loss or an activation to the engine."""
    if isinstance(subject, Loss):
        return LossLayer(subject)
    return ActivationLayer(subject) if isinstance(subject, ActivationFunction) else subject


def kind_of(subject: Any) -> str:
    """The kind of a subject, as in ``"layers"``; empty for what no hook gives."""
    return next((kind for kind, base in _KINDS.items() if isinstance(subject, base)), "")


_KINDS = {
    "layers": Layer,
    "losses": Loss,
    "activations": ActivationFunction,
    "optimizers": Optimizer,
    "metrics": Metric,
    "schedules": Schedule,
}


def described(subject: Any) -> str:
    """A subject in its own words; an activation, which has none, by its registered name or that of its function."""
    if not isinstance(subject, ActivationFunction):
        return repr(subject)
    names = [entry.name for entry in registry.entries("activations") if entry.object is subject]
    return f"activation {names[0]!r}" if names else f"activation {getattr(subject.forward, '__name__', 'of no name')}"


def with_inputs(specimen: Any) -> str:
    """A specimen in a few words, such as ``"Dense(3) on (N, 4) float32"``."""
    inputs = ", ".join(map(str, specimen.inputs))
    return f"{described(specimen.subject)}{f' on {inputs}' if inputs else ''}"
