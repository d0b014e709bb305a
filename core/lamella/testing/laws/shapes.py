"""The law that ``build`` predicts shape and dtype of what comes out, and refuses what the layer can't take."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.errors import LamellaError
from lamella.losses import Loss
from lamella.protocol import ArraySpec
from lamella.registry import snake_case
from lamella.testing.case import Case
from lamella.testing.comparison import Broken

__all__ = ["shapes"]

ROWS = (1, 2, 7)


def shapes(case: Case) -> str:
    """Outputs have the shape and dtype that ``build`` said, at any size of the batch and of axes known by name."""
    case.check(_predicts)
    for name in case.sizes:
        case.check(_at_other_sizes, name)
    refused = case.specimen.refuses
    for specs, words in refused:
        case.check(_refuses, specs, words)
    outputs = ", ".join(map(str, case.model("float32").output_specs))
    return outputs + (f"; {len(refused)} bad input{'s' * (len(refused) > 1)} refused in words" if refused else "")


def _predicts(case: Case) -> None:
    """The engine compares every output with its spec; sizes known by name and ranges of integers are checked here."""
    for rows in ROWS:
        inputs = case.draw(rows)
        known = {"N": len(inputs[0]), **case.sizes}
        for dtype in ("float32", "float64"):
            outputs = case.infer(dtype, inputs)
            case.step(dtype, inputs, case.cotangents(inputs))
            for k, (spec, y) in enumerate(zip(case.model(dtype).output_specs, outputs, strict=True)):
                _holds(f"output {k}", spec, y, known, inputs)


def _holds(what: str, spec: ArraySpec, y: Any, known: dict[str, int], inputs: tuple[Any, ...]) -> None:
    for axis, (size, n) in enumerate(zip(spec.shape, y.shape, strict=True)):
        if isinstance(size, str) and known.setdefault(size, n) != n:
            raise Broken(
                f"{what}: build said {spec}; axis {axis} has size {n}, and {size!r} is {known[size]}",
                subject=what,
                inputs=inputs,
                cause="build returns the name of an axis that forward_pass makes longer or shorter; give it a new name",
            )
    low, high = (None, None) if spec.is_float or not y.size else (spec.low, spec.high)
    if (low is not None and y.min() < low) or (high is not None and y.max() >= high):
        raise Broken(
            f"{what}: build said integers from {low} to below {high}; they go from {y.min()} to {y.max()}",
            subject=what,
            inputs=inputs,
            cause="the input's range was passed on; say spec.replace(low=..., high=...), or None",
        )


def _at_other_sizes(case: Case, name: str) -> None:
    """An axis known by name may have any size, but for what the layer refuses as too small or too large."""
    size, refused = case.sizes[name], []
    for other in (1, size - 1, size + 2):
        try:
            _predicts(case.like(sizes={**case.sizes, name: other}))
        except LamellaError as error:
            text = f"with axis {name!r} of size {other}: {error}"
            refused.append(text)
            if "build said" in text or len(refused) == 3:
                raise Broken(text, cause="a size that is frozen in build, or kept from an earlier call") from error


def _refuses(case: Case, specs: tuple[ArraySpec, ...], words: str) -> None:
    """Bad inputs raise an error that says where, what was expected, and what was given."""
    subject, given = case.specimen.subject, " and ".join(map(str, specs))
    try:
        if isinstance(subject, Loss):
            subject.prepare(specs[0], np.zeros([2 if n == "N" else n for n in specs[1].shape], specs[1].dtype))
        else:
            subject(*case.nodes(specs))
    except LamellaError as error:
        message = str(error)
    except Exception as error:
        raise Broken(
            f"for {given}: {type(error).__name__}: {error}; expected a lamella.GraphError with the words {words!r}"
        ) from error
    else:
        raise Broken(
            f"for {given}: accepted, though the specimen says that it is refused",
            cause=f"build does not look at its input; raise lamella.GraphError(...) with the words {words!r}",
        )
    kind = type(subject).__name__
    missing = [
        what
        for what, present in (
            (f"the words {words!r}", words in message),
            (f"where: {kind}", any(where in message for where in (kind, snake_case(kind), "called with"))),
            ("what was expected", any(word in message for word in ("expected", "must", "missing"))),
            ("what was given ('got ...')", "got" in message or "called with" in message),
        )
        if not present
    ]
    if missing:
        raise Broken(
            f"for {given}: the error lacks {' and '.join(missing)}; it says: {message}",
            cause="an error says where, what was expected, what was given, and the likely fix",
        )
