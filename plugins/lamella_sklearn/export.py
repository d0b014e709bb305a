"""Pipelines of scikit-learn as ONNX files that onnxruntime has already agreed with.

What is compared: what the estimator predicts for the samples, and for random rows like them, with what onnxruntime
makes of the same rows in float32. The rule is that of `lamella_onnx.parity`: 1e-5 of a row's scale. Where an output
differs by more, it may differ by 4 times as much as float32 changes in the estimator's own results, if that is no more
than 1e-3. Classes must be equal, but for rows whose probabilities leave it open to rounding which one it is.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnx
from sklearn.base import is_classifier, is_regressor
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

import lamella as lm
from lamella.errors import counted, in_words, shown
from lamella_onnx.exporter import Proven, as_properties, nothing_written, write_proven
from lamella_onnx.files import as_path
from lamella_onnx.parity import (
    PLAUSIBLE,
    TOLERANCE,
    Agreement,
    Evidence,
    ParityReport,
    agreements,
    compare,
    engine_error,
)
from lamella_onnx.probes import Probes
from lamella_onnx.proof import SEED
from lamella_onnx.runtime import ParityError, resolve, run, session
from lamella_onnx.tracer import TraceError
from lamella_sklearn.conversion import NEWEST_OPSET, convert
from lamella_sklearn.frames import Column, Rows

__all__ = ["to_onnx"]

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


def to_onnx(
    estimator: Any,
    path: str | os.PathLike[str],
    samples: Any,
    *,
    opset: int | None = None,
    target: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ParityReport:
    """Write a fitted classifier or regressor, with the pipeline around it, as one ONNX file that agrees with it.

    skl2onnx writes down what is scikit-learn's, and the tracer of lamella_onnx the networks. The file is written once
    onnxruntime has given what ``estimator.predict_proba`` and ``predict`` do, on the samples and on random rows within
    their ranges; it carries its proof, which `lamella_onnx.verify` replays.

    An array becomes one input, ``X`` (N, features), and a data frame one (N, 1) for each column that is used, by its
    name. Floats are float32, integers int64, and text is strings. Classifiers give ``label`` and ``probabilities`` (N,
    classes), regressors ``variable`` (N, outputs).

    Arguments:
        estimator: a classifier or regressor, a pipeline that ends in one, or a search that found one.
        path: where to write; an existing file and its proof are replaced whole, or stay.
        samples: rows as for ``predict``, such as those of a test. Their columns and dtypes decide the inputs.
        opset, target, metadata: as for `lamella_onnx.export`.

    Raises:
        TraceError: skl2onnx can't write a step down.
        ParityError: onnxruntime gives something else. Nothing is written.
        DataError: samples that the file can't take.
        ArgumentError: an estimator that is neither classifier nor regressor, or has no probabilities.

    Source: https://onnx.ai/sklearn-onnx/

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from lamella_sklearn import LamellaClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> network = LamellaClassifier((16,), learning_rate=0.03, tol=0.001, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), network).fit(X, y)
    >>> to_onnx(pipeline, "iris.onnx", X).agrees
    True
    """
    path, properties, opset = as_path(path, "to_onnx"), as_properties(metadata), _resolved(opset, target)
    estimator = getattr(estimator, "best_estimator_", estimator)
    _need(estimator)
    rows = Rows(samples)
    with nothing_written(path):
        proto, proven = _agreed(estimator, rows, opset)
    return write_proven(path, proto, opset, proven, properties)


def _resolved(opset: int | None, target: str | None) -> int:
    found: int = resolve(opset, target)
    if found > NEWEST_OPSET and opset is not None:
        raise lm.ArgumentError(
            f"to_onnx: opset={opset}: the installed skl2onnx writes opsets up to {NEWEST_OPSET}; ask for an older one, "
            "or leave it out"
        )
    return min(found, NEWEST_OPSET)


def _need(estimator: Any) -> None:
    if isinstance(estimator, type | lm.Model) or not (hasattr(estimator, "fit") and hasattr(estimator, "predict")):
        hint = ". Likely fix: lamella_onnx.export(model, path)" if isinstance(estimator, lm.Model) else ""
        raise lm.ArgumentError(
            "to_onnx: estimator: expected a fitted classifier or regressor of scikit-learn, or a pipeline that ends in "
            f"one, got {shown(estimator)}{hint}"
        )
    check_is_fitted(estimator)
    if not is_regressor(estimator) and not (is_classifier(estimator) and hasattr(estimator, "predict_proba")):
        raise lm.ArgumentError(
            f"to_onnx: estimator: expected a classifier with predict_proba, or a regressor, got {shown(estimator)}"
        )


class _Batch(NamedTuple):
    """Rows, and what is predicted for them, by outputs: labels and probabilities, or numbers."""

    data: str
    fed: Arrays  # as a file takes them
    predicted: Arrays
    single: Arrays  # the same with all floats in float32

    @property
    def rounding(self) -> float:
        """By how much of a row's scale float32 changes what is predicted."""
        return max(map(engine_error, self.single, self.predicted))

    def evidence(self, *, single: bool) -> Evidence:
        """What a file has to agree with; ``single``: where float32's rounding counts."""
        given = self.single if single else self.predicted
        e32 = tuple(one.astype("float32") if one.dtype.kind == "f" else one for one in given)
        return Evidence(self.data, self.fed, e32, self.predicted)

    def settled(self, labels: Array) -> Array:
        """Labels of a file, with those that are predicted where rounding decides which one it is."""
        expected, probabilities = self.predicted
        if labels.shape != expected.shape or labels.dtype.kind != expected.dtype.kind:
            return labels
        if labels.ndim == 2:  # yes or no for each
            is_open = np.abs(probabilities - 0.5) <= TOLERANCE
        else:
            first, second = np.sort(probabilities, axis=1)[:, :-3:-1].T
            is_open = first - second <= 2 * TOLERANCE
        return np.where(is_open, expected, labels)


