"""The part of purity that compares float32 results with float64 results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lamella.testing.case import Case
from lamella.testing.comparison import Broken, Named, difference, largest, most, named, worst_place
from lamella.testing.layouts import contiguous, permuted

__all__ = ["accuracy", "accuracy_on"]

EPS = float(np.finfo("float32").eps)
TINY = float(np.finfo("float32").tiny)
INSENSITIVE = 0.1  # units in the last place: a result that changes less hides the rounding of its intermediate values

FACTORS = {"values around 1e3": 256.0}  # of the change that rounding the inputs makes, where it is not 16

EXAMPLES: dict[str, Any] = {
    "random values": lambda case: case.draw(7),
    "random values, batch of 1": lambda case: case.draw(1),
    "random values, batch of 2": lambda case: case.draw(2),
    "values up to 100": lambda case: case.draw(3, scale=30.0),
    "values up to 1e3": lambda case: case.draw(3, scale=300.0),
    "values around 1e3": lambda case: case.draw(7, offset=1e3),
    "zeros": lambda case: case.constant(2, 0.0),
    "ones": lambda case: case.constant(2, 1.0),
}


def accuracy(case: Case) -> str:
    """Float32 results differ from float64 results by no more than rounding of the inputs explains.

    Inputs, parameters and what the forward pass saves are moved by one unit in the last place (ulp) of float32. The
    tolerance is 16 times the largest change of the float64 result that this makes, plus 4 ulp of the largest result.
    Gradients get 4 ulp of the incoming gradient times the input on top, and for large values times the output, too:
    these are the terms that they add up.

    The error of a sum of n terms grows with sqrt(n). For samples of n elements the 16 becomes 2 sqrt(n) and the 4
    becomes sqrt(n), where these are larger. For values around 1e3, whose differences are small, the 16 becomes 256.

    Some functions hide their rounding: a normalization over two elements gives -1 and 1, whatever they are. There the
    size of the inputs over their spread is added, which is the factor by which subtracting the mean amplifies rounding.
    """
    return f"float32 error at most {most(accuracy_on(case, 'numpy')):.0%} of what rounding explains"


def accuracy_on(case: Case, backend: str) -> list[float | None]:
    """Check float32 results on a backend; return how large the errors are, as shares of what rounding explains."""
    known = len(case.failed)
    worst = [case.check(_accuracy, *example, True, backend) for example in _examples()]
    if len(case.failed) == known:  # else inference fails for the same reason
        worst += [case.check(_accuracy, *example, False, backend) for example in _examples()]
    return worst


def _examples() -> Iterator[tuple[str, Callable[[Any], Any] | None]]:
    """What is drawn, and its memory layout, None for scattered: in others, sums run in another order, or other code."""
    yield from ((label, None) for label in EXAMPLES)
    yield from (("random values", lay) for lay in (contiguous, permuted))


def _accuracy(case: Case, label: str, lay: Callable[[Any], Any] | None, training: bool, backend: str) -> float:
    try:
        return _off(case, label, lay, training, backend, 3)
    except Broken:  # where slopes vary, three changes may all be small by chance
        return _off(case, label, lay, training, backend, 16)


def _off(case: Case, label: str, lay: Callable[[Any], Any] | None, training: bool, backend: str, changes: int) -> float:
    """The largest error, as a share of its tolerance."""
    inputs = EXAMPLES[label](case)
    cotangents = case.cotangents(inputs)
    given = (inputs, cotangents) if lay is None else (tuple(map(lay, inputs)), tuple(map(lay, cotangents)))
    rounded = named(case.step("float32", *given, training=training, backend=backend))
    if training:
        case.kept["accuracy", label, lay, backend] = rounded
    elif _same(case.kept.get(("accuracy", label, lay, backend), {}), rounded):
        return 0.0  # as exact as in training
    where = f"{label}{f', {lay.__name__} in memory' if lay else ''}{'' if training else ' in inference'}"
    where += "" if backend == "numpy" else f" on the {backend!r} backend"
    key = "limits", label, training, changes
    if key not in case.kept:
        exact = named(case.step("float64", inputs, cotangents, training=training))
        moved = [case.nudged(inputs, cotangents, attempt, training=training) for attempt in range(changes)]
        case.kept[key] = exact, _limits(case, label, inputs, cotangents, exact, moved)
    exact, limits = case.kept[key]
    worst = 0.0
    for name, (fit, limit) in limits.items():
        error = difference(exact[name][fit], rounded[name][fit])
        if not error <= limit:
            raise Broken(
                f"{name} for {where}: float32 is off by {error:.3g}; rounding of the inputs explains {limit:.3g}",
                subject=name,
                inputs=inputs,
                cause=_cause(rounded[name][fit], lay, backend),
                **worst_place(np.where(fit, rounded[name], 0.0), np.where(fit, exact[name], 0.0)),
            )
        worst = max(worst, error / limit if limit else 0.0)
    return worst


def _limits(
    case: Case, label: str, inputs: Any, cotangents: Any, exact: Named, moved: list[Named]
) -> dict[str, tuple[Any, float]]:
    """For every array, where float32 can represent it, and the absolute tolerance there."""
    reach = max([1.0, *(largest(x) for x in inputs if x.dtype.kind == "f")])
    incoming = max(map(largest, cotangents)) * reach
    steep = _steepness(inputs) or _steepness(case.values.values())
    taken = steep * max([largest(x) for x in (*inputs, *case.values.values()) if x.dtype.kind == "f"], default=0.0)
    length = max((x[0].size for x in inputs if len(x)), default=0)
    explained = max(FACTORS.get(label, 16.0), 2.0 * length**0.5)
    own = max(
        4.0, length / 16 if label in ("zeros", "ones") else length**0.5
    )  # the errors of equal terms add up instead of cancelling
    fits = {name: _fits(name, exact, moved) for name, value in exact.items() if value.dtype.kind == "f"}
    overflows = not all(fit.all() for name, fit in fits.items() if name.startswith("output"))
    outputs = max(largest(y) for name, y in exact.items() if name.startswith("output"))
    if label.startswith("values"):  # gradients are then products of products, as in attention
        incoming *= max(1.0, outputs)
    limits = {}
    for name, fit in fits.items():
        if overflows and not name.startswith("output"):
            continue  # gradients may be computed from outputs that float32 can't represent
        value = exact[name][fit]
        change = max(difference(value, other[name][fit]) for other in moved)
        limit = explained * change + own * EPS * (largest(value) + (0.0 if name.startswith("output") else incoming))
        limit += TINY  # below it, float32 has fewer digits, or none
        if reach > 1.0 and not label.startswith("random"):
            limit += EPS * max(1.0, outputs)  # gates saturate at 1, and their differences are rounded as 1 is
        if name.startswith("output") and change < INSENSITIVE * EPS * largest(value):
            limit += 16 * EPS * largest(value) * taken
        limits[name] = fit, limit
    return limits


def _same(one: Named, other: Named) -> bool:
    """Whether all arrays are the same, but for updates of state."""
    kept = [{k: v.tobytes() for k, v in arrays.items() if not k.startswith("update")} for arrays in (one, other)]
    return kept[0] == kept[1]


def _steepness(arrays: Iterable[Any]) -> float:
    """One over the least standard deviation along any axis, or over the size on axes of size 1; 0 if all are equal."""
    wide = [x.astype("float64") for x in arrays if x.dtype.kind == "f"]
    spreads = [np.abs(x) if x.shape[axis] == 1 else x.std(axis=axis) for x in wide if x.size for axis in range(x.ndim)]
    return max((float(np.max(1.0 / spread[spread > TINY], initial=0.0)) for spread in spreads), default=0.0)


def _cause(found: Any, lay: Any, backend: str) -> str:
    if backend != "numpy":
        return f"a kernel of the {backend!r} backend differs from the reference"
    if lay:
        return "it is right where arrays are scattered in memory"
    if not np.isfinite(found).all():
        return (
            "overflow of an intermediate result: float32 ends at 3.4e38, which exp(89) exceeds. Take the maximum off "
            "first, or use lamella.primitives.softmax, softplus or sigmoid"
        )
    return (
        "cancellation: a small difference of large values, such as mean(x^2) - mean(x)^2, or exp(x) - 1 and "
        "log(1 + x), for which there are expm1 and log1p; or float16 on the way"
    )


def _fits(name: str, exact: Named, moved: list[Named]) -> Any:
    """Where float32 can represent a result, and the results for moved inputs."""
    limit = float(np.finfo("float32").max) / 2
    return np.logical_and.reduce([np.abs(results[name]) <= limit for results in (exact, *moved)])
