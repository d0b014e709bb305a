"""The law that backends agree: strict arrays with references of primitives, NumPy with its kernels, and others."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np

from lamella.errors import LayerError
from lamella.testing.case import Case
from lamella.testing.comparison import EXPLAINED, Broken, Skipped, compare, most, named
from lamella.testing.diagnosis.kernels import kernels_that_differ
from lamella.testing.laws.accuracy import accuracy_on
from lamella.testing.runs import installed_backends

__all__ = ["backends"]


def backends(case: Case) -> str:
    """Strict array-API arrays, which run the references of primitives, and NumPy with its kernels agree.

    Other backends that are installed give float32 results as exact as those of NumPy have to be.
    """
    others = [name for name in installed_backends() if name not in ("numpy", "strict")]
    shares = [share for name in others for share in accuracy_on(case, name)]
    told = (
        f"; {', '.join(others)}: float32 error at most {most(shares):.0%} of what rounding explains" if others else ""
    )
    try:
        case.model("float64", "strict")
    except ImportError as error:
        if not others:
            raise Skipped(str(error)) from None
        return told.removeprefix("; ")
    worst = [case.check(_strict, *how) for how in itertools.product((True, False), (1.0, 30.0))]
    worst += [case.check(_strict, True, None), case.check(_strict, False, 300.0)]
    if not case.failed:
        worst += [case.check(_strict, True, 1.0, sizes) for sizes in case.other_sizes]
    return f"numpy and strict agree, largest relative difference {most(worst):.1e}{told}"


def _strict(case: Case, training: bool, scale: float | None, sizes: dict[str, int] | None = None) -> float:
    case = case.resized_to(sizes) if sizes else case
    inputs = case.draw(3, scale=scale)
    cotangents = case.cotangents(inputs)
    expected = named(case.step("float64", inputs, cotangents, training=training))
    values = f"values about {scale:g}" if scale else "multiples of 0.5"
    if scale == 300.0 and not all(np.isfinite(value).all() for value in expected.values()):
        return 0.0
    try:
        with warnings.catch_warnings():
            # the engine holds dtypes against strict ones on purpose: a NumPy array is then told as such below
            warnings.filterwarnings("ignore", "You are comparing a array_api_strict dtype", UserWarning)
            given = named(case.step("float64", inputs, cotangents, training=training, backend="strict"))
    except LayerError as error:
        if "build said" not in str(error) and "expected the" not in str(error):
            raise
        alike = re.search(r"(\([^()]*\)) (?:\w+\.)?(\w+), got \1 (?:\w+\.)?\2\b", str(error))
        what = "; the one is an array of the strict backend, the other of NumPy" if alike else ""
        raise Broken(
            f"on the strict backend, {error}{what}",
            cause="an array of NumPy where one of ctx.xp is due: a function of NumPy was called on arrays of another "
            "backend. Call those of ctx.xp",
        ) from error

    def cause(name: str) -> str:
        differ = kernels_that_differ(lambda: case.step("float64", inputs, cotangents, training=training))
        return f"the NumPy kernel of {' and of '.join(differ)} differs from the reference" if differ else ""

    return compare(
        expected,
        given,
        f"NumPy and strict, for {values},",
        1e-9,
        inputs=inputs,
        cause=cause,
        rounding=lambda: case.rounding(inputs, cotangents, EXPLAINED, training=training),
    )
