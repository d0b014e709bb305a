"""Whether requests may be joined: do a model's answers to a row depend on the rows beside it?

They do where a graph reduces over its batch axis, as a speech front end does that scales by the loudest clip, or where
weights are quantized by the range of the batch. To join requests there gives everybody wrong answers, so it is tried.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from lamella.errors import counted
from lamella_serve.datatypes import Array
from lamella_serve.refusals import Refusal
from lamella_serve.session import Session
from lamella_serve.signature import Tensor
from lamella_serve.trials import Trial

__all__ = ["Verdict", "examine"]

_SCALES = (1.0, 1e-3, 1e3, 0.0, 30.0, 0.1)  # of rows that stand side by side
_SLOW = 0.05  # seconds for a row, from which on fewer rows are tried
_ALLOWED = {"FP64": 1e-6, "FP32": 1e-3, "FP16": 2e-2, "BF16": 5e-2}  # of a row's largest value: kernels round otherwise


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether requests may be joined, and why."""

    joined: bool
    reason: str


def examine(session: Session, trial: Trial | None, why: str) -> Verdict:
    """Run rows of very different scale alone and side by side, and compare.

    Arguments:
        trial: inputs that the model answers, or None.
        why: why there are none.
    """
    signature = session.signature
    for what, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            if not tensor.any_rows:
                first = f"a first axis of {tensor.axes[0]}, not of any size" if tensor.axes else "no axes"
                return Verdict(False, f"{what} {tensor.name!r} has {first}")
    if not signature.inputs:
        return Verdict(False, "the model has no inputs")
    if trial is None:
        return Verdict(False, f"not checked, since no inputs were found that the model answers ({why})")
    try:
        return _compared(session, trial)
    except Refusal as error:
        return Verdict(False, f"rows that work alone fail together ({error.words})")


def _compared(session: Session, trial: Trial) -> Verdict:
    began = time.perf_counter()
    session.run(trial.draw([1.0]))
    scales = _SCALES if time.perf_counter() - began < _SLOW else _SCALES[:3]
    drawn = trial.draw(scales)
    rows = {k: {name: x[k : k + 1] for name, x in drawn.items()} for k in range(len(scales))}
    alone = {k: session.run(row) for k, row in rows.items()}
    for answers in alone.values():
        if (said := _other_rows(session, 1, answers)) is not None:
            return Verdict(False, said)
    again = session.run(rows[0])
    if (said := _differ(session, [0], again, alone)) is not None:
        return Verdict(False, f"equal requests get different answers: {said}")
    everyone = list(rows)
    for order in (everyone, everyone[::-1], everyone[1:3]):
        together = session.run({name: np.concatenate([rows[k][name] for k in order]) for name in drawn})
        if (said := _other_rows(session, len(order), together)) is not None:
            return Verdict(False, said)
        if (said := _differ(session, order, together, alone)) is not None:
            return Verdict(False, f"answers depend on the batch: {said} beside others")
    if all(
        _distance(one, answers[k], alone[0][k]) is None
        for k, one in enumerate(session.signature.outputs)
        for answers in alone.values()
    ):
        return Verdict(False, "not checked, since all inputs that were tried get equal answers")
    return Verdict(
        True,
        f"answers do not depend on the batch: {len(scales)} rows of scales {min(scales):g} to {max(scales):g} gave "
        "the same alone and side by side",
    )


def _other_rows(session: Session, rows: int, outputs: Sequence[Array]) -> str | None:
    """Which output has not as many rows as the inputs."""
    for tensor, array in zip(session.signature.outputs, outputs, strict=True):
        if array.ndim == 0 or len(array) != rows:
            return f"output {tensor.name!r} of {counted(rows, 'row')} has the shape {list(array.shape)}"
    return None


def _differ(
    session: Session, order: Sequence[int], together: Sequence[Array], alone: dict[int, list[Array]]
) -> str | None:
    """What differs between rows that were run together and alone."""
    for place, tensor in enumerate(session.signature.outputs):
        for position, k in enumerate(order):
            off = _distance(tensor, together[place][position : position + 1], alone[k][place])
            if off is not None:
                return f"output {tensor.name!r} of a row of scale {_SCALES[k]:g} changes {off}"
    return None


def _distance(tensor: Tensor, got: Array, alone: Array) -> str | None:
    """By how much two answers differ, in words; None where they agree."""
    if got.shape != alone.shape:
        return f"its shape from {list(alone.shape)} to {list(got.shape)}"
    if tensor.datatype.kind != "f":
        return None if np.array_equal(got, alone) else "its values"
    x, y = got.astype("float64"), alone.astype("float64")
    finite = np.isfinite(y)
    if not np.array_equal(finite, np.isfinite(x)):
        return "between finite and not"
    largest = float(np.abs(y[finite]).max(initial=0.0))
    off = float(np.abs(x[finite] - y[finite]).max(initial=0.0))
    allowed = _ALLOWED[tensor.datatype.name] * largest + 1e-30
    return None if off <= allowed else f"by {off / (largest or 1.0):.2g} of its largest value"
