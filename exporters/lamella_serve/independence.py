"""Whether requests may be joined: do a model's answers to a row depend on the rows beside it?

They do where a graph reduces over its batch axis, as a speech front end does that scales by the loudest clip, or where
weights are quantized by the range of the batch. To join requests there gives everybody wrong answers, so it is tried.

Two things are asked. A row's answer must be the same, to the last digits, at the same place of a batch of the same
size, whatever its neighbours are: louder, quieter, zeros, NaN, infinite. Beside that, its answers alone and in batches
of other sizes must be about the same: kernels round otherwise there, which some models amplify, and which is no leak.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lamella.errors import counted
from lamella_serve.datatypes import Array
from lamella_serve.refusals import Refusal
from lamella_serve.session import Session
from lamella_serve.signature import Tensor
from lamella_serve.trials import Trial, others_that_run

__all__ = ["Verdict", "examine"]

_SCALES = (1.0, 1e-3, 1e3, 0.0, 30.0, 0.1)  # of rows that stand side by side
_ENOUGH = 3  # rows that the model answers alone
_FAST = 5e-3  # seconds for a row, up to which every place of a batch is tried, all neighbours, and a large batch
_LARGE = 40  # times the rows
_EXACT = 1e-6  # of each value: how far equal batches may be apart
_ABOUT = 0.05  # of a row's largest value: how far batches of different sizes may be apart

Answers = Sequence[Array]
Row = Mapping[str, Array]


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
                axis = f"a first axis of {tensor.axes[0]}, not of any size" if tensor.axes else "no axes"
                return Verdict(False, f"{what} {tensor.name!r} has {axis}")
    if not signature.inputs:
        return Verdict(False, "the model has no inputs")
    if trial is None:
        return Verdict(False, f"not checked, since no inputs were found that the model answers ({why})")
    try:
        first = _Comparison(session, trial)
        first.need_rows()
        for comparison in (first, *(_Comparison(session, other) for other in others_that_run(session, trial))):
            comparison.run()
        first.need_variety()
    except _Depends as said:
        return Verdict(False, str(said))
    except Refusal as error:
        return Verdict(False, f"rows that work alone fail together ({error.words})")
    scales = f"scales {min(_SCALES):g} to {max(_SCALES):g}"
    return Verdict(
        True,
        f"answers do not depend on the batch: {len(first.rows)} rows of {scales} gave the same alone and side by side",
    )


class _Depends(Exception):
    """Requests may not be joined; the message says why."""


class _Comparison:
    """Rows of one trial, and what the model gives for each of them alone."""

    def __init__(self, session: Session, trial: Trial) -> None:
        self._session = session
        self.rows: list[Row] = []
        self._scales: list[float] = []
        self._alone: list[Answers] = []
        drawn = trial.draw(_SCALES)
        began, said = time.perf_counter(), ""
        for k, scale in enumerate(_SCALES):
            row = {name: array[k : k + 1] for name, array in drawn.items()}
            try:
                answers = session.run(row)
            except Refusal as error:  # such as a number that is no entry of a table
                said = error.words
                continue
            self._need_rows(answers, 1)
            self.rows.append(row)
            self._scales.append(scale)
            self._alone.append(answers)
        self._is_fast = time.perf_counter() - began <= _FAST * len(_SCALES)
        self._said = said

    def need_rows(self) -> None:
        """Raise unless the model answers enough of the rows."""
        if len(self.rows) < _ENOUGH:
            raise _Depends(f"not checked, since the model answers too few of the rows that were tried ({self._said})")

    def need_variety(self) -> None:
        """Raise unless answers vary, so that they could have differed."""
        alike = [
            all(_same(tensor, answers[at], self._alone[0][at]) for answers in self._alone)
            for at, tensor in enumerate(self._session.signature.outputs)
        ]
        for tensor, same in zip(self._session.signature.outputs, alike, strict=True):
            if same and (tensor.datatype.kind == "f" or all(alike)):
                raise _Depends(f"not checked, since output {tensor.name!r} is the same for all inputs that were tried")

    def run(self) -> None:
        """Compare.

        Raises:
            _Depends: answers differ, or can't.
            Refusal: rows that work alone fail together.
        """
        if len(self.rows) < 2:
            return
        self._compare(self._session.run(self.rows[0]), [0], "equal requests get different answers")
        everyone = list(range(len(self.rows)))
        for order in (everyone, everyone[::-1], *([everyone * _LARGE] if self._is_fast else [])):
            self._compare(self._together([self.rows[k] for k in order]), order, "answers depend on the batch")
        usual = self._together(self.rows)
        for place in everyone if self._is_fast else everyone[-1:]:
            self._compare_neighbours(place, usual)

    def _together(self, rows: Sequence[Row]) -> Answers:
        answers = self._session.run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        self._need_rows(answers, len(rows))
        return answers

    def _need_rows(self, answers: Answers, rows: int) -> None:
        for tensor, array in zip(self._session.signature.outputs, answers, strict=True):
            if array.ndim == 0 or len(array) != rows:
                raise _Depends(f"output {tensor.name!r} of {counted(rows, 'row')} has the shape {list(array.shape)}")

    def _compare(self, got: Answers, order: Sequence[int], what: str) -> None:
        """Hold the answers of a batch against those of its rows alone."""
        for at, tensor in enumerate(self._session.signature.outputs):
            for place, k in enumerate(order):
                if (off := _distance(tensor, got[at][place : place + 1], self._alone[k][at])) is not None:
                    raise _Depends(f"{what}: {self._named(tensor, k)} changes {off} beside others")

    def _compare_neighbours(self, place: int, usual: Answers) -> None:
        """Give a row other neighbours, in a batch of the same size."""
        for neighbours, what in self._neighbours(place):
            rows = [*neighbours[:place], self.rows[place], *neighbours[place:]]
            try:
                got = self._together(rows)
            except Refusal:  # then each of them runs alone
                continue
            for at, tensor in enumerate(self._session.signature.outputs):
                one, other = (answers[at][place : place + 1] for answers in (usual, got))
                if not _same(tensor, other, one):
                    said = _distance(tensor, other, one) or "a little"
                    named = self._named(tensor, place)
                    raise _Depends(f"answers depend on the batch: {named} changes {said} beside {what}")

    def _neighbours(self, place: int) -> Iterator[tuple[list[Row], str]]:
        others = [*self.rows[:place], *self.rows[place + 1 :]]
        yield [*others[1:], others[0]], "others"
        if self._is_fast:
            loudest = self.rows[max(range(len(self.rows)), key=self._scales.__getitem__)]
            yield [loudest] * len(others), "louder ones"
        if any(tensor.datatype.kind == "f" for tensor in self._session.signature.inputs):
            for value in (np.nan, np.inf) if self._is_fast else (np.nan,):
                ill = {
                    tensor.name: np.full_like(others[0][tensor.name], value)
                    if tensor.datatype.kind == "f"
                    else others[0][tensor.name]
                    for tensor in self._session.signature.inputs
                }
                yield [ill] * len(others), f"{value}"

    def _named(self, tensor: Tensor, row: int) -> str:
        return f"output {tensor.name!r} of a row of scale {self._scales[row]:g}"


def _same(tensor: Tensor, one: Array, other: Array) -> bool:
    """Whether two answers are the same, but for their last digits."""
    if one.shape != other.shape:
        return False
    if tensor.datatype.kind != "f":
        return bool(np.array_equal(one, other))
    x, y = one.astype("float64"), other.astype("float64")
    with np.errstate(invalid="ignore"):
        return bool(((x == y) | (np.abs(x - y) <= _EXACT * np.abs(y)) | (np.isnan(x) & np.isnan(y))).all())


def _distance(tensor: Tensor, got: Array, alone: Array) -> str | None:
    """By how much two answers differ, in words; None where they are about the same."""
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
    return None if off <= _ABOUT * largest + 1e-30 else f"by {off / (largest or 1.0):.2g} of its largest value"
