"""Schedules: learning rates that change from step to step, usable wherever a learning rate is a number.

Steps count from 1: ``at(1)`` is the rate of the first step that is taken with a schedule. Training that goes on with
an equal schedule, after `load` too, goes on counting; another schedule starts at its own first step.

>>> import lamella as lm
>>> optimizer = lm.optimizers.Adam(Cosine(0.01, steps=1000, warm_up=100))
>>> [round(optimizer.learning_rate.at(step), 5) for step in (1, 101, 551, 1000)]
[0.0001, 0.01, 0.005, 0.0]
"""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import fraction, number, positive
from lamella.errors import ArgumentError, shown
from lamella.hookspecs import hookimpl
from lamella.protocol.configured import Configured

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseTime",
    "OneCycle",
    "PiecewiseConstant",
    "Polynomial",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "learning_rate_at",
]


class Schedule(Configured):
    """A learning rate as a pure function of the step.

    >>> import lamella as lm
    >>> class InverseRoot(lm.schedules.Schedule):
    ...     def __init__(self, learning_rate: float):
    ...         self.learning_rate = learning_rate
    ...     def at(self, step):
    ...         return self.learning_rate / step**0.5
    >>> lm.optimizers.SGD(InverseRoot(0.1))
    SGD(learning_rate=InverseRoot(0.1))
    """

    def at(self, step: int) -> float:
        """Return the learning rate of a step; the first is step 1."""
        raise NotImplementedError(f"{type(self).__name__} defines no at")


SCHEDULES = registry.Kind("schedules", "lamella.schedules.Schedule", base=Schedule)


class Constant(Schedule):
    """The same rate at every step, as a plain number gives it.

    >>> Constant(0.1).at(1000)
    0.1
    """

    def __init__(self, learning_rate: float):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)

    def at(self, step: int) -> float:
        positive(step, "step")
        return self.learning_rate


