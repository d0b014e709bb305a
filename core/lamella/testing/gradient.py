"""The law that the backward pass is the derivative of the forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lamella.engine import StepResult
from lamella.errors import LayerError
from lamella.testing.case import Case, scattered
from lamella.testing.comparison import Broken, Skipped, compare, largest, most, named, own_name, worst_place
from lamella.testing.relation import constant_factor, digits, factor_in_words, same, same_but_moved, where_different

__all__ = ["gradient"]

TINY = 1e-290  # float64 has fewer digits below
STEP = 1e-5  # of difference quotients; less where inputs lie within narrower limits than 1
FINER = 1e-2  # of that, where the function turns too fast for it
TOLERANCE = 1e-6
EPS = float(np.finfo("float64").eps)
MOST_INPUTS = 4  # of which every choice is asked for the gradients
MOST_NUMBERS = 200  # whose slopes are taken one by one, to see what is wrong with a gradient

Target = int | str  # an input by number, a parameter by name


class _Mode(NamedTuple):
    """A way to run a layer. Between them are few and many rows, and numbers that saturate what saturates."""

    name: str
    rows: int
    scale: float
    how: dict[str, Any]
    only: int | None = None  # the output that is looked at, if not all


MODES = (
    _Mode("training mode", 9, 1.0, {"training": True}),
    _Mode("training mode while frozen", 2, 1.0, {"training": True, "frozen": True}),
    _Mode("inference mode", 3, 10.0, {"training": False}),
)
LARGE = _Mode("training mode for large values", 2, 300.0, {"training": True})  # as far as all results are finite


class _Slope(NamedTuple):
    """A slope by backward_pass and by difference quotients, what rounding adds to it, and how far its sides differ."""

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
        """Whether the function is smooth there and its slope more than rounding."""
        smooth = self.bend <= 1e-3 * abs(self.numeric) + 4 * self.noise
        return smooth and max(map(abs, self[:2])) > 8 * self.noise

    @property
    def ratio(self) -> float | None:
        return self.analytic / self.numeric + 0.0 if abs(self.numeric) > self.noise else None


def gradient(case: Case) -> str:
    """The backward pass is the derivative of the forward pass, in float64, along directions.

    Inputs and every parameter, with arrays scattered in memory, in training, frozen, and in inference. Where the
    difference quotients from both sides disagree, the function has a kink there, and another point is drawn.
    """
    case.examine(_uses)
    smooth = [k for k, spec in enumerate(case.model().output_specs) if spec.is_float]
    if not smooth:
        raise Skipped("no output is of floats, so there is no gradient")
    if case.specimen.gradient == "surrogate":
        for mode in MODES:
            case.examine(_on_demand, mode)
        raise Skipped(f"declared a surrogate: {case.specimen.reason}")
    modes: tuple[_Mode, ...] = MODES
    if len(smooth) > 1:  # a small output's share must not drown in that of a large one
        modes += tuple(MODES[0]._replace(name=f"training mode, of output {k} alone", only=k) for k in smooth)
    inputs = case.draw(2)
    targets: list[Target] = [k for k, x in enumerate(inputs) if case.wants[k] and x.size]
    targets += list(case.step("float64", inputs, case.cotangents(inputs)).gradients)
    errors = [case.examine(_examine, target, modes) for target in targets]
    if not case.findings:
        errors += [case.examine(_examine, target, (LARGE,)) for target in targets]
    if not case.findings:
        for sizes in case.other_sizes:
            errors += [case.examine(_at_sizes, sizes, target) for target in targets]
        for zero in (False, True):  # where equal numbers are wrong, zeros are too
            errors += [case.examine(_at_ties, mode, zero) for mode in MODES if any(case.wants) and not case.findings]
    if not targets:
        raise Skipped("the layer has neither parameters nor floating inputs")
    if not case.findings:  # else results with and without a wrong gradient say nothing new
        for mode in MODES:
            case.examine(_on_demand, mode)
            case.examine(_linear, mode)
    return f"{len(targets)} gradient{'s' * (len(targets) > 1)} right, largest relative error {most(errors):.1e}"


def _uses(case: Case) -> None:
    """Every parameter and state changes something: what no output ever depends on is no parameter.

    Not-a-number gets through where other values leave no mark, as in the softmax of a single number.
    """
    before, everything = _outputs(case), _everything(case)
    updated = case.step("float64", inputs := case.draw(3), case.cotangents(inputs)).updates
    for name, value in dict(case.model().state).items():
        if value.size and name not in updated and not _changes(case, _everything, everything, name, np.nan * value):
            own = own_name(name)
            raise Broken(
                f"state {own!r} is declared, but no step updates it, and no output depends on it",
                subject=f"state {own!r}",
                cause=f"ctx.update({own}=...) and ctx.state.{own} are missing. Use it, or do not declare it",
            )
    for name, value in case.values.items():
        others = (1.5 * value + 0.7, np.nan * value)
        if value.size and not any(_changes(case, _outputs, before, name, other) for other in others):
            own = own_name(name)
            raise Broken(
                f"parameter {own!r} is declared, but no output depends on it, in training or in inference",
                subject=f"parameter {own!r}",
                cause=f"ctx.params.{own} is not used in forward_pass. Use it, or do not declare it",
            )


def _changes(case: Case, look: Callable[[Case], list[Any]], before: list[Any], name: str, other: Any) -> bool:
    """Whether another value of a parameter or state changes what ``look`` sees; the old one is put back."""
    model = case.model()
    arrays = model.parameters if name in model.parameters else model.state
    old = arrays[name]
    arrays[name] = other
    try:
        return any(a.tobytes() != b.tobytes() for a, b in zip(before, look(case), strict=True))
    finally:
        arrays[name] = old


def _outputs(case: Case) -> list[Any]:
    return [y for result in _steps(case) for y in result.predictions]


def _everything(case: Case) -> list[Any]:
    """All outputs and all gradients."""
    return [a for result in _steps(case) for name, a in named(result).items() if not name.startswith("update")]


def _steps(case: Case) -> list[StepResult]:
    drawn = [(mode, case.draw(mode.rows, scale=mode.scale)) for mode in MODES]
    return [
        case.step("float64", inputs, case.cotangents(inputs), wants_dx=case.wants, **mode.how) for mode, inputs in drawn
    ]


def _examine(case: Case, target: Target, modes: tuple[_Mode, ...] = MODES) -> float:
    """The largest relative error of one gradient in all modes."""
    with np.errstate(over="ignore", invalid="ignore"):
        slopes = [(mode, _settled(case, mode, target)) for mode in modes if _exists(mode, target)]
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
        diagnose=lambda origin: _diagnosis(origin, case, first, target) | _forgotten(origin, first, target, right),
    )


def _at_sizes(case: Case, sizes: dict[str, int], target: Target) -> float:
    """The relative error of one gradient at other sizes of axes known by name."""
    case = case.resized_to(sizes)
    slope = _settled(case, MODES[0], target)
    if not slope.error <= TOLERANCE:
        axes = " and ".join(f"axis {name!r} of size {size}" for name, size in sizes.items())
        raise Broken(
            f"{title(target)} with {axes}, and right at other sizes: backward_pass gives {slope.analytic:.10g} along "
            f"a unit direction, difference quotients of forward_pass give {slope.numeric:.10g}",
            subject=title(target),
            inputs=case.draw(MODES[0].rows),
            diagnose=lambda origin: _diagnosis(origin.resized_to(sizes), case, MODES[0], target),
        )
    return slope.error


def _at_ties(case: Case, mode: _Mode, zero: bool) -> float:
    """The relative error of all dx together where numbers are equal, and stay equal: of zeros, or of all others.

    Of two greatest numbers each may get all of the gradient, or half of it, or none, but not both all of it. Along a
    way on which equal numbers move alike most functions are smooth; the others are left out.
    """
    for attempt in range(4):
        inputs = case.cast("float64", case.draw(mode.rows, scale=None, attempt=attempt))
        cotangents = case.cast("float64", case.cotangents(inputs))
        wanted = [x for x, yes in zip(inputs, case.wants, strict=True) if yes]
        values = np.unique(np.concatenate([x.ravel() for x in wanted]))
        pace = np.random.default_rng([case.seed, 6, attempt]).uniform(0.5, 1.5, len(values))
        pace *= (values == 0.0) == zero
        ways = tuple(pace[np.searchsorted(values, x)] for x in wanted)

        def run(shift: float, inputs: Any = inputs, cotangents: Any = cotangents, ways: Any = ways) -> StepResult:
            left = iter(ways)
            moved = (x + shift * next(left) if yes else x for x, yes in zip(inputs, case.wants, strict=True))
            return case.step("float64", tuple(moved), cotangents, **mode.how)

        here = run(0.0)
        pairs = zip((dx for dx, yes in zip(here.dx, case.wants, strict=True) if yes), ways, strict=True)
        given = [(dx, way) for dx, way in pairs if dx is not None]  # None: no way leads there from any output
        analytic = sum(float(np.vdot(dx, way)) for dx, way in given)
        size = sum(float(np.sum(np.abs(dx))) for dx, _ in given) * max(map(largest, wanted))
        slope = _along(run, here, analytic, cotangents, STEP, size)
        if slope.is_clear and np.isfinite(slope[:2]).all():
            break
    else:
        return 0.0
    if not slope.error <= TOLERANCE:  # the slope itself may have a kink there, or turn too fast
        coarse, slope = slope, _along(run, here, analytic, cotangents, STEP * FINER, size)
        if abs(slope.numeric - coarse.numeric) > 1e-3 * abs(slope.numeric) + slope.noise:
            return 0.0
    if not slope.error <= TOLERANCE and abs(slope.analytic - slope.numeric) > slope.bend:
        where = "at zeros" if zero else "where numbers are equal"
        cause = (
            "a case of its own for 0, where the slope is what it is beside it"
            if zero
            else "each of several equal numbers gets the whole gradient, as where a mask says x == maximum; give it to "
            "the first of them, or divide it by their count"
        )
        raise Broken(
            f"dx {where}, in {mode.name}, right elsewhere: backward_pass gives {slope.analytic:.10g} along a way on "
            f"which equal numbers move alike, difference quotients of forward_pass give {slope.numeric:.10g}",
            subject=f"dx {where}",
            inputs=inputs,
            cause=cause,
        )
    return slope.error


def title(target: Target) -> str:
    """What messages call a gradient."""
    return f"dx of input {target}" if isinstance(target, int) else f"gradient of {own_name(target)!r}"


def _exists(mode: _Mode, target: Target) -> bool:
    """Whether there is such a gradient: frozen layers give none of their parameters."""
    return isinstance(target, int) or not mode.how.get("frozen")


def _settled(case: Case, mode: _Mode, target: Target) -> _Slope:
    """A slope at a point without a kink, and not all rounding, if there is one among eight."""
    for attempt in range(8):
        slope = _measure(case, mode, target, attempt)
        if slope.error <= TOLERANCE or slope.is_clear:
            break
    if not slope.error <= TOLERANCE:
        finer = _measure(case, mode, target, attempt, FINER)
        if finer.error <= TOLERANCE and abs(finer.numeric) > 1e3 * finer.noise:
            return finer
    return slope


class _Point:
    """Inputs, incoming gradients and the value that a gradient is of; what comes out if that value moves."""

    def __init__(self, case: Case, mode: _Mode, target: Target, attempt: int = 0, fineness: float = 1.0) -> None:
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

    def given(self, result: StepResult) -> Any:
        """What backward_pass gave; zeros where no way leads from the output to the input."""
        given = result.dx[self.target] if isinstance(self.target, int) else result.gradients[self.target]
        return np.zeros_like(self.value) if given is None else given

    def shares(self) -> list[Any]:
        """By difference quotients, the share of every number of every output in every number of the gradient.

        One array (numbers of the value, *shape of the output) for each floating output.
        """
        rows: list[list[Any]] = []
        for place in range(self.value.size):
            shift = np.zeros(self.value.shape)
            shift.flat[place] = self.step
            below, above = self.run(-shift).predictions, self.run(shift).predictions
            trio = zip(below, above, self.cotangents, strict=True)
            rows.append([c * (b - a) / (2 * self.step) for a, b, c in trio if a.dtype.kind == "f"])
        return [np.stack(column) for column in zip(*rows, strict=True)]


def _measure(case: Case, mode: _Mode, target: Target, attempt: int, fineness: float = 1.0) -> _Slope:
    point = _Point(case, mode, target, attempt, fineness)
    here = point.run()
    given = point.given(here)
    random = _unit(np.random.default_rng([case.seed, 4, attempt]).standard_normal(point.value.shape))
    along = _unit(given)  # too, lest the slope vanish by chance; the two may point to opposite sides
    direction = _unit(random + along if np.vdot(random, along) > -0.5 else random - along)
    analytic, size = float(np.vdot(given, direction)), float(np.linalg.norm(given)) * largest(point.value)
    least = 1.0 if mode is LARGE else 0.0  # gates saturate at 1, and small outputs are their differences
    return _along(lambda shift: point.run(shift * direction), here, analytic, point.cotangents, point.step, size, least)


def _along(
    run: Callable[[float], StepResult],
    here: StepResult,
    analytic: float,
    cotangents: Any,
    step: float,
    size: float,
    least: float = 0.0,
) -> _Slope:
    """The slope at ``here`` on a way that ``run`` goes along.

    ``size`` is that of the terms of ``analytic``; outputs are rounded as numbers of size ``least`` are, if not more.
    """

    def slope(start: Any, end: Any) -> float:  # subtracted number by number: a large offset drowns nothing
        outputs = zip(start, end, cotangents, strict=True)
        return sum(float(np.vdot(c, b - a)) for a, b, c in outputs if a.dtype.kind == "f") / step

    below, middle, above = (result.predictions for result in (run(-step), here, run(step)))
    left, right = slope(below, middle), slope(middle, above)
    known = zip(cotangents, middle, strict=True)
    pairs = [(float(np.linalg.norm(c)), largest(y)) for c, y in known if y.dtype.kind == "f"]
    size += sum(incoming * max(y, least) for incoming, y in pairs)
    noise = 16 * EPS * (size / step + sum(incoming for incoming, _ in pairs))
    bend = abs(left - right)
    noise = max(noise, min(bend, 32 * noise))  # what cancels within the layer adds to it
    return _Slope(analytic, slope(below, above) / 2, noise, bend)


def _unit(a: Any) -> Any:
    return a / (np.linalg.norm(a) or 1.0)


def _on_demand(case: Case, mode: _Mode) -> None:
    """What is asked for does not depend on what else is: any choice of the inputs' gradients, and none of them."""
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


