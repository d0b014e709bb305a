"""Adam and its kin: steps scaled by running averages of the gradient and of its size."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

from lamella.arguments import flag, fraction, number
from lamella.optimizers.momentum import without_decay
from lamella.optimizers.optimizer import Optimizer, Rule, Slots, matches, patterns_argument
from lamella.schedules import Schedule, number_or_schedule

__all__ = ["Adam", "AdamW", "Adamax", "Nadam"]


class Adam(Optimizer):
    """Steps scaled by running averages of the gradient and its square.

    ``m = beta_1 m + (1 - beta_1) g;  v = beta_2 v + (1 - beta_2) g^2``, then
    ``p = p - lr (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)``. AMSGrad has the largest ``v`` of all
    steps so far in the place of ``v``.

    Arguments:
        learning_rate: the step size; about the size of every entry's first step.
        beta_1, beta_2: what the averages keep at each step, in [0, 1).
        epsilon: keeps the divisor from 0.
        amsgrad: whether steps never grow again where gradients were large once, which takes a third array.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html, after
    https://arxiv.org/abs/1412.6980; AMSGrad: Reddi et al., https://arxiv.org/abs/1904.09237

    >>> import numpy as np
    >>> zero = np.zeros(1)
    >>> p, slots = Adam().update(np, zero, np.array([5.0]), {"m": zero, "v": zero}, lr=0.001, t=1)
    >>> p.round(6), sorted(slots)
    (array([-0.001]), ['m', 'v'])
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        amsgrad: bool = False,
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        self.amsgrad = flag(amsgrad, "amsgrad")
        self.slots = _slots(self.amsgrad)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        step, slots = _adam(self, xp, g, slots, t, lr)
        return p - step, slots


class AdamW(Optimizer):
    """Adam with weight decay that does not pass through Adam's scaling: ``p = p - lr weight_decay p`` comes first.

    Arguments:
        learning_rate, beta_1, beta_2, epsilon, amsgrad: as in `Adam`.
        weight_decay: the share of each parameter, times the learning rate, that every step takes away.
        exclude_from_weight_decay: patterns of parameters without weight decay, such as ``("*.bias", "*.gamma")``.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html, after https://arxiv.org/abs/1711.05101

    >>> import numpy as np
    >>> one, zero = np.ones(1), np.zeros(1)
    >>> AdamW(weight_decay=0.5).update(np, one, zero, {"m": zero, "v": zero}, lr=0.1, t=1)[0]
    array([0.95])
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        exclude_from_weight_decay: tuple[str, ...] = (),
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        self.weight_decay = number(weight_decay, "weight_decay", minimum=0.0)
        self.amsgrad = flag(amsgrad, "amsgrad")
        self.patterns = patterns_argument(exclude_from_weight_decay, "exclude_from_weight_decay")
        self.slots = _slots(self.amsgrad)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        step, slots = _adam(self, xp, g, slots, t, lr)
        return p - lr * self.weight_decay * p - step, slots

    def rule_of(self, name: str) -> Rule:
        return Rule(without_decay(self) if matches(name, self.patterns) else self)


class Adamax(Optimizer):
    """Adam with the largest gradient so far, which fades, in the place of the average of squares.

    ``m = beta_1 m + (1 - beta_1) g;  u = max(beta_2 u, |g| + epsilon)``, then ``p = p - lr m / ((1 - beta_1^t) u)``.

    Arguments:
        learning_rate: the step size.
        beta_1, beta_2: what the average and the largest gradient keep at each step, in [0, 1).
        epsilon: keeps the divisor from 0.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html, after https://arxiv.org/abs/1412.6980

    >>> import numpy as np
    >>> zero = np.zeros(1)
    >>> Adamax().update(np, zero, np.array([5.0]), {"m": zero, "u": zero}, lr=0.002, t=1)[0].round(6)
    array([-0.002])
    """

    slots = MappingProxyType({"m": 0.0, "u": 0.0})

    def __init__(
        self,
        learning_rate: float | Schedule = 0.002,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = number(epsilon, "epsilon", above=0.0)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        m = slots["m"] + (g - slots["m"]) * (1.0 - self.beta_1)
        u = xp.maximum(self.beta_2 * slots["u"], xp.abs(g) + self.epsilon)
        return p - m / u * (lr / _bias_correction(xp, self.beta_1, t, g.dtype)), {"m": m, "u": u}


class Nadam(Optimizer):
    """Adam that looks ahead as Nesterov's momentum does, with a momentum that grows from one half of ``beta_1``.

    With ``mu(t) = beta_1 (1 - 0.96^(t momentum_decay) / 2)`` and its product ``c`` over all steps so far,
    ``c = c mu(t)``, and Adam's averages ``m`` and ``v``:
    ``p = p - lr ((1 - mu(t)) g / (1 - c) + mu(t + 1) m / (1 - c mu(t + 1))) / (sqrt(v / (1 - beta_2^t)) + epsilon)``.

    Arguments:
        learning_rate: the step size.
        beta_1, beta_2: what the averages keep at each step, in [0, 1).
        epsilon: keeps the divisor from 0.
        momentum_decay: how fast the momentum grows.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html, after Dozat, Incorporating Nesterov
    Momentum into Adam (2016)

    >>> Nadam().slots
    {'m': 0.0, 'v': 0.0, 'mu_product': 1.0}
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.002,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        momentum_decay: float = 0.004,
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        self.momentum_decay = number(momentum_decay, "momentum_decay", minimum=0.0)
        self.slots = {"m": 0.0, "v": 0.0, "mu_product": 1.0}  # one number; a traced step keeps it nowhere else

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        m = slots["m"] + (g - slots["m"]) * (1.0 - self.beta_1)
        v = slots["v"] + (g * g - slots["v"]) * (1.0 - self.beta_2)
        mu, ahead = momentum_of(self, xp, t, g.dtype), momentum_of(self, xp, t + 1, g.dtype)
        product = slots["mu_product"] * mu
        direction = g * (1.0 - mu) / (1.0 - product) + m * ahead / (1.0 - product * ahead)
        root = _bias_correction(xp, self.beta_2, t, g.dtype) ** 0.5
        return p - lr * direction / (xp.sqrt(v) / root + self.epsilon), {"m": m, "v": v, "mu_product": product}


