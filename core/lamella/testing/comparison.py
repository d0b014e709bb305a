"""What a check reports when it fails, and how two results are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lamella.testing.runs import StepResult

__all__ = [
    "EXPLAINED",
    "Broken",
    "Fault",
    "Named",
    "Skipped",
    "as_tuple",
    "compare",
    "difference",
    "largest",
    "most",
    "named",
    "own_name",
    "worst_place",
]

Array = np.ndarray[Any, Any]
Named = dict[str, Array]

EXPLAINED = 1e-3
"""The share of what rounding the inputs to float32 changes in a result, which float64 results may differ by.

Results that are rounded in another order differ far less, but for ill-conditioned functions.
"""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        message: what is wrong, in one sentence.
        subject: the array that is wrong, such as ``"gradient of 'bias'"``; empty for errors that were raised.
        index: where in that array the difference is largest.
        found: the value there.
        expected: the value that is expected there.
        cause: what it likely comes from, and what to do.
        counterexample: the smallest input that was found for which the check fails.
        sides: what gave ``expected`` and what gave ``found``, where neither is known to be right.
    """

    message: str
    subject: str = ""
    index: tuple[int, ...] | None = None
    found: float | None = None
    expected: float | None = None
    cause: str = ""
    counterexample: str = ""
    sides: tuple[str, str] | None = None

    def lines(self) -> list[str]:
        """The fault in words, the sentence first."""
        lines = [self.message]
        if self.index is not None:
            place = f"at {list(self.index)}" if self.index else "there"
            if self.sides is None:
                lines.append(f"{place}: {self.found:.7g} where {self.expected:.7g} is expected")
            else:
                first, second = self.sides
                lines.append(f"{place}: {first} gives {self.expected:.7g}, {second} {self.found:.7g}")
        if self.counterexample:
            lines.append(f"counterexample: {self.counterexample}")
        if self.cause:
            lines.append(f"likely cause: {self.cause}")
        return lines


class Broken(AssertionError):
    """A check failed; the message says how, with the values.

    ``inputs`` are the counterexample, with ``values`` of the parameters, None for those of the case. Once the smallest
    one is found, ``diagnose(case)`` is called with the case that failed first, and returns what more is known: fields
    of `Fault`.
    """

    def __init__(
        self,
        message: str,
        *,
        inputs: tuple[Any, ...] = (),
        values: dict[str, Any] | None = None,
        diagnose: Callable[[Any], dict[str, Any]] | None = None,
        **known: Any,
    ) -> None:
        super().__init__(message)
        self.fault = Fault(message, **known)
        self.inputs = inputs
        self.values = values
        self.diagnose = diagnose


class Skipped(Exception):
    """A law was not examined; the message says why."""


def named(result: StepResult) -> Named:
    """Every array of a step, with the name that messages use."""
    arrays: Named = {f"output {k}": y for k, y in enumerate(result.predictions)}
    arrays |= {f"dx of input {k}": dx for k, dx in enumerate(result.dx) if dx is not None}
    arrays |= {f"gradient of {own_name(name)!r}": g for name, g in result.gradients.items()}
    arrays |= {f"update of {own_name(name)!r}": u for name, u in result.updates.items()}
    return arrays


def own_name(name: str) -> str:
    """The name of an array within the layer that is examined, with the path to it in a layer made of layers.

    >>> own_name("dense_1.kernel"), own_name("bidirectional_1/forward.kernel")
    ('kernel', 'forward.kernel')
    """
    return name.partition("/")[2] or name.rpartition(".")[2]


def largest(a: Any) -> float:
    """The largest absolute value that is finite."""
    a = np.abs(np.asarray(a, "float64"))
    return float(np.max(a, initial=0.0, where=np.isfinite(a)))


def most(errors: Iterable[float | None]) -> float:
    """The largest error of the checks that passed."""
    return max((error for error in errors if error is not None), default=0.0)


def _gaps(a: Any, b: Any) -> Any:
    """Absolute differences, infinite where NaNs or infinities differ; None where shapes do."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    if a.shape != b.shape:
        return None
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.where(a == b, 0.0, a - b))
    return np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isfinite(gaps), gaps, np.inf))


def difference(a: Any, b: Any) -> float:
    """The largest absolute difference; infinite where shapes, NaNs or infinities differ."""
    gaps = _gaps(a, b)
    return np.inf if gaps is None else float(np.max(gaps, initial=0.0))


def worst_place(found: Any, expected: Any) -> dict[str, Any]:
    """Where two arrays differ most, and both values there: fields of `Fault`."""
    gaps = _gaps(found, expected)
    if gaps is None or not gaps.size:
        return {}
    index = tuple(map(int, np.unravel_index(int(np.argmax(gaps)), gaps.shape)))
    return {"index": index, "found": float(found[index]) + 0.0, "expected": float(expected[index]) + 0.0}


def compare(
    expected: Named,
    given: Named,
    what: str,
    tolerance: float,
    *,
    least: float = 1e-4,
    inputs: tuple[Any, ...] = (),
    cause: str | Callable[[str], str] = "",
    sides: tuple[str, str] | None = None,
    rounding: Callable[[], dict[str, float]] | None = None,
) -> float:
    """Raise unless every array agrees, within a tolerance relative to its largest value.

    Some arrays hold nothing but rounding errors, such as the gradient of a bias in front of a normalization. The
    tolerance of each array is therefore relative to at least ``least`` times the largest value of all arrays. Arrays
    that differ by more are compared once more with the absolute tolerances that ``rounding()`` returns by name.
    ``cause`` may depend on the name of the first array that differs. ``sides`` names what gave ``expected`` and
    ``given``, where either may be wrong.
    """
    floor = least * max(map(largest, expected.values()), default=0.0)
    scales = {name: max(floor, largest(value)) or 1.0 for name, value in expected.items()}
    errors = {name: difference(value, given[name]) / scales[name] for name, value in expected.items()}
    wrong = [name for name, error in errors.items() if not error <= tolerance]
    if wrong and rounding is not None:
        allowed = rounding()
        wrong = [name for name in wrong if not errors[name] * scales[name] <= allowed[name]]
    if not wrong:
        return max(errors.values(), default=0.0)
    first, *others = wrong
    raise Broken(
        f"{first}: {what} differ by {errors[first]:.2g} relative to {scales[first]:.3g}; allowed {tolerance:.1g}"
        f"{f' (so do {_listed(others)})' if others else ''}",
        subject=first,
        inputs=inputs,
        cause=cause if isinstance(cause, str) else cause(first),
        sides=sides,
        **worst_place(given[first], expected[first]),
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value as a tuple, several as they are."""
    return value if isinstance(value, tuple) else (value,)
