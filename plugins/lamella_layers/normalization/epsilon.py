"""Epsilon, which is added to a variance so that equal values stay finite."""

from __future__ import annotations

from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import number

__all__ = ["epsilon_argument"]


def epsilon_argument(value: Any) -> float:
    """Return ``value`` as a float above 0, in float32 too."""
    epsilon, least = number(value, "epsilon", minimum=0.0), float(np.finfo("float32").tiny)
    if epsilon < least:
        raise lm.ArgumentError(
            f"epsilon: expected a number above 0, in float32 too, so of at least {least:.2g}, got {value!r}; constant "
            "channels divide by its root"
        )
    return epsilon
