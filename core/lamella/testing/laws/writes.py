"""The checks of purity that come first: where they fail, other laws see results that are no longer what they were."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lamella.testing.case import Case
from lamella.testing.checks import FailedCheck
from lamella.testing.comparison import Broken, Named, compare, named, worst_place
from lamella.testing.layouts import contiguous, permuted, scattered

__all__ = ["LAYOUTS", "OUTSIDE", "in_words", "reason_for_impurity", "writes"]

OUTSIDE = (
    "something outlives a call: a counter, cache or running value in a closure or a global, or random values from "
    "elsewhere than ctx.uniform. What lasts goes into declare.state and ctx.update"
)
LAYOUTS = tuple(itertools.product((scattered, contiguous, permuted), repeat=2))  # of inputs and of dy


def inputs_stay(case: Case, training: bool) -> None:
    """Inputs and incoming gradients stay as they are."""
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    for lay, lay_dy in LAYOUTS:
        given = tuple(map(lay, case.cast("float64", inputs))), tuple(map(lay_dy, case.cast("float64", cotangents)))
        before = [[a.copy() for a in arrays] for arrays in given]
        case.step("float64", *given, training=training)
        for what, arrays, copies in zip(("input", "incoming gradient"), given, before, strict=True):
            for k, (array, copy) in enumerate(zip(arrays, copies, strict=True)):
                if array.tobytes() != copy.tobytes():
                    place = tuple(map(int, np.argwhere(array != copy)[0])) if np.any(array != copy) else ()
                    raise Broken(
                        f"{what} {k} was written to, with {in_words(lay, lay_dy)}",
                        subject=f"{what} {k}",
                        inputs=inputs,
                        index=place,
                        found=float(array[place]),
                        expected=float(copy[place]),
                        cause="an operator such as += or out=, on the array itself or on what xp.reshape or a slice "
                        "gave: that may be a view. Make a new array",
                    )


def outputs_stay(case: Case, training: bool) -> None:
    """The backward pass leaves the outputs of the forward pass as they are: other layers have saved them."""
    inputs = tuple(map(contiguous, case.draw(4)))  # contiguous as in `steady`
    outputs, finish = case.start("float64", inputs, training=training)
    copies = [y.copy() for y in outputs]
    finish()
    for k, (y, copy) in enumerate(zip(outputs, copies, strict=True)):
        if y.tobytes() != copy.tobytes():
            raise Broken(
                f"output {k} was written to by backward_pass",
                subject=f"output {k}",
                inputs=inputs,
                cause="an operator such as *= or out=, on what forward_pass gave to ctx.save and returned. Make a new "
                "array",
                **worst_place(y, copy),
            )


def saved_arrays_stay(case: Case, training: bool) -> None:
    """Arrays stay as they are once they have been given to ``ctx.save``."""
    inputs = tuple(map(contiguous, case.draw(4)))
    change = case.change_of_saved_array("float64", inputs, training=training)
    if change is None:
        return
    what = f"saved array {change.place}"
    several = change.saver != change.by
    raise Broken(
        f"{what}{f' of {change.saver}' if several else ''} was changed after ctx.save, by {change.method}"
        f"{f' of {change.by}' if several else ''}",
        subject=what,
        inputs=inputs,
        cause="ctx.save keeps references, not copies: an operator such as *= or out= on that array, or on a view of "
        "it, changes what backward_pass reads. Make a new array",
        **worst_place(change.found, change.saved),
    )


def steady(case: Case, training: bool) -> None:
    """Equal calls give equal results, whatever was called between them, and a result stays what it was."""
    mode = "" if training else " in inference mode"
    inputs = case.draw(4)

    def run(attempt: int = 0) -> Named:
        # drawn for each call, since a layer may write into them; contiguous, since other layouts may be copied
        given = tuple(map(contiguous, case.draw(4, attempt=attempt)))
        return named(case.step("float32", given, case.cotangents(inputs), training=training))

    first = run()
    copies = {name: value.copy() for name, value in first.items()}
    run(attempt=1)
    cause = "a buffer that is kept and written again; make a new array for every result"
    compare(copies, first, f"results before and after a later call{mode}", 0.0, inputs=inputs, cause=cause)
    sides = "the first call", "the second"
    compare(copies, run(), f"results of two equal calls{mode}", 0.0, inputs=inputs, cause=OUTSIDE, sides=sides)


def in_words(lay: Any, lay_dy: Any) -> str:
    return f"inputs {lay.__name__} and dy {lay_dy.__name__} in memory"


IMPURITIES = {
    inputs_stay: "the layer writes into what it is given",
    outputs_stay: "the layer writes into what it has returned",
    saved_arrays_stay: "the layer changes what it has saved",
    steady: "equal calls give different results",
}


def writes(case: Case) -> list[FailedCheck]:
    """The checks that fail, run once for each case."""
    if "writes" not in case.kept:
        known, case.failed = case.failed, []
        for check, training in itertools.product(IMPURITIES, (True, False)):
            case.check(check, training)
        case.kept["writes"], case.failed = case.failed, known
    found: list[FailedCheck] = case.kept["writes"]
    return found


def reason_for_impurity(case: Case) -> str:
    """Why other laws can only say that results are no longer what they were, if that is so."""
    broken = [failure for failure in writes(case) if isinstance(failure.error, Broken)]
    return f"{IMPURITIES[broken[0].check]}: see purity" if broken else ""
