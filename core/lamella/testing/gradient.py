"""The law that the backward pass is the derivative of the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lamella.engine import StepResult
from lamella.errors import LayerError
from lamella.testing.case import Case
from lamella.testing.comparison import Broken, Skipped, compare, largest, named

__all__ = ["gradient"]

STEP = 1e-5
TOLERANCE = 1e-6


class _Mode(NamedTuple):
    """A way to run a layer. Between them are few and many rows, and numbers that saturate what saturates."""

    name: str
    rows: int
    scale: float
    how: dict[str, Any]


MODES = (
    _Mode("training mode", 9, 1.0, {"training": True}),
    _Mode("training mode while frozen", 2, 1.0, {"training": True, "frozen": True}),
    _Mode("inference mode", 3, 10.0, {"training": False}),
)


def gradient(case: Case) -> str:
    """The backward pass is the derivative of the forward pass, in float64, along directions.

    Inputs and every parameter, with arrays scattered in memory, in training, frozen, and in inference. Where the
    difference quotients from both sides disagree, the function has a kink there, and another point is drawn.
    """
    if case.specimen.gradient == "surrogate":
        raise Skipped(f"declared a surrogate: {case.specimen.reason}")
    if not any(spec.is_float for spec in case.model().output_specs):
        raise Skipped("no output is of floats, so there is no gradient")
    errors = [_examine(case, mode, target) for mode in MODES for target in _targets(case, mode)]
    if not errors:
        raise Skipped("the layer has neither parameters nor floating inputs")
    for mode in MODES:
        _on_demand(case, mode)
    return f"{len(errors)} directions, largest relative error {max(errors):.1e}"


def _targets(case: Case, mode: _Mode) -> Iterator[int | str]:
    """What there is a gradient of: inputs by number, parameters by name."""
    inputs = case.draw(mode.rows, scale=mode.scale)
    yield from (k for k, x in enumerate(inputs) if case.wants[k] and x.size)
    yield from case.step("float64", inputs, case.cotangents(inputs), **mode.how).gradients


def _examine(case: Case, mode: _Mode, target: int | str) -> float:
    """The relative error of one gradient along one direction."""
    for attempt in range(8):
        analytic, numeric, noise, smooth = _measure(case, mode, target, attempt)
        scale = max(abs(analytic), abs(numeric)) + noise / TOLERANCE or 1.0
        error = abs(analytic - numeric) / scale
        if error <= TOLERANCE:
            return error
        if smooth:
            break
    what = f"dx of input {target}" if isinstance(target, int) else f"gradient of {target.rpartition('.')[2]!r}"
    ratio = f", a factor of {analytic / numeric:.4g}" if abs(numeric) > noise else ""
    raise Broken(
        f"{what} in {mode.name}, batch of {mode.rows}: backward_pass gives {analytic:.10g} along a unit direction, "
        f"difference quotients of forward_pass give {numeric:.10g}{ratio}"
    )


def _measure(case: Case, mode: _Mode, target: int | str, attempt: int) -> tuple[float, float, float, bool]:
    """A slope by backward_pass and by difference quotients, what rounding adds to it, and whether it is smooth."""
    inputs = case.cast("float64", case.draw(mode.rows, scale=mode.scale, attempt=attempt))
    cotangents = case.cast("float64", case.cotangents(inputs))
    parameters = case.model().parameters
    value = inputs[target] if isinstance(target, int) else parameters[target]

    def run(shift: Any) -> StepResult:
        if isinstance(target, int):
            moved = tuple(x + shift if k == target else x for k, x in enumerate(inputs))
            return case.step("float64", moved, cotangents, **mode.how)
        parameters[target] = value + shift
        try:
            return case.step("float64", inputs, cotangents, **mode.how)
        finally:
            parameters[target] = value

    def slope(start: Any, end: Any) -> float:  # subtracted number by number: a large offset drowns nothing
        outputs = zip(start, end, cotangents, strict=True)
        return sum(float(np.vdot(c, b - a)) for a, b, c in outputs if a.dtype.kind == "f") / STEP

    result = case.step("float64", inputs, cotangents, **mode.how)
    given = result.dx[target] if isinstance(target, int) else result.gradients[target]
    given = np.zeros_like(value) if given is None else given  # no way leads from the output to this input
    random = _unit(np.random.default_rng([case.seed, 4, attempt]).standard_normal(value.shape))
    direction = _unit(random + _unit(given))  # along the gradient too, lest the slope vanish by chance
    here = result.predictions
    below, above = (run(shift * direction).predictions for shift in (-STEP, STEP))
    left, right = slope(below, here), slope(here, above)
    sizes = [np.linalg.norm(given) * largest(value)]
    sizes += [np.linalg.norm(c) * largest(y) for c, y in zip(cotangents, here, strict=True) if y.dtype.kind == "f"]
    noise = 16 * float(np.finfo("float64").eps * sum(sizes)) / STEP
    numeric = slope(below, above) / 2
    smooth = abs(left - right) <= 1e-3 * abs(numeric) + 4 * noise
    return float(np.vdot(given, direction)), numeric, noise, smooth


def _unit(a: Any) -> Any:
    return a / (np.linalg.norm(a) or 1.0)


def _on_demand(case: Case, mode: _Mode) -> None:
    """What is asked for does not depend on what else is: each input's gradient alone, and none of them."""
    inputs = case.draw(3, scale=mode.scale)
    cotangents = case.cotangents(inputs)
    full = named(case.step("float64", inputs, cotangents, **mode.how))
    single = [tuple(k == j for k in range(len(inputs))) for j, wanted in enumerate(case.wants) if wanted]
    for wants in (*single, (False,) * len(inputs)):
        try:
            alone = named(case.step("float64", inputs, cotangents, wants_dx=wants, **mode.how))
        except LayerError as error:
            raise Broken(f"with ctx.wants_dx = {wants} in {mode.name}: {error}") from error
        what = f"results with ctx.wants_dx = {case.wants} and {wants} in {mode.name}"
        compare({name: full[name] for name in alone}, alone, what, 1e-12)