class _Reference:
    """What is exported, as it predicts in Python."""

    def __init__(self, estimator: Any) -> None:
        self.single, self.double = _in_dtype(estimator, "float32"), _in_dtype(estimator, "float64")

    def batch(self, data: str, fed: Arrays, rows: Rows, columns: Sequence[Column]) -> _Batch:
        """Predict for rows like others, of values as a file takes them."""
        values = {column.name: array for column, array in zip(columns, fed, strict=True)}
        single, double = (rows.like(values, floats) for floats in ("float32", "float64"))
        return _Batch(data, fed, _predicted(self.double, double), _predicted(self.single, single))


def _predicted(estimator: Any, rows: Any) -> Arrays:
    given = np.asarray(estimator.predict(rows))
    if not is_classifier(estimator):
        return (given.reshape(len(given), -1),)
    labels = given.astype("int64" if given.dtype.kind in "biuf" else "str")
    probabilities = estimator.predict_proba(rows)
    if not isinstance(probabilities, np.ndarray) or (labels.dtype.kind == "i" and not np.array_equal(labels, given)):
        raise lm.DataError(
            "to_onnx: estimator: expected one array of probabilities, and integers, bools or strings for classes; got "
            f"{type(probabilities).__name__}, {shown(given[0])}"
        )
    return labels, probabilities


def _agreed(estimator: Any, rows: Rows, opset: int) -> tuple[onnx.ModelProto, Proven]:
    """Convert an estimator into a graph that agrees with it; with the graph, return what was compared."""
    reference = _Reference(estimator)
    predicted = _predicted(reference.double, rows.samples)  # what the estimator refuses, it refuses in its own words
    proto, columns = convert(reference.single, rows, opset)
    probes, batches = _random(reference, rows, columns)
    single = rows.like({one.name: one.values for one in rows.columns if one.values is not None}, "float32")
    fed = tuple([column.need() for column in columns])
    data = counted(len(rows.samples), "sample")
    batches.append(_Batch(data, fed, predicted, _predicted(reference.single, single)))
    for batch in batches:
        if not all(np.isfinite(one).all() for one in batch.predicted if one.dtype.kind == "f"):
            raise lm.NonFiniteError(f"to_onnx: the estimator predicts NaN or infinity on the {batch.data}")
    evidence, found = _compared(proto, batches)
    for how in ({"double": True, "stable": True}, {"stable": True}):
        if not _agree(found):
            with contextlib.suppress(TraceError, ParityError):  # few converters can do it in float64
                other, _ = convert(reference.single, rows, opset, **how)
                evidence, found = _compared(other, batches)
                proto = other
    rounding = max(batch.rounding for batch in batches)
    if not _agree(found) and rounding <= PLAUSIBLE:
        evidence, found = _compared(proto, batches, single=True)
    if not _agree(found):
        wrong = min((row for row in found if not row.agrees), key=lambda row: row.rule == "equal")  # labels last
        raise _differing(wrong, rounding, _blame(reference.double, rows, opset))
    return proto, Proven([output.name for output in proto.graph.output], probes, evidence, found)


