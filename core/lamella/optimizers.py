"""Optimizers: how a parameter moves along its gradient. The formulas and defaults are those of PyTorch 2.

Every ``learning_rate`` is a number or a `lamella.schedules.Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import flag, fraction, number
from lamella.errors import ArgumentError, shown
from lamella.hookspecs import hookimpl
from lamella.protocol.configured import Configured
from lamella.schedules import Schedule, number_or_schedule

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop"]

Slots = dict[str, Any]


class Optimizer(Configured):
    """A pure, elementwise rule for one step; what it remembers of earlier steps stands in its slots.

    Being elementwise, the rule gives the same for a parameter, a piece of one, or all of them end to end in a buffer.

    Attributes:
        learning_rate: the step size that the engine passes to ``update`` as ``lr``, or a `Schedule` that gives it.
        slots: the name of each array that the engine keeps beside a parameter, and the value it starts with.

    >>> import lamella as lm
    >>> class SignSGD(lm.optimizers.Optimizer):
    ...     def __init__(self, learning_rate: float | Schedule = 0.01):
    ...         self.learning_rate = learning_rate
    ...     def update(self, xp, p, g, slots, lr, t):
    ...         return p - lr * xp.sign(g), {}
    """

    _elsewhere = elsewhere.OPTIMIZER

    learning_rate: float | Schedule
    slots: Mapping[str, float] = MappingProxyType({})

    def _check(self) -> None:
        slots: Any = self.slots
        if not isinstance(slots, Mapping):
            got = "a method" if callable(slots) else shown(slots)
            raise ArgumentError(
                'slots: expected a dict of names to the numbers that they start with, such as slots = {"m": 0.0}, got '
                f"{got}"
            )
        for name, value in slots.items():
            if not isinstance(name, str):
                raise ArgumentError(f"slots: expected names as keys, got {shown(name)}")
            number(value, f"slots: {name!r}")

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        """Return the new parameter and slots, and write to none of the arguments.

        ``p``, ``g`` and every slot have one shape and dtype. ``lr`` is a float and ``t`` an int that counts steps
        from 1; in a traced training step both are arrays without axes.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no update")


OPTIMIZERS = registry.Kind("optimizers", "lamella.optimizers.Optimizer", base=Optimizer)


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


