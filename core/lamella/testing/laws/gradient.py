"""The law that the backward pass is the derivative of the forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from lamella.errors import LayerError, counted
from lamella.testing.case import Case
from lamella.testing.comparison import Broken, Skipped, compare, largest, most, named
from lamella.testing.diagnosis.gradients import diagnosis_of_gradient, title
from lamella.testing.diagnosis.relation import digits
from lamella.testing.laws.usage import everything_is_used
from lamella.testing.runs import StepResult
from lamella.testing.slopes import FINER, LARGE, MODES, STEP, TOLERANCE, Mode, Slope, Target, settled, slope_along

__all__ = ["gradient"]

TINY = 1e-290  # below it, float64 has fewer digits
EACH_GETS_ALL = (
    "each of several equal values gets the whole gradient, as where a mask says x == maximum; give it to the first of "
    "them, or divide it by their count"
)
MOST_INPUTS = 4  # up to which every choice of wants_dx is checked


def gradient(case: Case) -> str:
    """The backward pass is the derivative of the forward pass, in float64, along directions.

    Inputs and every parameter, with arrays scattered in memory, in training, frozen, and in inference. Where the
    difference quotients from both sides disagree, the function has a kink there, and another point is drawn.
    """
    case.check(everything_is_used)
    smooth = [k for k, spec in enumerate(case.model().output_specs) if spec.is_float]
    if not smooth:
        raise Skipped("no output is of floats, so there is no gradient")
    if case.specimen.gradient == "surrogate":
        for mode in MODES:
            case.check(_on_demand, mode)
        raise Skipped(f"declared a surrogate: {case.specimen.reason}")
    modes: tuple[Mode, ...] = MODES
    if len(smooth) > 1:  # else the gradient of a small output is lost beside that of a large one
        modes += tuple(MODES[0]._replace(name=f"training mode, of output {k} alone", only=k) for k in smooth)
    inputs = case.draw(2)
    targets: list[Target] = [k for k, x in enumerate(inputs) if case.wants[k] and x.size]
    targets += list(case.step("float64", inputs, case.cotangents(inputs)).gradients)
    errors = [case.check(_right_in_modes, target, modes) for target in targets]
    if not case.failed:
        errors += [case.check(_right_in_modes, target, (LARGE,)) for target in targets]
    if not case.failed:
        for sizes in case.other_sizes:
            errors += [case.check(_at_sizes, sizes, target) for target in targets]
        for zero in (False, True):  # where equal values fail, zeros fail too
            errors += [case.check(_at_ties, mode, zero) for mode in MODES if any(case.wants) and not case.failed]
        names = [target for target in targets if isinstance(target, str)]
        for zero, name in itertools.product((True, False), () if case.failed else names):
            if not case.failed:
                errors.append(case.check(_at_tied_parameters, MODES[0], name, zero))
    if not targets:
        raise Skipped("the layer has neither parameters nor floating inputs")
    if not case.failed:  # else they fail for the same reason
        for mode in MODES:
            case.check(_on_demand, mode)
            case.check(_linear, mode)
    told = counted(len(targets), "gradient")
    return f"{told} and difference quotients agree, largest relative error {most(errors):.1e}"


def _right_in_modes(case: Case, target: Target, modes: tuple[Mode, ...] = MODES) -> float:
    """The largest relative error of one gradient in all modes."""
    slopes = [(mode, settled(case, mode, target)) for mode in modes if _exists(mode, target)]
    slopes = [pair for pair in slopes if pair[0] is not LARGE or np.isfinite(pair[1][:2]).all()]
    wrong = [(mode, slope) for mode, slope in slopes if not slope.error <= TOLERANCE]
    if not wrong:
        return max((slope.error for _, slope in slopes), default=0.0)
    first, slope = wrong[0]
    right = [mode.name for mode, slope in slopes if slope.error <= TOLERANCE]
    inputs = case.draw(first.rows, scale=first.scale)
    raise Broken(
        f"{title(target)} in {first.name}{f' (right in {right[0]})' if right else ''}, batch of {len(inputs[0])}: "
        f"backward_pass gives {slope.analytic:.10g} along a unit direction, difference quotients of forward_pass give "
        f"{slope.numeric:.10g}{'' if slope.ratio is None else f', a factor of {digits(slope.ratio)}'}",
        subject=title(target),
        inputs=inputs,
        diagnose=lambda origin: diagnosis_of_gradient(origin, case, first, target, right),
    )


def _at_sizes(case: Case, sizes: dict[str, int], target: Target) -> float:
    """The relative error of one gradient at other sizes of axes known by name."""
    case = case.resized_to(sizes)
    slope = settled(case, MODES[0], target)
    if not slope.error <= TOLERANCE:
        axes = " and ".join(f"axis {name!r} of size {size}" for name, size in sizes.items())
        raise Broken(
            f"{title(target)} with {axes}, and right at other sizes: backward_pass gives {slope.analytic:.10g} along "
            f"a unit direction, difference quotients of forward_pass give {slope.numeric:.10g}",
            subject=title(target),
            inputs=case.draw(MODES[0].rows),
            diagnose=lambda origin: diagnosis_of_gradient(origin.resized_to(sizes), case, MODES[0], target),
        )
    return slope.error


def _exists(mode: Mode, target: Target) -> bool:
    """Whether there is such a gradient: frozen layers give none of their parameters."""
    return isinstance(target, int) or not mode.how.get("frozen")


def _at_ties(case: Case, mode: Mode, zero: bool) -> float:
    """The relative error of all dx together where values are equal: of zeros, or of all other values.

    Equal values move alike, so that they stay equal. Along such directions most functions are smooth; where one is
    not, it is left out. Of two equal maxima, either may get the whole gradient, or each a half, but not both all of it.
    """
    slope: Slope | None = None
    for attempt in range(4):
        inputs = case.cast("float64", case.draw(mode.rows, scale=None, attempt=attempt))
        cotangents = case.cast("float64", case.cotangents(inputs))
        wanted = [x for x, yes in zip(inputs, case.wants, strict=True) if yes]
        ways = _alike(case, wanted, attempt, lambda values: (values == 0.0) == zero)

        def run(shift: float, inputs: Any = inputs, cotangents: Any = cotangents, ways: Any = ways) -> StepResult:
            left = iter(ways)
            moved = (x + shift * next(left) if yes else x for x, yes in zip(inputs, case.wants, strict=True))
            return case.step("float64", tuple(moved), cotangents, **mode.how)

        here = run(0.0)
        pairs = zip((dx for dx, yes in zip(here.dx, case.wants, strict=True) if yes), ways, strict=True)
        given = [(dx, way) for dx, way in pairs if dx is not None]  # None: no output depends on it
        analytic = sum(float(np.vdot(dx, way)) for dx, way in given)
        size = sum(float(np.sum(np.abs(dx))) for dx, _ in given) * max(map(largest, wanted))
        slope = _where_smooth(run, here, analytic, cotangents, size)
        if slope is not None:
            break
    if slope is None:
        return 0.0
    if not slope.error <= TOLERANCE:
        where = "at zeros" if zero else "where values are equal"
        cause = "a case of its own for 0, where the slope is what it is beside it" if zero else EACH_GETS_ALL
        raise Broken(
            f"dx {where}, in {mode.name}, right elsewhere: backward_pass gives {slope.analytic:.10g} along a direction "
            f"in which equal values move alike, difference quotients of forward_pass give {slope.numeric:.10g}",
            subject=f"dx {where}",
            inputs=inputs,
            cause=cause,
        )
    return slope.error


def _at_tied_parameters(case: Case, mode: Mode, name: str, zero: bool) -> float:
    """The relative error of a parameter's gradient at its initial values, for inputs of zeros or with equal values.

    Initial values are often equal, as those of a bias. Equal ones move alike, as inputs do in `_at_ties`.
    """
    inputs = case.cast("float64", case.constant(mode.rows, 0.0) if zero else case.draw(mode.rows, scale=None))
    cotangents = case.cast("float64", case.cotangents(inputs))
    parameters = case.model().parameters
    before, initial = dict(parameters), case.initial_values
    (way,) = _alike(case, [initial[name]], 0, np.ones_like)

    def run(shift: float) -> StepResult:
        parameters[name] = initial[name] + shift * way
        return case.step("float64", inputs, cotangents, **mode.how)

    try:
        for own, value in initial.items():
            parameters[own] = value
        here = run(0.0)
        given = here.gradients[name]
        size = float(np.sum(np.abs(given))) * largest(initial[name])
        slope = _where_smooth(run, here, float(np.vdot(given, way)), cotangents, size)
        if slope is not None and not slope.error <= TOLERANCE:  # what is large may cancel within the layer
            rounding = max(_rounding_of_gradient(case, mode, name, inputs, cotangents, attempt) for attempt in range(3))
            slope = slope._replace(noise=max(slope.noise, rounding))
    finally:
        for own, value in before.items():
            parameters[own] = value
    if slope is None:
        return 0.0
    if not slope.error <= TOLERANCE:
        where = "zeros" if zero else "equal values"
        raise Broken(
            f"{title(name)} at initial values and inputs of {where}, in {mode.name}, right elsewhere: backward_pass "
            f"gives {slope.analytic:.10g} along a direction in which its equal values move alike, difference "
            f"quotients of forward_pass give {slope.numeric:.10g}",
            subject=f"{title(name)} at initial values and inputs of {where}",
            inputs=inputs,
            values=initial,
            cause=EACH_GETS_ALL,
        )
    return slope.error


def _rounding_of_gradient(case: Case, mode: Mode, name: str, inputs: Any, cotangents: Any, attempt: int) -> float:
    """By how much a parameter's gradient may be off where incoming gradients are, with equal values left equal."""
    rng = np.random.default_rng([case.seed, 7, attempt])
    moved = tuple(c + np.spacing(np.abs(c)) * rng.choice([-1.0, 1.0], c.shape) for c in cotangents)
    steps = [case.step("float64", inputs, one, **mode.how).gradients[name] for one in (cotangents, moved)]
    return 16.0 * float(np.sum(np.abs(steps[1] - steps[0])))


