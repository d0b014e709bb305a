"""Slopes along directions: by the backward pass, and by difference quotients of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lamella.testing.case import Case
from lamella.testing.comparison import largest
from lamella.testing.layouts import scattered
from lamella.testing.runs import StepResult

__all__ = ["FINER", "LARGE", "MODES", "STEP", "TOLERANCE", "Mode", "Point", "Slope", "Target", "settled", "slope_along"]

STEP = 1e-5  # of difference quotients; times the width of the range where that is less than 1
FINER = 1e-2  # of STEP, for functions that bend too fast for it
TOLERANCE = 1e-6  # relative; the truncation error of central differences is about STEP squared
EPS = float(np.finfo("float64").eps)
Target = int | str  # an input by its place, a parameter by its name


class Mode(NamedTuple):
    """A way to run a layer. Among them are few rows and many, and values at which gates saturate."""

    name: str
    rows: int
    scale: float
    how: dict[str, Any]
    only: int | None = None  # the output that is looked at, if not all


MODES = (
    Mode("training mode", 9, 1.0, {"training": True}),
    Mode("training mode while frozen", 2, 1.0, {"training": True, "frozen": True}),
    Mode("inference mode", 3, 10.0, {"training": False}),
)
LARGE = Mode("training mode for large values", 2, 300.0, {"training": True})  # looked at where all results are finite


class Slope(NamedTuple):
    """A slope by backward_pass and by difference quotients.

    ``noise`` bounds what rounding adds to ``numeric``. ``bend`` is by how much the one-sided quotients differ.
    """

    analytic: float
    numeric: float
    noise: float
    bend: float

    @property
    def error(self) -> float:
        scale = max(abs(self.analytic), abs(self.numeric)) + self.noise / TOLERANCE or 1.0
        return abs(self.analytic - self.numeric) / scale

    @property
    def is_clear(self) -> bool:
        """Whether the function is smooth there, and its slope is larger than the noise."""
        smooth = self.bend <= 1e-3 * abs(self.numeric) + 4 * self.noise
        return smooth and max(map(abs, self[:2])) > 8 * self.noise

    @property
    def ratio(self) -> float | None:
        return self.analytic / self.numeric + 0.0 if abs(self.numeric) > self.noise else None


@np.errstate(over="ignore", invalid="ignore")
def settled(case: Case, mode: Mode, target: Target) -> Slope:
    """A slope at a point without a kink that is larger than its noise, if there is one among eight points."""
    for attempt in range(8):
        slope = _measure(case, mode, target, attempt)
        kinked = slope.bend >= abs(slope.analytic - slope.numeric)  # any slope between both sides may be right
        if slope.error <= TOLERANCE or (slope.is_clear and not kinked):
            break
    if not slope.error <= TOLERANCE:
        finer = _measure(case, mode, target, attempt, FINER)
        if finer.error <= TOLERANCE and abs(finer.numeric) > 1e3 * finer.noise:
            return finer
    return slope


class Point:
    """Inputs, incoming gradients, and the value whose gradient is checked; runs with that value moved."""

    def __init__(self, case: Case, mode: Mode, target: Target, attempt: int = 0, fineness: float = 1.0) -> None:
        self.case, self.mode, self.target = case, mode, target
        self.inputs = case.cast("float64", case.draw(mode.rows, scale=mode.scale, attempt=attempt))
        self.step = STEP * fineness
        if isinstance(target, int) and (case.specs[target].low, case.specs[target].high) != (None, None):
            spec = case.specs[target]
            low = -np.inf if spec.low is None else spec.low
            high = np.inf if spec.high is None else spec.high
            self.step *= min(1.0, high - low)
            inside = np.clip(self.inputs[target], low + self.step, high - self.step)  # with room for a step each way
            self.inputs = tuple(scattered(inside) if k == target else x for k, x in enumerate(self.inputs))
        cotangents = case.cast("float64", case.cotangents(self.inputs))
        self.cotangents = tuple(c if mode.only in (None, k) else 0.0 * c for k, c in enumerate(cotangents))
        self.value = self.inputs[target] if isinstance(target, int) else case.model().parameters[target]

    def run(self, shift: Any = 0.0) -> StepResult:
        case, target, how = self.case, self.target, self.mode.how
        if isinstance(target, int):
            moved = tuple(x + shift if k == target else x for k, x in enumerate(self.inputs))
            return case.step("float64", moved, self.cotangents, **how)
        parameters = case.model().parameters
        parameters[target] = self.value + shift
        try:
            return case.step("float64", self.inputs, self.cotangents, **how)
        finally:
            parameters[target] = self.value

    def rounding(self) -> float:
        """By how much the outputs change, in the direction of the gradients, where float64 rounds its inputs."""
        copies = tuple(map(np.copy, self.inputs))  # a layer may write into what it is given
        here = self.case.step("float64", copies, self.cotangents, **self.mode.how).predictions
        largest_change = 0.0
        for attempt in range(4):
            moved = self.case.nudged(self.inputs, self.cotangents, attempt, "float64", **self.mode.how)
            rows = ((c, moved[f"output {k}"] - y) for k, (c, y) in enumerate(zip(self.cotangents, here, strict=True)))
            change = sum(float(np.vdot(c, d)) for c, d in rows if d.dtype.kind == "f")
            largest_change = max(largest_change, abs(change))
        return largest_change

    def given(self, result: StepResult) -> Any:
        """What backward_pass gave; zeros where no output depends on the input."""
        given = result.dx[self.target] if isinstance(self.target, int) else result.gradients[self.target]
        return np.zeros_like(self.value) if given is None else given

    def shares(self) -> list[Any]:
        """By difference quotients, what every element of every output adds to every element of the gradient.

        One array (elements of the value, *shape of the output) for each floating output.
        """
        rows: list[list[Any]] = []
        for place in range(self.value.size):
            shift = np.zeros(self.value.shape)
            shift.flat[place] = self.step
            below, above = self.run(-shift).predictions, self.run(shift).predictions
            trio = zip(below, above, self.cotangents, strict=True)
            rows.append([c * (b - a) / (2 * self.step) for a, b, c in trio if a.dtype.kind == "f"])
        return [np.stack(column) for column in zip(*rows, strict=True)]


def _measure(case: Case, mode: Mode, target: Target, attempt: int, fineness: float = 1.0) -> Slope:
    point = Point(case, mode, target, attempt, fineness)
    here = point.run()
    given = point.given(here)
    random = _unit(np.random.default_rng([case.seed, 4, attempt]).standard_normal(point.value.shape))
    steepest = _unit(given)  # too, since the slope along a random direction may vanish by chance
    side = 1.0 if np.vdot(random, steepest) > -0.5 else -1.0  # in which the sum of the two is not small
    direction = _unit(random + side * steepest)
    analytic, size = float(np.vdot(given, direction)), float(np.linalg.norm(given)) * largest(point.value)
    least = 1.0 if mode is LARGE else 0.0  # gates saturate at 1, and small outputs are their differences
    slope = slope_along(
        lambda shift: point.run(shift * direction), here, analytic, point.cotangents, point.step, size, least
    )
    if not slope.error <= TOLERANCE:  # large values within the layer, such as scores, round more than outputs do
        slope = slope._replace(noise=max(slope.noise, point.rounding() / point.step))
    return slope


@np.errstate(over="ignore", invalid="ignore")
def slope_along(
    run: Callable[[float], StepResult],
    here: StepResult,
    analytic: float,
    cotangents: Any,
    step: float,
    size: float,
    least: float = 0.0,
) -> Slope:
    """The slope at ``here`` along the direction in which ``run(shift)`` moves.

    The noise is that of rounding: ``size`` is the size of the terms that ``analytic`` sums up, and outputs are taken to
    be rounded as values of at least the size ``least`` are.
    """

    def slope(start: Any, end: Any) -> float:  # the difference comes first, so that a large offset cancels
        outputs = zip(start, end, cotangents, strict=True)
        return sum(float(np.vdot(c, b - a)) for a, b, c in outputs if a.dtype.kind == "f") / step

    below, middle, above = (result.predictions for result in (run(-step), here, run(step)))
    left, right = slope(below, middle), slope(middle, above)
    known = zip(cotangents, middle, strict=True)
    pairs = [(float(np.linalg.norm(c)), largest(y)) for c, y in known if y.dtype.kind == "f"]
    size += sum(incoming * max(y, least) for incoming, y in pairs)
    noise = 16 * EPS * (size / step + sum(incoming for incoming, _ in pairs))
    bend = abs(left - right)
    noise = max(noise, min(bend, 32 * noise))  # more where terms cancel within the layer
    return Slope(analytic, slope(below, above) / 2, noise, bend)


def _unit(a: Any) -> Any:
    return a / (np.linalg.norm(a) or 1.0)
