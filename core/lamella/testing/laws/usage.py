"""The part of the gradient law that looks for parameters and state which are declared and never used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lamella.testing.case import Case
from lamella.testing.comparison import Broken, named, own_name
from lamella.testing.runs import StepResult
from lamella.testing.slopes import MODES

__all__ = ["everything_is_used"]


def everything_is_used(case: Case) -> None:
    """Every parameter and state changes something: what no output ever depends on is no parameter.

    NaN shows in the output where other values cancel, as in the softmax over a single element.
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
