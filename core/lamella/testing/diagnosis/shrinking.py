"""From a check that failed to the smallest counterexample: fewer rows, smaller shapes, short values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lamella.errors import LamellaError
from lamella.testing.case import Case
from lamella.testing.checks import Checks, FailedCheck
from lamella.testing.comparison import Broken, Fault, own_name
from lamella.testing.diagnosis.causes import cause_of

__all__ = ["fault_of"]

MOST_ROWS = 9  # that checks ask for, but for those that need many
SHOWN = 12  # values of an array that are printed one by one


def fault_of(case: Checks, failure: FailedCheck) -> Fault:
    """What a failed check found; of a layer, with the smallest input for which it fails in the same way."""
    error, check, arguments = failure
    if not isinstance(error, Broken):
        text = str(error) if isinstance(error, LamellaError) else f"{type(error).__name__}: {error}"
        return Fault(text, cause=cause_of(text))
    if not error.fault.subject or not isinstance(case, Case):
        return dataclasses.replace(error.fault, cause=error.fault.cause or cause_of(error.fault.message))

    def again(smaller: Case) -> Broken | None:
        """The same failure, if the smaller case has it."""
        try:
            check(smaller, *arguments)
        except Broken as broken:
            alike = broken.fault.subject == error.fault.subject and _has_nan(broken) == _has_nan(error)
            return broken if alike else None
        except Exception:  # a case that the layer refuses, or that breaks it in another way
            return None
        return None

    smallest, broken = case, error
    for step in (_fewer_rows, _smaller_axes, _single_axes, _short_values):
        smallest, broken = step(smallest, broken, again)
    more = broken.diagnose(case) if broken.diagnose is not None else {}
    more = {key: value for key, value in more.items() if value != ""}
    return dataclasses.replace(broken.fault, counterexample=_counterexample(smallest, broken), **more)


def _has_nan(error: Broken) -> bool:
    """Whether NaN is what is wrong: a smaller case that has nothing but NaN fails in another way."""
    values = (error.fault.found, error.fault.expected)
    return "nan" in str(error) or any(value is not None and math.isnan(value) for value in values)


def _first(candidates: Iterator[Case], case: Case, broken: Broken, again: Any) -> tuple[Case, Broken]:
    """The first candidate that fails in the same way, or what there was."""
    for candidate in candidates:
        if (found := again(candidate)) is not None:
            return candidate, found
    return case, broken


def _fewer_rows(case: Case, broken: Broken, again: Any) -> tuple[Case, Broken]:
    rows = len(broken.inputs[0]) if broken.inputs else MOST_ROWS
    return _first((case.like(most=n) for n in range(1, rows)), case, broken, again)


def _smaller_axes(case: Case, broken: Broken, again: Any) -> tuple[Case, Broken]:
    """Axes of equal size shrink together, as they may have to be equal; so do those of one name."""
    specs = case.specimen.inputs
    for size in sorted({n for spec in specs for n in spec.shape if isinstance(n, int) and n > 1}):
        every = [(k, axis) for k, spec in enumerate(specs) for axis, n in enumerate(spec.shape) if n == size]
        case, broken = _first(_resized(case, every, size), case, broken, again)
    for name, size in case.sizes.items():
        smaller = (case.like(sizes={**case.sizes, name: n}) for n in _sizes_below(size))
        case, broken = _first(smaller, case, broken, again)
    return case, broken


def _single_axes(case: Case, broken: Broken, again: Any) -> tuple[Case, Broken]:
    for k, spec in enumerate(case.specimen.inputs):
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int) and size > 1:
                case, broken = _first(_resized(case, [(k, axis)], size), case, broken, again)
    return case, broken


def _short_values(case: Case, broken: Broken, again: Any) -> tuple[Case, Broken]:
    return _first(iter([case.like(rounded=True)]), case, broken, again)


def _sizes_below(size: int) -> list[int]:
    return sorted({n for n in (1, 2, 3, size // 2) if 0 < n < size})


def _resized(case: Case, places: list[tuple[int, int]], size: int) -> Iterator[Case]:
    """Cases in which some axes (input, axis) are smaller, as far as the layer can be built on them."""
    for n in _sizes_below(size):
        shapes = [list(spec.shape) for spec in case.specimen.inputs]
        for k, axis in places:
            shapes[k][axis] = n
        specs = zip(case.specimen.inputs, shapes, strict=True)
        inputs = tuple(spec.replace(shape=tuple(shape)) for spec, shape in specs)
        try:
            candidate = case.like(specimen=dataclasses.replace(case.specimen, inputs=inputs, refuses=()))
            candidate.model()
        except Exception:  # the layer's build may raise anything
            continue
        yield candidate


def _counterexample(case: Case, broken: Broken) -> str:
    """The inputs and parameters for which a check failed, one by one where they are few."""
    inputs, values = broken.inputs, case.values if broken.values is None else broken.values
    if not inputs:
        return ""
    arrays = {f"input {k}" if len(inputs) > 1 else "x": x for k, x in enumerate(inputs)}
    arrays |= {own_name(name): value for name, value in values.items()}
    return ", ".join(f"{name} {_shown(value)}" for name, value in arrays.items())


def _shown(array: Any) -> str:
    """An array on one line, or its shape, dtype and range."""
    array = np.asarray(array)
    if array.size <= SHOWN:
        small = array.astype("float32") if array.dtype.kind == "f" else array  # that is how they were drawn
        text = " ".join(np.array2string(small, separator=", ", max_line_width=10_000).split())
        return f"= {text}"
    return f"of shape {array.shape}, from {array.min():.4g} to {array.max():.4g}"