def _linear(case: Case, mode: _Mode) -> None:
    """Twice the incoming gradient gives twice the gradients: exactly, for powers of two, and nothing gives nothing."""
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


# What is wrong with a wrong gradient


def _diagnosis(origin: Case, case: Case, mode: _Mode, target: Target) -> dict[str, Any]:
    """The number that is most wrong in the smallest case, and what explains the gradient as it was seen first."""
    small, first = _Point(case, mode, target), _Point(origin, mode, target)
    found: dict[str, Any] = {}
    if small.value.size <= MOST_NUMBERS:
        found = worst_place(small.given(small.run()), _sum(small.shares(), small.value.shape))
    ratios = [_settled(one, mode, target).ratio for one in (case, origin)]
    if first.value.size > MOST_NUMBERS:  # its slopes along one direction must do
        return {"cause": _factor(ratios, small, first), **found}
    given, shares = first.given(first.run()), first.shares()
    right = _sum(shares, given.shape)
    factor = constant_factor(given, right)
    if factor is None:
        cause = _relation(first, given, right, shares)
    elif factor == 0.0:
        cause = "it is 0; was it forgotten, or is its sum empty?"
    else:
        cause = _factor([ratios[0], factor], small, first)
    return {"cause": cause, **found}


def _forgotten(origin: Case, mode: _Mode, target: Target, right: list[str]) -> dict[str, Any]:
    """Whether a gradient that needs totals over the batch lacks them: forward_pass yields, backward_pass does not."""
    leaves = origin.model().program.leaves
    if not any(leaf.forward_yields and not leaf.backward_yields for leaf in leaves) or MODES[2].name not in right:
        return {}
    point = _Point(origin, mode, target)
    if not isinstance(target, int) or point.value.size > MOST_NUMBERS:
        return {}
    rows = np.indices(point.value.shape)[0].reshape(-1)
    for share in point.shares():
        others = rows[:, None] != np.arange(share.shape[1])
        if np.any(np.abs(share[others]) > 1e-6 * np.max(np.abs(share))):
            return {
                "cause": "forward_pass yields totals, so dx has a term through them, from every row of the batch: "
                "yield in backward_pass too"
            }
    return {}


