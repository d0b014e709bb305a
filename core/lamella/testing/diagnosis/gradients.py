"""What is wrong with a wrong gradient, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella.testing import runs
from lamella.testing.case import Case
from lamella.testing.comparison import own_name, worst_place
from lamella.testing.diagnosis.relation import constant_factor, factor_in_words, same, same_but_moved, where_different
from lamella.testing.slopes import MODES, Mode, Point, Target, settled

__all__ = ["diagnosis_of_gradient", "title"]

MOST_ENTRIES = 200  # of a gradient, up to which the slope of each is taken by itself


def title(target: Target) -> str:
    """What messages call a gradient."""
    return f"dx of input {target}" if isinstance(target, int) else f"gradient of {own_name(target)!r}"


def diagnosis_of_gradient(
    origin: Case, case: Case, mode: Mode, target: Target, right_modes: Sequence[str] = ()
) -> dict[str, Any]:
    """The entry that is most wrong in the smallest case, and what explains the gradient of the case that failed first.

    ``right_modes`` names the modes in which that gradient is right.
    """
    small, first = Point(case, mode, target), Point(origin, mode, target)
    found: dict[str, Any] = {}
    if small.value.size <= MOST_ENTRIES:
        found = worst_place(small.given(small.run()), _sum(small.shares(), small.value.shape))
    return found | {"cause": _forgotten(first, right_modes) or _cause(origin, case, small, first)}


def _cause(origin: Case, case: Case, small: Point, first: Point) -> str:
    ratios = [settled(one, first.mode, first.target).ratio for one in (case, origin)]
    if first.value.size > MOST_ENTRIES:  # its slopes along one direction must do
        return _factor(ratios, small, first)
    given, shares = first.given(first.run()), first.shares()
    right = _sum(shares, given.shape)
    factor = constant_factor(given, right)
    if factor is None:
        return _relation(first, given, right, shares)
    if factor == 0.0:
        return "it is 0; was it forgotten, or is its sum empty?"
    return _factor([ratios[0], factor], small, first)


def _forgotten(point: Point, right_modes: Sequence[str]) -> str:
    """Whether a gradient that needs totals over the batch lacks them: forward_pass yields, backward_pass does not."""
    if not runs.is_coupled_forward_only(point.case.model()) or MODES[2].name not in right_modes:
        return ""
    if not isinstance(point.target, int) or point.value.size > MOST_ENTRIES:
        return ""
    rows = np.indices(point.value.shape)[0].reshape(-1)
    for share in point.shares():
        others = rows[:, None] != np.arange(share.shape[1])
        if np.any(np.abs(share[others]) > 1e-6 * np.max(np.abs(share))):
            return (
                "forward_pass yields totals, so dx has a term through them, from every row of the batch: yield in "
                "backward_pass too"
            )
    return ""


def _sum(shares: list[Any], shape: tuple[int, ...]) -> Any:
    """The gradient that is made of the shares of all outputs."""
    total: Any = sum(share.reshape(len(share), -1).sum(axis=1) for share in shares)
    return total.reshape(shape)


def _factor(ratios: list[float | None], point: Point, origin: Point) -> str:
    """What a constant factor is, if it is one: it must fit the small case and the one seen first."""
    small, first = ratios
    if small is None or first is None:
        return ""

    def sizes(at: Point) -> dict[str, int]:
        arrays = {f"input {k}": x.shape for k, x in enumerate(at.inputs)}
        arrays |= {f"output {k}": c.shape for k, c in enumerate(at.cotangents)}
        found = {"the batch size": len(at.inputs[0])}
        for name, shape in arrays.items():
            found |= {f"the size of axis {axis} of {name}": n for axis, n in enumerate(shape) if axis}
            found |= (
                {f"the number of elements in each sample of {name}": int(np.prod(shape[1:]))} if len(shape) > 2 else {}
            )
            found |= {f"the number of elements of {name}": int(np.prod(shape))}
        return found

    return factor_in_words((small, first), (sizes(point), sizes(origin)))


def _relation(point: Point, given: Any, right: Any, shares: list[Any]) -> str:
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


def _is_forward_map(point: Point, given: Any, share: Any) -> bool:
    """Whether a gradient is J dy, where it should be the transposed J times dy."""
    dy = point.cotangents[0]
    if not isinstance(point.target, int) or dy.shape != given.shape or not np.all(dy):
        return False
    slopes = share.reshape(given.size, -1) / dy.reshape(1, -1)  # of every output by every input
    return same(given, (slopes.T @ dy.reshape(-1)).reshape(given.shape))


def _twins(point: Point, given: Any) -> list[Target]:
    """Other gradients of the layer that equal what was given for this one."""
    result = point.run()
    others: list[Target] = [k for k in range(len(point.inputs)) if point.case.wants[k]]
    others += list(result.gradients)
    found = []
    for other in others:
        twin = Point(point.case, point.mode, other)
        if other != point.target and twin.value.shape == given.shape and same(given, _sum(twin.shares(), given.shape)):
            found.append(other)
    return found


def _partial_sum(point: Point, given: Any, share: Any, output: str) -> str:
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
        here = np.indices(given.shape)[axis - 1].reshape(-1)  # where each element of the input stands along the axis
        shape = (-1, *(1 for _ in range(axis - 1)), share.shape[axis], *(1 for _ in range(share.ndim - axis - 1)))
        own = (here[:, None] == np.arange(share.shape[axis])).reshape(shape)
        if same(given, _sum([share * own], given.shape)):
            along = "row of the batch" if axis == 1 else f"position along axis {axis - 1}"
            return (
                f"it counts what each {along} does to the output at the same place only. Missing are its effects on "
                "other places: on later steps of a recurrence, or through a sum or a maximum along that axis"
            )
    return ""