class StepDecay(Schedule):
    """A rate that falls in stairs: ``learning_rate * factor ** floor((step - 1) / every)``.

    Arguments:
        learning_rate: the rate of the first ``every`` steps.
        every: how many steps a stair has.
        factor: what each stair is of the one before.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.StepLR.html

    >>> decay = StepDecay(0.5, every=10, factor=0.5)
    >>> [decay.at(step) for step in (1, 10, 11, 21)]
    [0.5, 0.5, 0.25, 0.125]
    """

    def __init__(self, learning_rate: float, every: int, factor: float = 0.1):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.every = positive(every, "every")
        self.factor = number(factor, "factor", above=0.0)

    def at(self, step: int) -> float:
        step = positive(step, "step")
        return self.learning_rate * _power(self.factor, (step - 1) // self.every)


class Exponential(Schedule):
    """A rate that falls by the same share at every step: ``learning_rate * factor ** ((step - 1) / every)``.

    Arguments:
        learning_rate: the rate of the first step.
        every: how many steps it takes to fall by ``factor``.
        factor: what is left after ``every`` steps.

    Source: https://keras.io/api/optimizers/learning_rate_schedules/exponential_decay/

    >>> Exponential(0.5, every=10, factor=0.25).at(6)
    0.25
    """

    def __init__(self, learning_rate: float, every: int, factor: float = 0.1):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.every = positive(every, "every")
        self.factor = number(factor, "factor", above=0.0)

    def at(self, step: int) -> float:
        step = positive(step, "step")
        return self.learning_rate * _power(self.factor, (step - 1) / self.every)


class Cosine(Schedule):
    """Half a cosine from ``learning_rate`` down to ``end``, after a straight rise if asked for.

    With ``k = step - 1``: for ``k < warm_up`` the rate is ``learning_rate * step / (warm_up + 1)``; then, with
    ``p = (k - warm_up) / (steps - warm_up)``, it is ``end + (learning_rate - end) (1 + cos(pi p)) / 2``, and ``end``
    after all ``steps``.

    Arguments:
        learning_rate: the highest rate.
        steps: how many steps there are, those of the rise included.
        warm_up: how many steps the rise takes.
        end: the lowest rate.

    Source: https://arxiv.org/abs/1608.03983; without a rise as in
    https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingLR.html

    >>> fall = Cosine(0.4, steps=6, warm_up=2)
    >>> [round(fall.at(step), 4) for step in range(1, 9)]
    [0.1333, 0.2667, 0.4, 0.3414, 0.2, 0.0586, 0.0, 0.0]
    """

    def __init__(self, learning_rate: float, steps: int, *, warm_up: int = 0, end: float = 0.0):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.steps = positive(steps, "steps")
        self.warm_up = positive(warm_up, "warm_up", minimum=0)
        self.end = number(end, "end", minimum=0.0)
        if self.warm_up >= self.steps:
            raise ArgumentError(
                f"warm_up: expected fewer than the {self.steps} steps, got {warm_up}; steps counts the rise too"
            )

    def at(self, step: int) -> float:
        step = positive(step, "step")
        if step <= self.warm_up:
            return self.learning_rate * step / (self.warm_up + 1)
        done = (step - 1 - self.warm_up) / (self.steps - self.warm_up)
        return _cosine(self.learning_rate, self.end, done)


class CosineRestarts(Schedule):
    """Half cosines from a high rate down to ``end``, one after another; each may be longer and lower than the last.

    Run ``n = 0, 1, ...`` has ``steps * lengthen ** n`` steps and starts at ``learning_rate * lower ** n``. With ``p``,
    the share of the run that is done before a step, the rate is ``end + (start - end) (1 + cos(pi p)) / 2``.

    Arguments:
        learning_rate: the rate of the first step.
        steps: how many steps the first run has.
        lengthen: how many times as many steps each run has as the one before.
        lower: what the start of each run is of that of the one before, in (0, 1].
        end: the lowest rate.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingWarmRestarts.html,
    https://keras.io/api/optimizers/learning_rate_schedules/cosine_decay_restarts/, after
    https://arxiv.org/abs/1608.03983

    >>> runs = CosineRestarts(0.4, steps=2, lengthen=2, lower=0.5)
    >>> [round(runs.at(step), 4) for step in range(1, 8)]
    [0.4, 0.2, 0.2, 0.1707, 0.1, 0.0293, 0.1]
    """

    def __init__(self, learning_rate: float, steps: int, *, lengthen: int = 1, lower: float = 1.0, end: float = 0.0):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.steps = positive(steps, "steps")
        self.lengthen = positive(lengthen, "lengthen")
        self.lower = number(lower, "lower", above=0.0)
        self.end = number(end, "end", minimum=0.0)
        if self.lower > 1.0:
            raise ArgumentError(f"lower: expected a number in (0, 1], got {shown(lower)}")

    def at(self, step: int) -> float:
        left, run, length = positive(step, "step") - 1, 0, self.steps
        if self.lengthen == 1:
            run, left = divmod(left, length)
        while left >= length:
            left, run, length = left - length, run + 1, length * self.lengthen
        return _cosine(self.learning_rate * _power(self.lower, run), self.end, left / length)


class PiecewiseConstant(Schedule):
    """A rate that changes at given steps: ``values[0]`` up to step ``boundaries[0]``, ``values[1]`` from then on, ...

    Arguments:
        boundaries: the last step of each value but the last, in rising order.
        values: the rates, one more than boundaries.

    Keras counts steps from 0, so that its first value holds for ``boundaries[0] + 1`` steps.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.MultiStepLR.html,
    https://keras.io/api/optimizers/learning_rate_schedules/piecewise_constant_decay/

    >>> stairs = PiecewiseConstant((100, 150), (0.1, 0.01, 0.001))
    >>> [stairs.at(step) for step in (1, 100, 101, 150, 151)]
    [0.1, 0.1, 0.01, 0.01, 0.001]
    """

    def __init__(self, boundaries: tuple[int, ...], values: tuple[float, ...]):
        for name, given in (("boundaries", boundaries), ("values", values)):
            if not isinstance(given, tuple | list):
                raise ArgumentError(f"{name}: expected a tuple of numbers, got {shown(given)}")
        self.boundaries = tuple(positive(boundary, "boundaries") for boundary in boundaries)
        self.values = tuple(number(value, "values", minimum=0.0) for value in values)
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ArgumentError(f"boundaries: expected steps in rising order, got {shown(boundaries)}")
        if len(self.values) != len(self.boundaries) + 1:
            raise ArgumentError(
                f"values: expected {len(self.boundaries) + 1}, one more than there are boundaries, got "
                f"{len(self.values)}"
            )

    def at(self, step: int) -> float:
        return self.values[bisect.bisect_left(self.boundaries, positive(step, "step"))]


class Polynomial(Schedule):
    """A rate that falls along a power of what is left: ``end + (learning_rate - end) (1 - (step - 1) / steps)^power``.

    After all ``steps`` it is ``end``.

    Arguments:
        learning_rate: the rate of the first step.
        steps: how many steps the fall takes.
        power: 1 for a straight line.
        end: the lowest rate.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.PolynomialLR.html,
    https://keras.io/api/optimizers/learning_rate_schedules/polynomial_decay/

    >>> fall = Polynomial(0.4, steps=4, power=2)
    >>> [round(fall.at(step), 3) for step in range(1, 7)]
    [0.4, 0.225, 0.1, 0.025, 0.0, 0.0]
    """

    def __init__(self, learning_rate: float, steps: int, *, power: float = 1.0, end: float = 0.0):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.steps = positive(steps, "steps")
        self.power = number(power, "power", above=0.0)
        self.end = number(end, "end", minimum=0.0)

    def at(self, step: int) -> float:
        left = max(0.0, 1.0 - (positive(step, "step") - 1) / self.steps)
        return self.end + (self.learning_rate - self.end) * math.pow(left, self.power)


class InverseTime(Schedule):
    """A rate that falls ever more slowly: ``learning_rate / (1 + (step - 1) / every)``.

    Arguments:
        learning_rate: the rate of the first step.
        every: after how many steps half of it is left; a third is left after twice as many.

    Source: https://keras.io/api/optimizers/learning_rate_schedules/inverse_time_decay/, where it is ``decay_steps /
    decay_rate``

    >>> fall = InverseTime(0.3, every=10)
    >>> [round(fall.at(step), 3) for step in (1, 11, 21)]
    [0.3, 0.15, 0.1]
    """

    def __init__(self, learning_rate: float, every: float):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.every = number(every, "every", above=0.0)

    def at(self, step: int) -> float:
        return self.learning_rate / (1.0 + (positive(step, "step") - 1) / self.every)


class WarmUp(Schedule):
    """A straight rise before another schedule: step ``n`` of the first ``steps`` takes ``n / (steps + 1)`` of its first
    rate; then the schedule itself starts with ``schedule.at(1)``.

    Arguments:
        schedule: what follows, a `Schedule` or a number.
        steps: how many steps the rise takes.

    Source: https://arxiv.org/abs/1706.02677

    >>> rise = WarmUp(StepDecay(0.4, every=2, factor=0.5), steps=3)
    >>> [round(rise.at(step), 3) for step in range(1, 8)]
    [0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.2]
    """

    def __init__(self, schedule: float | Schedule, steps: int):
        self.schedule = number_or_schedule(schedule, "schedule")
        self.steps = positive(steps, "steps")

    def at(self, step: int) -> float:
        step = positive(step, "step")
        if step <= self.steps:
            return learning_rate_at(self.schedule, 1) * step / (self.steps + 1)
        return learning_rate_at(self.schedule, step - self.steps)


class OneCycle(Schedule):
    """Up to a high rate and down to nearly nothing, each along half a cosine, for fast training in a known time.

    With ``k = step - 1``: from ``learning_rate / division`` at ``k = 0`` up to ``learning_rate`` at
    ``k = rise * steps - 1``, then down to ``learning_rate / division / final_division`` at ``k = steps - 1``, where
    it stays. Momentum does not change.

    Arguments:
        learning_rate: the highest rate.
        steps: how many steps there are.
        rise: the share of them that leads up, in [0, 1).
        division, final_division: how far below the start lies, and how far below the start the end lies.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html, after
    https://arxiv.org/abs/1708.07120

    >>> cycle = OneCycle(0.25, steps=10)
    >>> [round(cycle.at(step), 4) for step in (1, 2, 3, 7, 10)]
    [0.01, 0.13, 0.25, 0.0972, 0.0]
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int,
        *,
        rise: float = 0.3,
        division: float = 25.0,
        final_division: float = 1e4,
    ):
        self.learning_rate = number(learning_rate, "learning_rate", minimum=0.0)
        self.steps = positive(steps, "steps")
        self.rise = fraction(rise, "rise")
        self.division = number(division, "division", minimum=1.0)
        self.final_division = number(final_division, "final_division", minimum=1.0)

    def at(self, step: int) -> float:
        step = positive(step, "step")
        k, top, last = step - 1, max(0.0, self.rise * self.steps - 1.0), self.steps - 1.0
        start = self.learning_rate / self.division
        if k < top:
            return _cosine(start, self.learning_rate, k / top)
        down = (k - top) / (last - top) if last > top else float(k > top)
        return _cosine(self.learning_rate, start / self.final_division, down)


def _power(factor: float, exponent: float) -> float:
    try:
        return math.pow(factor, exponent)
    except OverflowError:  # a factor above 1, after very many steps
        return math.inf


def _cosine(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine; ``done`` is the share of the way."""
    return end + (start - end) * (1.0 + math.cos(math.pi * min(done, 1.0))) / 2.0


def number_or_schedule(value: float | Schedule, name: str) -> float | Schedule:
    """Return a learning rate as it is if it is a schedule, else as a float of at least 0.

    >>> number_or_schedule(1, "learning_rate"), number_or_schedule(Constant(1), "learning_rate")
    (1.0, Constant(1))
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise ArgumentError(
            f"{name}: expected a finite number or a Schedule, such as lm.schedules.Cosine(...), got {shown(value)}"
        )
    return number(value, name, minimum=0.0)


def learning_rate_at(learning_rate: float | Schedule, step: int) -> float:
    """Return the rate of a step, from a number or a schedule.

    Raises:
        ArgumentError: a schedule that gave something else than a finite number of at least 0.

    >>> learning_rate_at(0.1, 7), learning_rate_at(StepDecay(1.0, every=5), 7)
    (0.1, 0.1)
    """
    positive(step, "step")
    if not isinstance(learning_rate, Schedule):
        return number(learning_rate, "learning_rate", minimum=0.0)
    return number(learning_rate.at(step), f"{learning_rate!r}.at({step})", minimum=0.0)


@hookimpl
def lamella_schedules() -> dict[str, type]:
    return {
        "constant": Constant,
        "step_decay": StepDecay,
        "exponential": Exponential,
        "polynomial": Polynomial,
        "inverse_time": InverseTime,
        "piecewise_constant": PiecewiseConstant,
        "cosine": Cosine,
        "cosine_restarts": CosineRestarts,
        "warm_up": WarmUp,
        "one_cycle": OneCycle,
    }


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise elsewhere.missing(__name__, name, elsewhere.instead(elsewhere.SCHEDULES, name))


def __dir__() -> list[str]:
    return __all__