def _agree(found: Sequence[Agreement]) -> bool:
    return all(row.agrees for row in found)


def _random(reference: _Reference, rows: Rows, columns: Sequence[Column]) -> tuple[Probes, list[_Batch]]:
    """Batches of random rows that the estimator takes, and what they were drawn from."""
    refusal: Exception | None = None
    for between in (True, False):
        probes = Probes(tuple([column.range(between=between) for column in columns]))
        try:
            return probes, [reference.batch(data, fed, rows, columns) for data, fed in probes.batches(SEED).items()]
        except Exception as error:  # whatever a step may raise
            refusal = refusal or error
    assert refusal is not None
    raise ParityError(f"the estimator itself refuses all random rows: {in_words(refusal)}") from refusal


def _compared(
    proto: onnx.ModelProto, batches: Sequence[_Batch], *, single: bool = False
) -> tuple[list[Evidence], list[Agreement]]:
    """Run a graph on each batch; return what it has to agree with, and how it does."""
    loaded = session(proto.SerializeToString())
    names = [output.name for output in proto.graph.output]
    inputs = [given.name for given in proto.graph.input]
    evidence, found = [], []
    for batch in batches:
        got = run(loaded, dict(zip(inputs, batch.fed, strict=True)))
        if len(names) == 2:
            got[names[0]] = batch.settled(got[names[0]])
        evidence.append(batch.evidence(single=single))
        found += agreements(evidence[-1], got, names)
    return evidence, found


def _blame(estimator: Any, rows: Rows, opset: int) -> str:
    """The first step of a pipeline whose results differ."""
    for place, (name, step) in enumerate(estimator.steps[:-1] if isinstance(estimator, Pipeline) else ()):
        part = estimator[: place + 1]
        try:
            proto, columns = convert(part, rows, opset)
            fed = {column.name: column.need() for column in columns}
            (got,) = run(session(proto.SerializeToString()), fed).values()
            expected = np.asarray(part.transform(rows.samples), "float64")
        except Exception:  # some parts can't stand alone
            return ""
        error, allowed, _ = compare(got, expected.astype(got.dtype), expected, by_row=True)
        if not error <= 100 * allowed:  # what comes after it may make more of a difference
            return f". The first step to differ is {name!r}, {step}: by {error:.3g}"
    return ""


def _differing(wrong: Agreement, rounding: float, first: str) -> ParityError:
    if rounding > PLAUSIBLE:
        first = (
            f". float32, in which the file takes numbers, changes the estimator's own results by {rounding:.2g} of the "
            "row's largest. Likely fix: fit it on what the file can tell apart, as X.astype('float32') does, or give "
            "whole numbers as integers"
        )
    return ParityError(
        f"output {wrong.output!r} of onnxruntime differs from what the estimator predicts on the {wrong.data} by "
        f"{wrong.error:.3g} where {wrong.allowed:.3g} is allowed{first}"
    )


def _in_dtype(estimator: Any, dtype: str) -> Any:
    """A copy of an estimator whose networks compute in a dtype, wherever in it they stand."""
    networks = {id(one): one.copy(dtype=dtype, backend="numpy") for one in _networks_in(estimator, set())}
    return copy.deepcopy(estimator, networks)


def _networks_in(one: Any, seen: set[int]) -> Iterator[lm.Model]:
    """Every network within an object."""
    if id(one) in seen:
        return
    seen.add(id(one))
    if isinstance(one, lm.Model):
        yield one
    elif isinstance(one, np.ndarray) and one.dtype == object:  # as ensembles keep estimators
        yield from _networks_in(one.tolist(), seen)
    elif isinstance(one, Mapping):
        yield from _networks_in(list(one.values()), seen)
    elif isinstance(one, list | tuple | set):
        for inner in one:
            yield from _networks_in(inner, seen)
    elif hasattr(one, "__dict__") and not isinstance(one, type | FunctionType | ModuleType):
        yield from _networks_in(list(vars(one).values()), seen)
