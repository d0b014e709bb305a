"""Optimizers around another one: they change what it is given, or what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from lamella.arguments import fraction, number, positive
from lamella.errors import ArgumentError, shown
from lamella.optimizers.optimizer import OPTIMIZERS, Optimizer, Rule, Slots, matches, pattern_argument
from lamella.schedules import Schedule

__all__ = ["Around", "ExponentialMovingAverage", "GradientAccumulation", "LearningRateMultipliers"]


class Around(Optimizer):
    """An optimizer around another one, whose learning rate, slots and patterns it has."""

    optimizer: Optimizer

    def _surround(self, optimizer: Any, **slots: float) -> None:
        """Take the inner optimizer, and slots beside its own."""
        self.optimizer = OPTIMIZERS.resolve(optimizer, classes=False)
        self.learning_rate, self.patterns = self.optimizer.learning_rate, self.optimizer.patterns
        if twice := slots.keys() & self.optimizer.slots.keys():
            raise ArgumentError(f"optimizer: {self.optimizer!r} has a slot {twice.pop()!r} already; use another one")
        self.slots = {**self.optimizer.slots, **slots}

    def rule_of(self, name: str) -> Rule:
        inner, factor = self.optimizer.rule_of(name)
        return Rule(self if inner is self.optimizer else self.replace(optimizer=inner), factor)

    def settings(self) -> dict[str, Any]:
        own = {name: value for name, value in super().settings().items() if name != "optimizer"}
        inner = {f"optimizer.{name}": value for name, value in self.optimizer.settings().items()}
        return {"optimizer": type(self.optimizer).__name__, **inner, **own}

    def with_learning_rate(self, learning_rate: float | Schedule) -> Self:
        return self.replace(optimizer=self.optimizer.with_learning_rate(learning_rate))


class GradientAccumulation(Around):
    """Takes one step of another optimizer for several batches, along the mean of their gradients.

    ``a = a + g / steps``; at every step whose number divides by ``steps`` the optimizer moves the parameters along
    ``a``, and ``a`` is 0 again. That is a step on a batch ``steps`` times as large, in the memory that one batch takes.
    Schedules count every batch, and gradients are clipped batch by batch.

    Arguments:
        optimizer: a registered name or an `Optimizer`.
        steps: how many batches make a step.

    Source: https://keras.io/api/optimizers/ (``gradient_accumulation_steps``)

    >>> import numpy as np
    >>> optimizer, p, slots = GradientAccumulation("sgd", 2), np.zeros(1), {"accumulated": np.zeros(1)}
    >>> for t, g in enumerate((1.0, 3.0), start=1):
    ...     p, slots = optimizer.update(np, p, np.array([g]), slots, lr=0.5, t=t)
    ...     print(p)
    [0.]
    [-1.]
    """

    def __init__(self, optimizer: str | Optimizer, steps: int):
        self._surround(optimizer, accumulated=0.0)
        self.steps = positive(steps, "steps", minimum=2)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        mean = slots["accumulated"] + g / self.steps
        before = {name: slot for name, slot in slots.items() if name != "accumulated"}
        done = t // self.steps
        if isinstance(t, int):
            if t % self.steps:
                return p, {**before, "accumulated": mean}
            new, after = self.optimizer.update(xp, p, mean, before, lr, done)
            return new, {**after, "accumulated": xp.zeros_like(mean)}
        moves = done * self.steps == t
        new, after = self.optimizer.update(xp, p, mean, before, lr, xp.maximum(done, xp.ones_like(done)))
        kept = {name: xp.where(moves, slot, before[name]) for name, slot in after.items()}
        return xp.where(moves, new, p), {**kept, "accumulated": xp.where(moves, xp.zeros_like(mean), mean)}


class ExponentialMovingAverage(Around):
    """Keeps an average of the parameters beside the steps of another optimizer, for a model that predicts better.

    ``a = momentum a + (1 - momentum) p`` after every step, where the first takes ``p`` itself, before constraints.
    Training goes on with ``p``; ``model.averaged()`` is a model with ``a``.

    Arguments:
        optimizer: a registered name or an `Optimizer`.
        momentum: what the average keeps at each step, in [0, 1).

    Source: https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema,
    https://keras.io/api/optimizers/ (``use_ema``)

    >>> import numpy as np
    >>> optimizer, p, slots = ExponentialMovingAverage("sgd", 0.5), np.zeros(1), {"average": np.zeros(1)}
    >>> for t in (1, 2):
    ...     p, slots = optimizer.update(np, p, np.array([-2.0]), slots, lr=1.0, t=t)
    ...     print(p, slots["average"])
    [2.] [2.]
    [4.] [3.]
    """

    def __init__(self, optimizer: str | Optimizer, momentum: float = 0.99):
        self._surround(optimizer, average=0.0)
        self.momentum = fraction(momentum, "momentum")

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        before = {name: slot for name, slot in slots.items() if name != "average"}
        new, after = self.optimizer.update(xp, p, g, before, lr, t)
        keeps = self.momentum * (float(t > 1) if isinstance(t, int) else xp.astype(t > 1, p.dtype))
        return new, {**after, "average": keeps * slots["average"] + (1.0 - keeps) * new}


def keeps_average(optimizer: Optimizer) -> bool:
    """Whether an optimizer, or one within it, keeps an average of the parameters."""
    while isinstance(optimizer, Around):
        if isinstance(optimizer, ExponentialMovingAverage):
            return True
        optimizer = optimizer.optimizer
    return False


class LearningRateMultipliers(Around):
    """Another optimizer with other learning rates for some parameters, by patterns of their names.

    Arguments:
        optimizer: a registered name or an `Optimizer`.
        multipliers: by what the learning rate is multiplied, at least 0, as in ``{"embedding_*": 0.1}``. A parameter
            that several patterns match gets the product.

    Raises:
        ArgumentError: when training begins, a pattern that matches no parameter.

    Source: Howard and Ruder, https://arxiv.org/abs/1801.06146, section 3.2 (discriminative fine-tuning)

    >>> optimizer = LearningRateMultipliers("adam", {"conv2d_*": 0.1})
    >>> optimizer.rule_of("conv2d_1.kernel").factor, optimizer.rule_of("dense_1.kernel").factor
    (0.1, 1.0)
    """

    def __init__(self, optimizer: str | Optimizer, multipliers: Mapping[str, float]):
        self._surround(optimizer)
        if not isinstance(multipliers, Mapping):
            raise ArgumentError(f"multipliers: expected a dict such as {{'conv2d_*': 0.1}}, got {shown(multipliers)}")
        checked = {
            pattern_argument(pattern, "multipliers"): number(factor, f"multipliers: {pattern!r}", minimum=0.0)
            for pattern, factor in multipliers.items()
        }
        self.multipliers = MappingProxyType(checked)
        self.patterns = (*self.patterns, *self.multipliers)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        return self.optimizer.update(xp, p, g, slots, lr, t)

    def rule_of(self, name: str) -> Rule:
        inner, factor = self.optimizer.rule_of(name)
        for pattern, own in self.multipliers.items():
            factor *= own if matches(name, (pattern,)) else 1.0
        return Rule(inner, factor)
