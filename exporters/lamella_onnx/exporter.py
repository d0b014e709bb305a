"""Export: trace, check, compare with the engine, and only then write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from lamella import ArgumentError, LamellaError, Model
from lamella.errors import shown
from lamella.network import Appended
from lamella.protocol.inputs import as_inputs, row_count
from lamella_onnx.files import as_path, write
from lamella_onnx.finite import need_finite_results, need_finite_values
from lamella_onnx.models import Trace, trace_model
from lamella_onnx.parity import (
    PLAUSIBLE,
    Agreement,
    Evidence,
    ParityReport,
    blame,
    engine_error,
    examine,
    predicted,
    versions,
)
from lamella_onnx.probes import BATCHES, Probes, candidates
from lamella_onnx.proof import BATCH, SEED, make_proof, need_model
from lamella_onnx.runtime import ParityError, resolve, session
from lamella_onnx.seal import PROOF, REPORT
from lamella_onnx.validity import not_valid

__all__ = ["Proven", "as_properties", "export", "nothing_written", "write_proven"]

Arrays = tuple[np.ndarray[Any, Any], ...]

LARGEST = 2**31 - 2**22  # bytes of arrays; protobuf takes messages below 2 GiB, graph and proof included


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    target: str | None = None,
    samples: Any = None,
    append: Appended | Mapping[str, Appended] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ParityReport:
    """Write a model as an ONNX file, once onnxruntime has given the engine's results.

    The comparison uses your samples and random batches drawn from their range, per feature; tolerances are relative to
    each row's largest value. Two results agree if they differ by at most 1e-5 of it, or by 4 times the engine's own
    rounding in float32, where that is more. `lamella_onnx.parity` states the rule in full.

    Where onnxruntime's operator for a normalization rounds too much, as for values far from 0, the file holds the
    formulas of its normalizations instead of the operators.

    The file carries its proof, which `verify` replays, with a hash of graph and weights; a proof of more than 64 kB
    stands beside the file, as ``<file>.<digest>.proof``. The proof guards against damage and against runtimes that
    differ. It is no signature: whoever changes the file on purpose can write a proof to go with it. Both are replaced
    together: whatever stops an export, and whoever else exports to the same path, a whole file with its proof is left.

    Arguments:
        path: where to write; an existing file and its proof are replaced whole, or stay.
        opset: the operator set, from 18; by default 21, or the newest that the target reads.
        target: the oldest runtime that must read the file, such as ``"onnxruntime==1.20"``.
        samples: inputs to compare on, as for ``model.predict``, besides random batches of 1, 2 and 7 rows. The random
            batches then have the samples' range: each place of a row its own, such as each column of a table, and axes
            of unknown size one for all places. Without samples an input's ``low`` and ``high`` count; else floats are
            drawn from [-1, 1), for the batch of 7 from [-10, 10), and integers are 0 or 1.
        append: a layer or model, or several, that the file has after the model's own, such as
            ``Activation("softmax")``; or a dict of these by output, where the outputs keep their names:
            ``{"digit": Activation("softmax")}``. An appended model's outputs keep the names they have there.
        metadata: texts by name for the file's metadata.

    In random batches an axis of unknown size has 6 or 7 places, or as many as the largest value of an integer that is
    given once for each row, such as a length. If the engine refuses such a batch, the samples' sizes and others are
    tried, and lengths within them.

    Raises:
        ParityError: onnxruntime refuses the graph or gives something else; names the first layer at fault. Or the
            engine refuses every random batch. Nothing is written.
        TraceError: a layer does something that can't be written down; names the layer.
        NonFiniteError: a parameter is NaN or infinite, or an output is: everywhere, or for a sample that is finite.
        ArgumentError: an opset or target out of reach, or an argument of the wrong kind.

    >>> import lamella as lm
    >>> from lamella_layers import Activation, Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,))
    >>> report = export(model, "model.onnx", append=Activation("softmax"))
    >>> report.agrees, report.opset
    (True, 21)
    """
    need_model(model, "export")
    path = as_path(path, "export")
    opset = resolve(opset, target)
    properties = as_properties(metadata)
    if append is not None:
        model = model.appended(append)
    names = model.output_names
    size = sum(array.nbytes for array in (*model.parameters.values(), *model.state.values()))
    if size > LARGEST:
        raise ArgumentError(
            f"export: the model's arrays take {size:,} bytes; an ONNX file of one piece holds less than 2 GiB"
        )
    given = None if samples is None else as_inputs(model.input_names, model.input_specs, samples)
    need_finite_values(model)
    if given is not None:
        row_count(given, "samples")
    with nothing_written(path):
        proto, proven = _agreed(model, names, opset, given)
    return write_proven(path, proto, opset, proven, properties)


class Proven(NamedTuple):
    """What a graph was compared on, and how it agrees."""

    names: Sequence[str]  # of the outputs
    probes: Probes
    evidence: Sequence[Evidence]
    agreements: Sequence[Agreement]


def write_proven(
    path: Path, proto: onnx.ModelProto, opset: int, proven: Proven, metadata: Mapping[str, str]
) -> ParityReport:
    """Write a graph that agrees, with its report and its proof."""
    report = ParityReport(str(path), opset, proto.ir_version, versions(), tuple(proven.agreements))
    of_proof = next(batch for batch in proven.evidence if batch.data == f"batch of {BATCH}")
    helper.set_model_props(proto, {**metadata, REPORT: report.to_json()})
    proof, beside = make_proof(proto, of_proof, proven.probes, proven.names)
    proto.metadata_props.add(key=PROOF, value=proof)
    write(path, proto.SerializeToString(), beside)
    return report


@contextlib.contextmanager
def nothing_written(path: Path) -> Iterator[None]:
    """Say in every `ParityError` that there is no file."""
    try:
        yield
    except ParityError as error:
        raise ParityError(f"{path} is not written: {error}") from error


def _agreed(model: Model, names: tuple[str, ...], opset: int, samples: Arrays | None) -> tuple[onnx.ModelProto, Proven]:
    """Trace a model into a graph that agrees with the engine; with it, return what was compared, and how it agrees."""
    trace, loaded = _loaded(model, names, opset)
    exact = model.copy(dtype="float64", backend="numpy")
    probes, evidence = _first_accepted(model, exact, candidates(model, samples))
    if samples is not None and len(samples[0]):
        evidence += predicted(model, exact, {f"{len(samples[0])} samples": samples})
    need_finite_results(model, trace, names, evidence, evidence[len(BATCHES)] if len(evidence) > len(BATCHES) else None)
    agreements = examine(loaded, evidence, names)
    if not all(row.agrees for row in agreements):
        trace, loaded = _loaded(model, names, opset, stable=True)
        agreements = examine(loaded, evidence, names)
    wrong = next((row for row in agreements if not row.agrees), None)
    if wrong is not None:
        batch = next(batch for batch in evidence if batch.data == wrong.data)
        raise ParityError(
            f"output {wrong.output!r} of onnxruntime differs from the engine's by {wrong.error:.3g} where "
            f"{wrong.allowed:.3g} is allowed; {blame(trace, model, exact, batch.inputs, batch.data)}"
            f"{_inexact(batch, names.index(wrong.output))}"
        )
    return trace.proto, Proven(names, probes, evidence, agreements)


def _loaded(
    model: Model, names: tuple[str, ...], opset: int, *, stable: bool = False
) -> tuple[Trace, onnxruntime.InferenceSession]:
    """Trace a model, check the graph, and load it into onnxruntime."""
    trace = trace_model(model, opset, names, stable=stable)
    proto = trace.proto
    if what := not_valid(proto):
        raise ParityError(f"the graph is not valid ONNX: {what}")
    return trace, session(proto.SerializeToString())


def _first_accepted(model: Model, exact: Model, candidates: Iterable[Probes]) -> tuple[Probes, list[Evidence]]:
    """The first probes that the engine accepts, and its results for the batches drawn from them."""
    refusal: LamellaError | None = None
    for probes in candidates:
        try:
            return probes, predicted(model, exact, probes.batches(SEED))
        except LamellaError as error:  # what the engine refuses is nothing to compare on
            refusal = refusal or error
    raise ParityError(
        "the engine itself refuses all random batches. Likely fix: export(..., samples=...) with data that "
        f"model.predict takes, or low and high in lamella.Input. What it said first: {refusal}"
    ) from refusal


def _inexact(batch: Evidence, output: int) -> str:
    """What the error adds where the engine's own float32 result is too inexact to compare with."""
    error = engine_error(batch.e32[output], batch.e64[output])
    if error <= PLAUSIBLE:
        return ""
    return (
        f". The engine's own result in float32 is off by {error:.2g} of the row's largest value, so no graph can agree "
        "with it. Likely fix: bring inputs near 0 before the first layer, as Normalization does, or use dtype='float64'"
    )


def as_properties(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return texts by name for a file's metadata."""
    if not isinstance(metadata, Mapping | None):
        raise ArgumentError(f"export: metadata: expected a dict of texts by name, got {shown(metadata)}")
    for name, value in (metadata or {}).items():
        if not _is_text(name) or not _is_text(value) or name.startswith("lamella."):
            raise ArgumentError(
                f"export: metadata: expected texts that UTF-8 can hold, by name, where names starting with 'lamella.' "
                f"are taken; got {name!r}: {value!r}"
            )
    return dict(metadata or {})


def _is_text(value: Any) -> bool:
    """Whether a value is a string that can stand in a file; one with half of a surrogate pair can't."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()