def _alike(case: Case, arrays: list[Any], attempt: int, moves: Callable[[Any], Any]) -> tuple[Any, ...]:
    """A direction for each array in which equal values, of all arrays, move alike; only those that ``moves`` names."""
    values = np.unique(np.concatenate([a.ravel() for a in arrays]))
    pace = np.random.default_rng([case.seed, 6, attempt]).uniform(0.5, 1.5, len(values)) * moves(values)
    return tuple(pace[np.searchsorted(values, a)] for a in arrays)


@np.errstate(over="ignore", invalid="ignore")
def _where_smooth(
    run: Callable[[float], StepResult], here: StepResult, analytic: float, cotangents: Any, size: float
) -> Slope | None:
    """The slope along the direction in which ``run(shift)`` moves, None where it has a kink or is lost in noise."""
    slope = slope_along(run, here, analytic, cotangents, STEP, size)
    if not (slope.is_clear and np.isfinite(slope[:2]).all()):
        return None
    if not slope.error <= TOLERANCE:  # the slope may have a kink there, or change too fast
        coarse, slope = slope, slope_along(run, here, analytic, cotangents, STEP * FINER, size)
        if abs(slope.numeric - coarse.numeric) > 1e-3 * abs(slope.numeric) + slope.noise:
            return None
    is_between = abs(slope.analytic - slope.numeric) <= slope.bend  # any slope between both sides may be right
    return None if is_between and not slope.error <= TOLERANCE else slope


