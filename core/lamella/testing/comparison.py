"""What laws say of a layer, and how they tell results apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.engine import StepResult

__all__ = ["Broken", "Named", "Skipped", "compare", "difference", "largest", "named"]

Named = dict[str, np.ndarray[Any, Any]]


class Broken(AssertionError):
    """A layer breaks a law; the message says how, with the numbers."""


class Skipped(Exception):
    """A law was not examined; the message says why."""


def named(result: StepResult) -> Named:
    """Every array of a step, with the name that messages use."""
    arrays: Named = {f"output {k}": y for k, y in enumerate(result.predictions)}
    arrays |= {f"dx of input {k}": dx for k, dx in enumerate(result.dx) if dx is not None}
    arrays |= {f"gradient of {name.rpartition('.')[2]!r}": g for name, g in result.gradients.items()}
    arrays |= {f"update of {name.rpartition('.')[2]!r}": u for name, u in result.updates.items()}
    return arrays


def largest(a: Any) -> float:
    """The largest finite size of a number."""
    a = np.abs(np.asarray(a, "float64"))
    return float(np.max(a, initial=0.0, where=np.isfinite(a)))


def difference(a: Any, b: Any) -> float:
    """The largest absolute difference; infinite where shapes, NaNs or infinities differ."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(np.where(a == b, 0.0, a - b)), initial=0.0))


def compare(expected: Named, given: Named, what: str, tolerance: float) -> float:
    """Raise unless every array agrees to a tolerance relative to its largest value.

    An array that is nothing but rounding, as the gradient of a bias in front of a normalization is, has no size of
    its own: no array counts as smaller than a ten-thousandth of the largest one.
    """
    worst = 0.0
    least = 1e-4 * max(map(largest, expected.values()), default=0.0)
    for name, value in expected.items():
        scale = max(least, largest(value)) or 1.0
        error = difference(value, given[name]) / scale
        worst = max(worst, error)
        if not error <= tolerance:
            raise Broken(f"{name}: {what} differ by {error:.2g} relative to {scale:.3g}; allowed {tolerance:.1g}")
    return worst
