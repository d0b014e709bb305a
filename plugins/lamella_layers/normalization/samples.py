"""Values of mean 0 and variance 1 within each sample, forward and backward.

With means over the last axes, and d the gradient of unit:

    unit = (x - mean(x)) inverse;   inverse = 1 / sqrt(mean((x - mean(x))^2) + epsilon)
    dx = (d - mean(d) - unit mean(d unit)) inverse
"""

from __future__ import annotations

from typing import Any

import lamella as lm

__all__ = ["standardize", "standardize_dx"]


@lm.primitive
def standardize(xp: Any, x: Any, *, axes: int, epsilon: float, centered: bool = True) -> tuple[Any, Any]:
    """Return unit, over the last ``axes`` axes, and what scaled it; the mean stays unless ``centered``."""
    over = tuple(range(-axes, 0))
    for _ in range(2 if centered else 0):  # the second time, what rounding took from the mean
        x = x - xp.mean(x, axis=over, keepdims=True)
    inverse = 1.0 / xp.sqrt(xp.mean(x * x, axis=over, keepdims=True) + epsilon)
    return x * inverse, inverse


@lm.primitive
def standardize_dx(xp: Any, d: Any, unit: Any, inverse: Any, *, axes: int, centered: bool = True) -> Any:
    """``(d - mean(d) - unit mean(d unit)) inverse``, without ``mean(d)`` unless ``centered``."""
    over = tuple(range(-axes, 0))
    dx = d - unit * xp.mean(d * unit, axis=over, keepdims=True)
    return (dx - xp.mean(d, axis=over, keepdims=True) if centered else dx) * inverse