def _on_demand(case: Case, mode: Mode) -> None:
    """A gradient does not depend on which others ``ctx.wants_dx`` asks for: any choice of them, and none."""
    inputs = case.draw(3, scale=mode.scale)
    cotangents = case.cotangents(inputs)
    full = named(case.step("float64", inputs, cotangents, **mode.how))
    wanted = [k for k, yes in enumerate(case.wants) if yes]
    counts = range(len(wanted)) if len(wanted) <= MOST_INPUTS else (0, 1, len(wanted) - 1)
    for some in itertools.chain.from_iterable(itertools.combinations(wanted, count) for count in counts):
        wants = tuple(k in some for k in range(len(inputs)))
        try:
            alone = named(case.step("float64", inputs, cotangents, wants_dx=wants, **mode.how))
        except LayerError as error:
            raise Broken(f"with ctx.wants_dx = {wants} in {mode.name}: {error}") from error
        what = f"results with ctx.wants_dx = {case.wants} and {wants} in {mode.name}"
        cause = "an if ctx.wants_dx[k] that covers more than the gradient of input k"
        compare({name: full[name] for name in alone}, alone, what, 1e-12, inputs=inputs, cause=cause)


def _linear(case: Case, mode: Mode) -> None:
    """Gradients are linear in dy: exactly so for factors that are powers of two, and for 0."""
    inputs = case.draw(3, scale=mode.scale)
    cotangents = case.cast("float64", case.cotangents(inputs))
    results = {}
    for factor in (1.0, 2.0**20, 2.0**-20, 0.0):
        found = named(case.step("float64", inputs, tuple(factor * c for c in cotangents), **mode.how))
        results[factor] = {name: g for name, g in found.items() if not name.startswith(("output", "update"))}
    for factor in (2.0**20, 2.0**-20, 0.0):
        compare(
            {name: factor * gradient for name, gradient in results[1.0].items()},
            results[factor],
            f"{factor:.3g} times the gradients, and those of {factor:.3g} times dy, in {mode.name},",
            1e-12,
            inputs=inputs,
            cause="backward_pass is not linear in dy: it limits it, cuts off what is small, or adds a constant. Clip "
            "gradients by fit(..., clip_norm=...) or clip_value",
            sides=("the gradient times the factor", "that of dy times the factor"),
            rounding=lambda: dict.fromkeys(results[1.0], TINY),
        )