def momentum_of(rule: Nadam, xp: Any, t: Any, dtype: Any) -> Any:
    """Return the momentum at a step, ``mu(t)``."""
    if isinstance(t, int):
        return rule.beta_1 * (1.0 - 0.5 * 0.96 ** (t * rule.momentum_decay))
    return rule.beta_1 * (1.0 - 0.5 * xp.exp(xp.astype(t, dtype) * (rule.momentum_decay * math.log(0.96))))


def _slots(amsgrad: bool) -> dict[str, float]:
    return dict.fromkeys(("m", "v", *(("v_max",) if amsgrad else ())), 0.0)


def _adam(rule: Adam | AdamW, xp: Any, g: Any, slots: Slots, t: Any, lr: Any) -> tuple[Any, Slots]:
    """Adam's step and new averages.

    Both corrections are taken out of the array: ``lr (m / c_1) / (sqrt(v / c_2) + epsilon)`` is
    ``lr sqrt(c_2) / c_1`` times ``m / (sqrt(v) + epsilon sqrt(c_2))``.
    """
    m, v = slots["m"], slots["v"]
    m = m + (g - m) * (1.0 - rule.beta_1)
    v = v + (g * g - v) * (1.0 - rule.beta_2)
    new, size = {"m": m, "v": v}, v
    if rule.amsgrad:
        size = new["v_max"] = xp.maximum(slots["v_max"], v)
    c_1, root = _bias_correction(xp, rule.beta_1, t, g.dtype), _bias_correction(xp, rule.beta_2, t, g.dtype) ** 0.5
    return m / (xp.sqrt(size) + rule.epsilon * root) * (lr * root / c_1), new


def _bias_correction(xp: Any, beta: float, t: Any, dtype: Any) -> Any:
    """``1 - beta ** t``: a float for an int, else an array; through expm1, as 1 - 0.999 has no digits in float32."""
    if isinstance(t, int) or beta == 0.0:
        return 1.0 - beta ** (t if isinstance(t, int) else 1)
    return -xp.expm1(xp.astype(t, dtype) * math.log(beta))
