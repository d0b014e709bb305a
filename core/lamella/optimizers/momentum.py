"""Optimizers whose steps have one size for all entries, or one for each sign."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from lamella.arguments import flag, fraction, number
from lamella.errors import ArgumentError
from lamella.optimizers.optimizer import Optimizer, Rule, Slots, matches, patterns_argument
from lamella.schedules import Schedule, number_or_schedule

__all__ = ["SGD", "Lion"]


class SGD(Optimizer):
    """Gradient descent, with momentum if asked for.

    ``v = momentum v + g;  p = p - lr v``, and with Nesterov's look-ahead ``p = p - lr (g + momentum v)``.

    Arguments:
        learning_rate: the step size.
        momentum: the share of the last step that is kept, in [0, 1).
        nesterov: whether to look ahead; needs momentum.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html

    >>> import numpy as np
    >>> SGD(0.5).update(np, np.array([1.0]), np.array([4.0]), {}, lr=0.5, t=1)
    (array([-1.]), {})
    """

    def __init__(self, learning_rate: float | Schedule = 0.01, momentum: float = 0.0, nesterov: bool = False):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.momentum = fraction(momentum, "momentum")
        self.nesterov = flag(nesterov, "nesterov")
        self.slots = {"velocity": 0.0} if self.momentum else {}
        if self.nesterov and not self.momentum:
            raise ArgumentError("nesterov: expected False without momentum, got True; try momentum=0.9")

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        if not self.momentum:
            return p - lr * g, {}
        v = self.momentum * slots["velocity"] + g
        return p - lr * (g + self.momentum * v if self.nesterov else v), {"velocity": v}


class Lion(Optimizer):
    """Steps of one size along the sign of a momentum; it keeps one array where Adam keeps two.

    ``p = p - lr (sign(beta_1 m + (1 - beta_1) g) + weight_decay p)``, then ``m = beta_2 m + (1 - beta_2) g``. The
    learning rate is three to ten times smaller than Adam's, and weight decay as many times larger.

    Arguments:
        learning_rate: the step size of every entry.
        beta_1: what the momentum has of the direction of a step, in [0, 1).
        beta_2: what the momentum keeps at each step, in [0, 1).
        weight_decay: the share of each parameter, times the learning rate, that every step takes away.
        exclude_from_weight_decay: patterns of parameters without weight decay, such as ``("*.bias",)``.

    Source: Chen et al., https://arxiv.org/abs/2302.06675

    >>> import numpy as np
    >>> Lion().update(np, np.zeros(2), np.array([5.0, -0.1]), {"m": np.zeros(2)}, lr=0.5, t=1)[0]
    array([-0.5,  0.5])
    """

    slots = MappingProxyType({"m": 0.0})

    def __init__(
        self,
        learning_rate: float | Schedule = 0.0001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: tuple[str, ...] = (),
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.weight_decay = number(weight_decay, "weight_decay", minimum=0.0)
        self.patterns = patterns_argument(exclude_from_weight_decay, "exclude_from_weight_decay")

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        m = slots["m"]
        step = xp.sign(self.beta_1 * m + (1.0 - self.beta_1) * g)
        if self.weight_decay:
            step = step + self.weight_decay * p
        return p - lr * step, {"m": self.beta_2 * m + (1.0 - self.beta_2) * g}

    def rule_of(self, name: str) -> Rule:
        return Rule(without_decay(self) if matches(name, self.patterns) else self)


def without_decay(optimizer: Any) -> Any:
    """The same without weight decay."""
    return optimizer.replace(weight_decay=0.0, exclude_from_weight_decay=())
