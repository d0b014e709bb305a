"""Export: trace, check, compare with the engine, and only then write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from lamella import ArgumentError, GraphError, LamellaError, Layer, Model, registry
from lamella.errors import did_you_mean
from lamella.files.writing import write_atomically
from lamella.protocol import Node
from lamella.protocol.inputs import as_inputs
from lamella_onnx.parity import (
    OF_RUNTIME,
    Agreement,
    Arrays,
    ParityError,
    ParityReport,
    blame,
    examine,
    predict,
    run,
    session,
    versions,
)
from lamella_onnx.probes import BATCHES, Probes, candidates
from lamella_onnx.proof import BATCH, PROOF, REPORT, SEED, digest, make_proof, need_model, proof_path, proof_paths
from lamella_onnx.rounding import Rounding, own_rounding
from lamella_onnx.target import resolve
from lamella_onnx.trace import trace_model

__all__ = ["export"]

_Appended = Layer | Model | Sequence[Layer | Model]

LARGEST = 2**31 - 2**22  # bytes of arrays; protobuf takes messages below 2 GiB, graph and proof included


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    target: str | None = None,
    samples: Any = None,
    append: _Appended | Mapping[str, _Appended] | None = None,
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
        samples: inputs to compare on, as for ``model.predict``, beside random batches of 1, 2 and 7. These then have
            the samples' range: each place of a row its own, such as each column of a table, and axes of unknown size
            one for all places. Without samples an input's ``low`` and ``high`` count, else floats are drawn from
            [-1, 1), for the batch of 7 from [-10, 10), and integers are 0 or 1.
        append: a layer or model, or several, that the file has after the model's own, such as
            ``Activation("softmax")``; or a dict of these by output, where the outputs keep their names:
            ``{"digit": Activation("softmax")}``. An appended model's outputs keep the names they have there.
        metadata: texts by name for the file's metadata.

    In random batches an axis of unknown size has one of 6 or 7, or as much as an integer given once a row may be, such
    as a length. Should the engine refuse such a batch, the samples' sizes and others follow, and lengths within them.
    Each row of each output is judged on its own scale, which is its largest result, and 1 and that of the median row at
    least: the difference may be 1e-5 of it, or, where that is more, 4 times the engine's own rounding in float32. Where
    that does not suffice, as for normalization of numbers far from 0, 4 times onnxruntime's own rounding counts, which
    is seen by moving the inputs by up to 256 units in the last place, 16 times: rounding is half of what onnxruntime's
    error then varies by, if the mean of that error is no larger, since a wrong graph stays wrong alike. What is more
    than 1e-4 of the scale counts only up to twice what one such unit does to the exact result, and up to 5e-3: an
    unstable formula is no excuse. The report tells which rule was needed.

    Raises:
        ParityError: onnxruntime refuses the graph or differs; names the first layer at fault. Or the engine refuses
            all that was drawn. Nothing is written.
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
    names = model.output_names
    if append is not None:
        model, names = _extended(model, append)
    size = sum(array.nbytes for array in (*model.parameters.values(), *model.state.values()))
    if size > LARGEST:
        raise ArgumentError(
            f"export: the model's arrays take {size:,} bytes; an ONNX file of one piece holds less than 2 GiB"
        )
    given = None if samples is None else as_inputs(model.input_names, model.input_specs, samples)
    trace = trace_model(model, opset, names)
    proto = trace.proto
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{path} is not written: the graph is not valid ONNX: {error}") from error

    exact = model.copy(dtype="float64", backend="numpy")
    samples_too = {f"{len(given[0])} samples": given} if given is not None and len(given[0]) else {}
    try:
        loaded = session(proto.SerializeToString())
        probes, batches, agreements = _first_accepted(
            candidates(model, given), lambda batches: examine(loaded, model, exact, batches, names)
        )
        agreements += examine(loaded, model, exact, samples_too, names)
        batches |= samples_too
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
    rounded = {row.output for row in agreements if row.rule == OF_RUNTIME}
    roundings: dict[str, Rounding] = {}
    if rounded:  # then the proof needs it too, on whatever machine it is replayed
        of_proof, _ = own_rounding(lambda x: run(loaded, x), lambda x: predict(exact, x), probes.draw(BATCH, SEED))
        roundings = {name: found for name, found in zip(names, of_proof, strict=True) if name in rounded}
    proof, beside = make_proof(model, exact, probes, SEED, names, roundings)
    helper.set_model_props(proto, {**properties, REPORT: report.to_json(), PROOF: proof})
    _write(path, proto.SerializeToString(), beside)
    return report


def _first_accepted(
    candidates: Iterable[Probes], examined: Callable[[dict[str, Arrays]], list[Agreement]]
) -> tuple[Probes, dict[str, Arrays], list[Agreement]]:
    """The first probes that the engine takes, the batches drawn from them, and how these agree."""
    refusal: LamellaError | None = None
    for probes in candidates:
        batches = {f"batch of {size}": probes.draw(size, SEED) for size in BATCHES}
        try:
            return probes, batches, examined(batches)
        except ParityError:
            raise
        except LamellaError as error:  # the engine's: what it refuses is nothing to compare on
            refusal = refusal or error
    raise ParityError(
        "the engine itself refuses all random batches. Likely fix: export(..., samples=...) with data that "
        f"model.predict takes, or low and high in lamella.Input. What it said first: {refusal}"
    ) from refusal


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


def _extended(model: Model, append: Any) -> tuple[Model, tuple[str, ...]]:
    """A new model of the same layers and values, with more layers after its outputs, and the names of its outputs."""
    nodes, names = model.output_nodes, model.output_names
    if isinstance(append, Mapping):
        ends = dict(zip(names, nodes, strict=True))
        for name, layers in append.items():
            if name not in ends:
                raise ArgumentError(
                    f"export: append: unknown output {name!r}; expected {', '.join(names)}."
                    f"{did_you_mean(str(name), names)}"
                )
            made, _ = _chained((ends[name],), (name,), layers)
            if len(made) != 1:
                raise ArgumentError(f"export: append: expected one output in place of {name!r}, got {len(made)}")
            ends[name] = made[0]
        nodes = tuple(ends.values())
    else:
        nodes, names = _chained(nodes, names, append)
    longer = Model(model.input_nodes, nodes, dtype=model.dtype, seed=model.seed, backend=model.backend)
    if model.parameters or model.state:
        longer.copy_values(model)
    appended = [inner for inner in longer.program.inner_models if inner not in model.program.inner_models]
    for inner in appended:
        held = any(inner in other.program.inner_models for other in appended)  # then values are the other's
        if not held and (differing := longer.differing(inner)):
            raise ArgumentError(
                f"export: append: {inner!r} and the exported model share {', '.join(sorted(differing))}, one layer "
                "object, which has other values in each. Likely fix: append copy.deepcopy(...) of it"
            )
    names = tuple(name or own for name, own in zip(names, longer.output_names, strict=True))
    clear = len({*names, *longer.input_names}) == len(names) + len(longer.input_names)
    return longer, names if clear else longer.output_names


def _chained(nodes: tuple[Node, ...], names: tuple[str, ...], layers: Any) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The nodes after one layer or several, and their names: none where a layer gives them one."""
    several = isinstance(layers, Iterable) and not isinstance(layers, str)
    for layer in layers if several else [layers]:
        if not isinstance(layer, Layer | Model):
            raise ArgumentError(f"export: append: expected a layer or several, got {layer!r}{_layer_hint(layer)}")
        try:
            result = layer(*nodes)
        except GraphError as error:
            if len(nodes) == 1 or not all(names) or isinstance(layer, Model):
                raise
            raise ArgumentError(
                f"export: append: {layer!r} can't take all {len(nodes)} outputs, {', '.join(names)}, at once. Likely "
                f"fix: say which one it follows, as in append={{{names[-1]!r}: {layer!r}}}"
            ) from error
        names = _names_after(layer, names)
        nodes = result if isinstance(result, tuple) else (result,)
        names = names or ("",) * len(nodes)
    return nodes, names


def _names_after(layer: Layer | Model, names: tuple[str, ...]) -> tuple[str, ...]:
    """What an appended model calls its outputs; those that it hands through keep their names. A layer has no say."""
    if not isinstance(layer, Model):
        return ()
    known = {id(node): name for node, name in zip(layer.input_nodes, names, strict=True)}
    own = zip(layer.output_nodes, layer.output_names, strict=True)
    return tuple(known.get(id(node), name) for node, name in own)


def _layer_hint(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, Layer):
        return f"; did you mean {given.__name__}(...)?"
    if isinstance(given, str) and given in {entry.name for entry in registry.entries("activations")}:
        return f"; did you mean Activation({given!r})?"
    return ""