def _sum(shares: list[Any], shape: tuple[int, ...]) -> Any:
    """The gradient that is made of the shares of all outputs."""
    total: Any = sum(share.reshape(len(share), -1).sum(axis=1) for share in shares)
    return total.reshape(shape)


def _factor(ratios: list[float | None], point: _Point, origin: _Point) -> str:
    """What a constant factor is, if it is one: it must fit the small case and the one seen first."""
    small, first = ratios
    if small is None or first is None:
        return ""

    def sizes(at: _Point) -> dict[str, int]:
        arrays = {f"input {k}": x.shape for k, x in enumerate(at.inputs)}
        arrays |= {f"output {k}": c.shape for k, c in enumerate(at.cotangents)}
        found = {"the batch size": len(at.inputs[0])}
        for name, shape in arrays.items():
            found |= {f"the size of axis {axis} of {name}": n for axis, n in enumerate(shape) if axis}
            found |= {f"the numbers in each sample of {name}": int(np.prod(shape[1:]))} if len(shape) > 2 else {}
            found |= {f"the numbers of {name}": int(np.prod(shape))}
        return found

    return factor_in_words((small, first), (sizes(point), sizes(origin)))


def _relation(point: _Point, given: Any, right: Any, shares: list[Any]) -> str:
    """What the gradient is in truth, where it is no multiple of the right one."""
    if words := same_but_moved(given, right):
        return words
    for twin in _twins(point, given):
        return f"it is the {title(twin)}: are the two swapped?"
    for k, share in enumerate(shares):
        if words := _partial_sum(point, given, share, f"output {k}" if len(shares) > 1 else "the output"):
            return words
    if isinstance(point.target, int) and any(
        c.shape == given.shape and same(given, c) for c in point.cotangents if c.dtype.kind == "f"
    ):
        return "it is the incoming gradient unchanged; the derivative of the formula itself is missing"
    if len(shares) == 1 and _is_forward_map(point, given, shares[0]):
        return (
            "backward_pass does to dy what forward_pass does to x; it must do the transposed map: sum up where that "
            "spreads, and shift the other way"
        )
    if len(shares) > 1:
        for k, share in enumerate(shares):
            if same(given, _sum([share], given.shape)):
                return f"it counts output {k} only; the gradients of all outputs add up"
    return where_different(given, right, point.value, own=isinstance(point.target, int))


