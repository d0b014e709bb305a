"""What an optimizer is: a rule for one step, and its own rule for some parameters, by patterns of their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from lamella import elsewhere, registry
from lamella.arguments import number
from lamella.errors import ArgumentError, did_you_mean, shown
from lamella.protocol.configured import Configured
from lamella.schedules import Schedule, number_or_schedule

__all__ = ["OPTIMIZERS", "Optimizer", "Rule", "Slots", "rules_of"]

Slots = dict[str, Any]


class Rule(NamedTuple):
    """How one parameter moves: an optimizer with the slots of the whole, and a factor on its learning rate."""

    optimizer: Optimizer
    factor: float = 1.0


class Optimizer(Configured):
    """A pure, elementwise rule for one step; what it remembers of earlier steps stands in its slots.

    Being elementwise, the rule gives the same for a parameter, a piece of one, or all of them end to end in a buffer.

    Attributes:
        learning_rate: the step size that the engine passes to ``update`` as ``lr``, or a `Schedule` that gives it.
        slots: the name of each array that the engine keeps beside a parameter, and the value it starts with.
        patterns: of parameters that have a rule of their own, by `rule_of`; each must match a parameter of the model.

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
    patterns: tuple[str, ...] = ()

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

    def rule_of(self, name: str) -> Rule:
        """Return the rule for a parameter by its full name, such as ``"dense_1.bias"``: this one unless overridden."""
        return Rule(self)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that must be equal for steps to go on from each other: all but the learning rate."""
        return {name: value for name, value in self.config().items() if name != "learning_rate"}

    def with_learning_rate(self, learning_rate: float | Schedule) -> Self:
        """Return the same with another learning rate.

        >>> import lamella as lm
        >>> lm.optimizers.SGD(0.1, momentum=0.9).with_learning_rate(0.5)
        SGD(learning_rate=0.5, momentum=0.9)
        """
        return self.replace(learning_rate=number_or_schedule(learning_rate, "with_learning_rate"))


OPTIMIZERS = registry.Kind("optimizers", "lamella.optimizers.Optimizer", base=Optimizer)


def rules_of(optimizer: Optimizer, names: Collection[str]) -> dict[str, Rule]:
    """Return the rule of each parameter by name; an empty dict where all have the optimizer's own.

    Raises:
        ArgumentError: a pattern that matches no parameter.
    """
    if not optimizer.patterns:
        return {}
    for pattern in optimizer.patterns:
        if not fnmatch.filter(names, pattern):
            raise ArgumentError(
                f"{optimizer!r}: no parameter is called {pattern!r}; there are {', '.join(names)}."
                f"{did_you_mean(pattern, names)}"
            )
    return {name: optimizer.rule_of(name) for name in names}


def pattern_argument(value: Any, name: str) -> str:
    """Return a pattern of parameters' names."""
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{name}: expected a pattern of parameters' names such as '*.bias', got {shown(value)}")
    return value


def patterns_argument(value: Any, name: str) -> tuple[str, ...]:
    """Return patterns of parameters' names, from one or several."""
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, tuple | list):
        raise ArgumentError(f"{name}: expected patterns of parameters' names such as ('*.bias',), got {shown(value)}")
    return tuple(pattern_argument(one, name) for one in value)


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name matches one of some patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