class Adam(Optimizer):
    """Steps scaled by running averages of the gradient and its square.

    ``m = beta_1 m + (1 - beta_1) g;  v = beta_2 v + (1 - beta_2) g^2``, then
    ``p = p - lr (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)``.

    Arguments:
        learning_rate: the step size; about the size of every entry's first step.
        beta_1, beta_2: what the averages keep at each step, in [0, 1).
        epsilon: keeps the divisor from 0.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html, after https://arxiv.org/abs/1412.6980

    >>> import numpy as np
    >>> zero = np.zeros(1)
    >>> p, slots = Adam().update(np, zero, np.array([5.0]), {"m": zero, "v": zero}, lr=0.001, t=1)
    >>> p.round(6), sorted(slots)
    (array([-0.001]), ['m', 'v'])
    """

    slots = MappingProxyType({"m": 0.0, "v": 0.0})

    def __init__(
        self, learning_rate: float | Schedule = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        step, slots = _adam(self, xp, g, slots, t, lr)
        return p - step, slots


class AdamW(Optimizer):
    """Adam with weight decay that does not pass through Adam's scaling: ``p = p - lr weight_decay p`` comes first.

    Arguments:
        learning_rate, beta_1, beta_2, epsilon: as in `Adam`.
        weight_decay: the share of each parameter, times the learning rate, that every step takes away.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html, after https://arxiv.org/abs/1711.05101

    >>> import numpy as np
    >>> one, zero = np.ones(1), np.zeros(1)
    >>> AdamW(weight_decay=0.5).update(np, one, zero, {"m": zero, "v": zero}, lr=0.1, t=1)[0]
    array([0.95])
    """

    slots = MappingProxyType({"m": 0.0, "v": 0.0})

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        self.learning_rate = number_or_schedule(learning_rate, "learning_rate")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = number(epsilon, "epsilon", minimum=0.0)
        self.weight_decay = number(weight_decay, "weight_decay", minimum=0.0)

    def update(self, xp: Any, p: Any, g: Any, slots: Slots, lr: Any, t: Any) -> tuple[Any, Slots]:
        step, slots = _adam(self, xp, g, slots, t, lr)
        return p - lr * self.weight_decay * p - step, slots


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


def _adam(rule: Adam | AdamW, xp: Any, g: Any, slots: Slots, t: Any, lr: Any) -> tuple[Any, Slots]:
    """Adam's step and new averages.

    Both corrections are taken out of the array: ``lr (m / c_1) / (sqrt(v / c_2) + epsilon)`` is
    ``lr sqrt(c_2) / c_1`` times ``m / (sqrt(v) + epsilon sqrt(c_2))``.
    """
    m, v = slots["m"], slots["v"]
    m = m + (g - m) * (1.0 - rule.beta_1)
    v = v + (g * g - v) * (1.0 - rule.beta_2)
    c_1, root = _bias_correction(xp, rule.beta_1, t, g.dtype), _bias_correction(xp, rule.beta_2, t, g.dtype) ** 0.5
    return m / (xp.sqrt(v) + rule.epsilon * root) * (lr * root / c_1), {"m": m, "v": v}


def _bias_correction(xp: Any, beta: float, t: Any, dtype: Any) -> Any:
    """``1 - beta ** t``: a float for an int, else an array; through expm1, as 1 - 0.999 has no digits in float32."""
    if isinstance(t, int) or beta == 0.0:
        return 1.0 - beta ** (t if isinstance(t, int) else 1)
    return -xp.expm1(xp.astype(t, dtype) * math.log(beta))


# The same with NumPy, into arrays that are there already, with the same bits. Found by the update that they stand for,
# so that a subclass with another one gets its own.


def _write_sgd(
    rule: SGD, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    step = g
    if rule.momentum:
        step = v = new_slots["velocity"]
        np.multiply(slots["velocity"], rule.momentum, out=v)
        np.add(v, g, out=v)
        if rule.nesterov:
            np.multiply(v, rule.momentum, out=new_p)
            step = np.add(g, new_p, out=new_p)
    np.multiply(step, lr, out=new_p)
    np.subtract(p, new_p, out=new_p)


def _write_adam(
    rule: Adam | AdamW, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    m, v, new_m, new_v = slots["m"], slots["v"], new_slots["m"], new_slots["v"]
    np.subtract(g, m, out=new_m)
    np.multiply(new_m, 1.0 - rule.beta_1, out=new_m)
    np.add(m, new_m, out=new_m)
    np.multiply(g, g, out=work)
    np.subtract(work, v, out=work)
    np.multiply(work, 1.0 - rule.beta_2, out=work)
    np.add(v, work, out=new_v)
    c_1, root = 1.0 - rule.beta_1**t, (1.0 - rule.beta_2**t) ** 0.5
    np.sqrt(new_v, out=work)
    np.add(work, rule.epsilon * root, out=work)
    np.divide(new_m, work, out=work)
    np.multiply(work, lr * root / c_1, out=work)
    if isinstance(rule, AdamW):
        np.multiply(p, lr * rule.weight_decay, out=new_p)
        np.subtract(p, new_p, out=new_p)
        p = new_p
    np.subtract(p, work, out=new_p)


WRITERS: Mapping[Any, Callable[..., None]] = MappingProxyType(
    {SGD.update: _write_sgd, Adam.update: _write_adam, AdamW.update: _write_adam}
)


@hookimpl
def lamella_optimizers() -> dict[str, type]:
    return {
        "sgd": SGD,
        "adam": Adam,
        "adamw": AdamW,
        "rmsprop": RMSprop,
        "adagrad": Adagrad,
        "adadelta": Adadelta,
    }


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise AttributeError(elsewhere.absent(__name__, name, elsewhere.OPTIMIZERS))


def __dir__() -> list[str]:
    return __all__