def _is_forward_map(point: _Point, given: Any, share: Any) -> bool:
    """Whether a gradient is J dy, where it should be the transposed J times dy."""
    dy = point.cotangents[0]
    if not isinstance(point.target, int) or dy.shape != given.shape or not np.all(dy):
        return False
    slopes = share.reshape(given.size, -1) / dy.reshape(1, -1)  # of every output by every input
    return same(given, (slopes.T @ dy.reshape(-1)).reshape(given.shape))


def _twins(point: _Point, given: Any) -> list[Target]:
    """Other gradients of the layer that equal what was given for this one."""
    result = point.run()
    others: list[Target] = [k for k in range(len(point.inputs)) if point.case.wants[k]]
    others += list(result.gradients)
    found = []
    for other in others:
        twin = _Point(point.case, point.mode, other)
        if other != point.target and twin.value.shape == given.shape and same(given, _sum(twin.shares(), given.shape)):
            found.append(other)
    return found


def _partial_sum(point: _Point, given: Any, share: Any, output: str) -> str:
    """Which terms of the sum over the outputs the gradient holds, if it holds only some."""
    if not share.size:
        return ""
    for axis in range(1, share.ndim):
        positions = "rows of the batch" if axis == 1 else f"positions along axis {axis - 1} of {output}"
        for place, word in ((-1, "last"), (0, "first")):
            terms = np.take(share, [place], axis=axis)
            if share.shape[axis] > 1 and same(given, _sum([terms], given.shape)):
                return f"it counts only the {word} of the {positions}; every one adds its term"
        if not isinstance(point.target, int) or axis > given.ndim or given.shape[axis - 1] != share.shape[axis]:
            continue
        here = np.indices(given.shape)[axis - 1].reshape(-1)  # where each number of the input stands along the axis
        shape = (-1, *(1 for _ in range(axis - 1)), share.shape[axis], *(1 for _ in range(share.ndim - axis - 1)))
        own = (here[:, None] == np.arange(share.shape[axis])).reshape(shape)
        if same(given, _sum([share * own], given.shape)):
            along = "row of the batch" if axis == 1 else f"position along axis {axis - 1}"
            return (
                f"it counts what each {along} does to the output at the same place only. Missing are its effects on "
                "other places: on later steps of a recurrence, or through a sum or a maximum along that axis"
            )
    return ""
