"""The law that results are finite where inputs are, within the range that their specs declare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lamella.testing.case import Case
from lamella.testing.comparison import Broken, Skipped, named
from lamella.testing.drawing import pattern

__all__ = ["finite"]

Inputs = tuple[Any, ...]

LARGE = {"values up to 100": 30.0, "values up to 1e3": 300.0}  # their deviations; functions such as exp overflow

SAY_SO = (
    "If the inputs lie outside of what it takes, say so in their spec, as in ArraySpec(('N', 4), low=0.1, high=100.0); "
    "if the result is meant, say why in the specimen: not_finite='...'"
)
CAUSES = {
    "output": "a division by 0, or the log or root of 0 or less; make the divisor safe first, as in "
    "x / xp.maximum(norm, 1e-7)",
    "gradient": "0/0, or 0 times infinity, as in the slope of sqrt(x) or of a norm at 0, or in log(x) under a where "
    "that leaves it out; make the divisor safe first",
}


def finite(case: Case) -> str:
    """Outputs, gradients and updates are finite: for zeros, equal values, values that sum to 0, and random ones."""
    if reason := case.specimen.not_finite:
        raise Skipped(f"declared not finite: {reason}")
    labels = list(_examples(case))
    for training in (True, False):
        for label in labels:
            case.check(_is_finite, label, training)
    if not case.failed:
        for label in LARGE:
            case.check(_gradients_exist, label)
    return f"all results for {len(labels)} kinds of inputs are finite"


def _examples(case: Case) -> dict[str, Callable[[], Inputs]]:
    """What draws the inputs, by a description of them."""
    specs = case.specimen.inputs
    floats = [k for k, spec in enumerate(specs) if spec.is_float]
    free = [k for k in floats if case.is_free(k)]

    def filled(value: Callable[[Any], Any], places: list[int] = free) -> Callable[[], Inputs]:
        return lambda: case.filled(2, lambda raw: {k: value(raw[k]) for k in places})

    found: dict[str, Callable[[], Inputs]] = {}
    if free:
        found["zeros"] = filled(np.zeros_like)
        found["equal values"] = filled(np.ones_like)
        found["values that sum to 0"] = filled(lambda x: pattern(x.shape))
        found["a row of zeros beside another"] = filled(lambda x: np.concatenate([0.0 * x[:1], x[1:]]))
        found["multiples of 0.5"] = lambda: case.draw(3, scale=None)
    for k in floats if len(floats) > 1 else []:
        found[f"zeros in input {k}"] = filled(np.zeros_like, [k])
    alike = [k for k in floats if specs[k].shape == specs[floats[-1]].shape]
    if len(alike) > 1:
        found["equal inputs"] = lambda: case.filled(2, lambda raw: dict.fromkeys(alike, raw[alike[-1]]))
    for words, limit, side in (("lowest", -np.inf, "low"), ("highest", np.inf, "high")):
        bounded = [k for k in free if getattr(specs[k], side) is not None]
        if bounded:
            found[f"the {words} values"] = filled(partial(np.full_like, fill_value=limit), bounded)
    found["random values"] = lambda: case.draw(3)
    return found


def _is_finite(case: Case, label: str, training: bool) -> None:
    inputs = _examples(case)[label]()
    results = named(case.step("float32", inputs, case.cotangents(inputs), training=training))
    where = f"{label}, in {'training' if training else 'inference'} mode"
    for name, value in results.items():
        wrong = np.argwhere(~np.isfinite(value))
        if len(wrong):
            raise _not_finite(name, where, value, wrong[0], inputs)


def _gradients_exist(case: Case, label: str) -> None:
    """Large values may overflow; but where all outputs are finite in float64, gradients are not NaN."""
    inputs = case.draw(3, scale=LARGE[label])
    for training in (True, False):
        results = named(case.step("float64", inputs, case.cotangents(inputs), training=training))
        if not all(np.isfinite(value).all() for name, value in results.items() if name.startswith("output")):
            continue
        for name, value in results.items():
            wrong = np.argwhere(np.isnan(value))
            if len(wrong) and not name.startswith("update"):
                raise _not_finite(name, label, value, wrong[0], inputs)


def _not_finite(name: str, where: str, value: Any, place: Any, inputs: Inputs) -> Broken:
    slope = not name.startswith(("output", "update"))
    return Broken(
        f"{name} for {where}: {value[tuple(place)]} at {place.tolist()}, where a finite value is expected",
        subject=name,
        inputs=inputs,
        cause=f"{CAUSES['gradient' if slope else 'output']}. {SAY_SO}",
    )
