"""Optimizers whose steps are scaled by squares of earlier gradients."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from lamella.arguments import flag, fraction, number
from lamella.optimizers.optimizer import Optimizer, Slots
from lamella.schedules import Schedule, number_or_schedule

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


class RMSprop(Optimizer):
    """Steps scaled by a running average of the squared gradient.

    ``v = rho v + (1 - rho) g^2;  p = p - lr g / (sqrt(v) + epsilon)``. Centred: ``a = rho a + (1 - rho) g``, and
    ``v - a^2`` under the root. With momentum: ``b = momentum b + g / (sqrt(v) + epsilon);  p = p - lr b``.

    Arguments:
        learning_rate: the step size.
        rho: what the averages keep at each step, in [0, 1); PyTorch's ``alpha``.
        momentum: the share of the last step that is kept, in [0, 1).
        epsilon: keeps the divisor from 0.
        centered: whether to divide by the standard deviation of the gradient.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html

    >>> RMSprop(momentum=0.9, centered=True).slots
    {'v': 0.0, 'mean': 0.0, 'velocity': 0.0}
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        rho: float = 0.99,
        momentum: float = 0.0,
        epsilon: float = 1e-8,
        centered: bool = False,
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.rho = fraction(rho, "rho")
        self.momentum = fraction(momentum, "momentum")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        self.centered = flag(centered, "centered")
        names = ("v", *(("mean",) if self.centered else ()), *(("velocity",) if self.momentum else ()))
        self.slots = dict.fromkeys(names, 0.0)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        v = self.rho * slots["v"] + (1.0 - self.rho) * g * g
        new, spread = {"v": v}, v
        if self.centered:
            new["mean"] = self.rho * slots["mean"] + (1.0 - self.rho) * g
            spread = v - new["mean"] * new["mean"]
            spread = xp.maximum(spread, xp.zeros_like(spread))  # round-off may take it below 0
        direction = g / (xp.sqrt(spread) + self.epsilon)
        if self.momentum:
            direction = new["velocity"] = self.momentum * slots["velocity"] + direction
        return p - lr * direction, new


class Adagrad(Optimizer):
    """Steps that shrink with all squared gradients so far: ``s = s + g^2;  p = p - lr g / (sqrt(s) + epsilon)``.

    Arguments:
        learning_rate: the step size.
        initial_accumulator_value: what ``s`` starts with, at least 0.
        epsilon: keeps the divisor from 0.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html

    >>> import numpy as np
    >>> Adagrad().update(np, np.ones(1), np.array([3.0]), {"sum": np.array([16.0])}, lr=1.0, t=1)[0].round(6)
    array([0.4])
    """

    def __init__(
        self, learning_rate: float | Schedule = 0.01, initial_accumulator_value: float = 0.0, epsilon: float = 1e-10
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.initial_accumulator_value = number(initial_accumulator_value, "initial_accumulator_value", minimum=0.0)
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        self.slots = {"sum": self.initial_accumulator_value}

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        total = slots["sum"] + g * g
        return p - lr * g / (xp.sqrt(total) + self.epsilon), {"sum": total}


class Adadelta(Optimizer):
    """Steps with the size of earlier steps, for which the learning rate is only a factor.

    ``v = rho v + (1 - rho) g^2;  step = g sqrt(u + epsilon) / sqrt(v + epsilon)``, then
    ``u = rho u + (1 - rho) step^2;  p = p - lr step``.

    Arguments:
        learning_rate: a factor on each step.
        rho: what the averages keep at each step, in [0, 1).
        epsilon: under both roots; the first steps come from it.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adadelta.html, after https://arxiv.org/abs/1212.5701

    >>> Adadelta().learning_rate
    1.0
    """

    slots = MappingProxyType({"v": 0.0, "u": 0.0})

    def __init__(self, learning_rate: float | Schedule = 1.0, rho: float = 0.9, epsilon: float = 1e-6):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.rho = fraction(rho, "rho")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        v = self.rho * slots["v"] + (1.0 - self.rho) * g * g
        step = xp.sqrt(slots["u"] + self.epsilon) / xp.sqrt(v + self.epsilon) * g
        u = self.rho * slots["u"] + (1.0 - self.rho) * step * step
        return p - lr * step, {"v": v, "u": u}
