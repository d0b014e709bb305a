"""Export: trace, check, compare with the engine, and only then write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from lamella import ArgumentError, Layer, Model, registry
from lamella.archive import write_atomically
from lamella.data import as_inputs
from lamella_onnx.parity import (
    BATCHES,
    ParityError,
    ParityReport,
    blame,
    draw,
    examine,
    ranges,
    session,
    versions,
)
from lamella_onnx.proof import PROOF, REPORT, SEED, digest, make_proof, need_model, proof_path, proof_paths
from lamella_onnx.target import resolve
from lamella_onnx.trace import trace_model

__all__ = ["export"]

LARGEST = 2**31 - 2**22  # bytes of arrays; protobuf takes messages below 2 GiB, graph and proof included


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    target: str | None = None,
    samples: Any = None,
    append: Layer | Model | Sequence[Layer | Model] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ParityReport:
    """Write a model as an ONNX file, once onnxruntime has given the engine's results.

    The file carries its proof, which `verify` replays; a proof of more than 64 kB stands beside the file, as
    ``<file>.<digest>.proof``. It guards against damage and against runtimes that differ. It is no signature: whoever
    changes the file on purpose can write a proof to go with it.

    Arguments:
        path: where to write; an existing file and its proof are replaced whole, or stay.
        opset: the operator set, from 18; by default 21, or the newest that the target reads.
        target: the oldest runtime that must read the file, such as ``"onnxruntime==1.20"``.
        samples: inputs to compare on, as for ``model.predict``, beside random batches of 1, 2 and 7; random floats
            are then drawn from the samples' range. Without samples, and where the input's spec has no range either,
            they are drawn from [-1, 1), for the batch of 7 from [-10, 10).
        append: a layer or model, or several, that the file has after the model's own, such as
            ``Activation("softmax")``.
        metadata: texts by name for the file's metadata.

    Raises:
        ParityError: onnxruntime refuses the graph or differs; names the first layer at fault. Nothing is written.
        TraceError: a layer does something that can't be written down; names the layer.
        ArgumentError: an opset or target out of reach, or an argument of the wrong kind.

    >>> import lamella as lm
    >>> from lamella_layers import Activation, Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,))
    >>> report = export(model, "model.onnx", append=Activation("softmax"))
    >>> report.agrees, report.opset
    (True, 21)
    """
    need_model(model, "export")
    path = Path(path)
    opset = resolve(opset, target)
    properties = _properties(metadata)
    if append is not None:
        model = _extended(model, append)
    size = sum(array.nbytes for array in (*model.parameters.values(), *model.state.values()))
    if size > LARGEST:
        raise ArgumentError(
            f"export: the model's arrays take {size:,} bytes; an ONNX file of one piece holds less than 2 GiB"
        )
    given = None if samples is None else as_inputs(model.input_names, model.input_specs, samples)
    trace = trace_model(model, opset)
    proto = trace.proto
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{path} is not written: the graph is not valid ONNX: {error}") from error

    exact = model.copy(dtype="float64", backend="numpy")
    drawn = ranges(model, given)
    batches = {f"batch of {size}": draw(drawn, size, SEED) for size in BATCHES}
    if given is not None and len(given[0]):
        batches[f"{len(given[0])} samples"] = given
    try:
        agreements = examine(session(proto.SerializeToString()), model, exact, batches)
    except ParityError as error:
        raise ParityError(f"{path} is not written: {error}") from error
    wrong = next((row for row in agreements if not row.agrees), None)
    if wrong is not None:
        reason = blame(trace, model, exact, batches[wrong.data], wrong.data)
        raise ParityError(
            f"{path} is not written: output {wrong.output!r} of onnxruntime differs from the engine's by "
            f"{wrong.error:.3g} where {wrong.allowed:.3g} is allowed; {reason}"
        )
    report = ParityReport(str(path), opset, proto.ir_version, versions(), tuple(agreements))
    proof, beside = make_proof(model, exact, drawn, SEED)
    helper.set_model_props(proto, {**properties, REPORT: report.to_json(), PROOF: proof})
    _write(path, proto.SerializeToString(), beside)
    return report


def _write(path: Path, content: bytes, proof: bytes | None) -> None:
    """Write a file and the proof beside it, or neither.

    The proof comes first, under a name of its own, so that at any moment the file that stands there has its proof.
    """
    beside = None if proof is None else proof_path(path, digest(proof))
    known = beside is not None and beside.exists()
    try:
        if beside is not None and proof is not None:
            write_atomically(beside, proof)
        write_atomically(path, content)
    except BaseException:
        if beside is not None and not known:
            beside.unlink(missing_ok=True)
        raise
    for old in proof_paths(path):
        if old != beside:
            with contextlib.suppress(OSError):  # left behind, it is nobody's proof
                old.unlink()


def _properties(metadata: Mapping[str, str] | None) -> dict[str, str]:
    if not isinstance(metadata, Mapping | None):
        raise ArgumentError(f"export: metadata: expected a dict of texts by name, got {metadata!r}")
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


def _extended(model: Model, append: Any) -> Model:
    """A new model of the same layers and values, with more layers after its outputs."""
    nodes: Any = model.output_nodes
    several = isinstance(append, Iterable) and not isinstance(append, str)
    for layer in append if several else [append]:
        if not isinstance(layer, Layer | Model):
            raise ArgumentError(f"export: append: expected a layer or several, got {layer!r}{_layer_hint(layer)}")
        result = layer(*nodes)
        nodes = result if isinstance(result, tuple) else (result,)
    longer = Model(model.input_nodes, nodes, dtype=model.dtype, seed=model.seed, backend=model.backend)
    longer.copy_values(model)
    return longer


def _layer_hint(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, Layer):
        return f"; did you mean {given.__name__}(...)?"
    if isinstance(given, str) and given in {entry.name for entry in registry.entries("activations")}:
        return f"; did you mean Activation({given!r})?"
    return ""
