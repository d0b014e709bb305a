"""The law that any slicing of the batch gives the whole-batch result."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.testing import runs
from lamella.testing.case import Case
from lamella.testing.comparison import EXPLAINED, Named, compare, most, named
from lamella.testing.diagnosis.relation import constant_factor

__all__ = ["slicing"]


def slicing(case: Case) -> str:
    """Any slicing of the batch, in any order, gives what the whole batch gives, random values included."""
    worst = [case.check(_sliced, sizes) for sizes in ((2, 3, 4), (1, 8), (1,) * 9)]
    worst.append(case.check(_sliced, (2, 3, 4), "the last one first"))
    worst.append(case.check(_sliced, (4, 5), "while frozen"))
    worst.append(case.check(_sliced, (64, 193)))  # more rows than kernels usually take in one block
    if not case.failed:  # else single rows fail for the same reason
        worst.append(case.check(_row_by_row))
    return f"slices give what the whole batch gives, largest relative difference {most(worst):.1e}"


def _sliced(case: Case, sizes: tuple[int, ...], way: str = "") -> float:
    inputs = case.draw(sum(sizes))
    rows = len(inputs[0])
    if sum(sizes) != rows:  # the smallest counterexample is sought: two slices do
        sizes = (1, rows - 1) if rows > 1 else (1,)
    cotangents = case.cotangents(inputs)
    frozen, backwards = way == "while frozen", way == "the last one first"
    whole = named(case.step("float64", inputs, cotangents, frozen=frozen))
    given = named(case.step("float64", inputs, cotangents, frozen=frozen, sizes=sizes, backwards=backwards))
    what = f"whole batch of {rows} and slices of {'+'.join(map(str, sizes))}{way and f', {way},'}"
    return compare(
        whole,
        given,
        what,
        1e-9,
        inputs=inputs,
        cause=lambda name: _why_sliced(case, name, whole, given, sizes),
        sides=("the whole batch", "slices"),
        rounding=lambda: case.rounding(inputs, cotangents, EXPLAINED, frozen=frozen),
    )


def _why_sliced(case: Case, name: str, whole: Named, given: Named, sizes: tuple[int, ...]) -> str:
    """Why an array depends on how the batch is cut."""
    factor = constant_factor(given[name], whole[name])
    if factor is not None and abs(factor - len(sizes)) < 1e-6 and runs.is_coupled(case.model()):
        return (
            f"{len(sizes)} times too much with {len(sizes)} slices: each slice hands over the total, which yield gave "
            "back, where its own share is due"
        )
    if name.startswith(("output", "dx")) and whole[name].shape == given[name].shape:
        parts = np.split(whole[name], np.cumsum(sizes)[:-1]), np.split(given[name], np.cumsum(sizes)[:-1])
        factors = [constant_factor(b, a) for a, b in zip(*parts, strict=True)]
        ratios = [sum(sizes) / n for n in sizes]
        for words, wanted in (("divided", ratios), ("multiplied", [1 / ratio for ratio in ratios])):
            if all(f is not None and abs(f - w) < 1e-6 for f, w in zip(factors, wanted, strict=True)):
                return (
                    f"{words} by x.shape[0], the rows of the slice and not of the batch. Incoming gradients carry the "
                    "weight of each row already; a count of the whole batch comes by total = yield rows"
                )
    if name.startswith("output"):
        return (
            "samples depend on each other, or on their place in the slice. Whatever is summed over axis 0 must go "
            "through total = yield partial; slices run in any order, and in parallel"
        )
    return (
        "a mean over axis 0 or a division by x.shape[0], where each slice owes its own sum; or a sum over the slice "
        "where the whole batch's is needed: total = yield partial"
    )


def _row_by_row(case: Case) -> float:
    inputs = case.draw(9)
    alone = [case.infer("float64", [x[k : k + 1] for x in inputs]) for k in range(len(inputs[0]))]
    names = [f"output {k} in inference" for k in range(len(alone[0]))]
    single = dict(zip(names, map(np.concatenate, zip(*alone, strict=True)), strict=True))
    together = dict(zip(names, case.infer("float64", inputs), strict=True))
    cause = "in inference no sample may depend on others; use what training gathered: declare.state and ctx.update"
    sides = "the batch", "single rows"

    def rounding() -> dict[str, float]:
        allowed = case.rounding(inputs, case.cotangents(inputs), EXPLAINED, training=False)
        return {name: allowed[name.removesuffix(" in inference")] for name in names}

    how: dict[str, Any] = {"inputs": inputs, "cause": cause, "sides": sides, "rounding": rounding}
    return compare(together, single, "batch and single rows", 1e-9, **how)
