"""The proof that a file carries, and its replay: inputs to draw again, and what the engine gave for them.

A proof guards against damage, and against runtimes that differ. It is no signature: whoever can write the file can
write a proof to go with it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from lamella import ArgumentError, DataError, Layer, Model
from lamella.arguments import flag, number
from lamella.backends.namespace import DTYPE_NAMES
from lamella.errors import shown
from lamella_onnx.external import external_arrays, fetch
from lamella_onnx.files import as_path, digest, proof_path, read
from lamella_onnx.isolation import outputs
from lamella_onnx.parity import Agreement, Array, Evidence, ParityReport, agreements, compare, predicted, versions
from lamella_onnx.probes import BATCHES, Probes, Range
from lamella_onnx.rounding import Rounding, near
from lamella_onnx.runtime import ParityError
from lamella_onnx.seal import PROOF, differences, seal
from lamella_onnx.training.manifest import MANIFEST
from lamella_onnx.validity import in_one_line

__all__ = ["BATCH", "SEED", "has_changed", "make_proof", "need_model", "verify"]

SEED, BATCH = 0, 2
_LARGEST_INSIDE = 64 * 1024  # a longer proof stands in a file beside the model
_LARGEST_INPUTS = 2**29  # bytes that a proof may ask to draw
_WRONG = (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError)  # in what is no proof
_ELEMENTS = {helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in DTYPE_NAMES} | {onnx.TensorProto.STRING}


class _Recorded(NamedTuple):
    """What a proof records of an output: the engine's result in the model's dtype and in float64."""

    e32: Array
    e64: Array
    rounding: Rounding | None  # of onnxruntime, which lamella 0.1 recorded where it was large


def need_model(model: Any, where: str) -> None:
    """Raise unless this is a model."""
    if not isinstance(model, Model):
        fix = "; put it into lamella.Sequential([...], input_shape=...)" if isinstance(model, Layer) else ""
        raise ArgumentError(f"{where}: model: expected a lamella.Model, got {shown(model)}{fix}")


def make_proof(
    proto: onnx.ModelProto, evidence: Evidence, probes: Probes, names: Sequence[str]
) -> tuple[str, bytes | None]:
    """Return the proof for the metadata, and, if it is too long for that, the content of the file beside the model.

    Arguments:
        proto: the graph, with all other metadata.
        evidence: the batch that is recorded, and what the engine gave for it.
        probes: what it was drawn from.
        names: those of the outputs.
    """
    results = zip(names, evidence.e32, evidence.e64, strict=True)
    outputs = [{"name": name, "value": _packed(e32), "exact": _packed(e64)} for name, e32, e64 in results]
    inputs = [_described(row) for row in probes.inputs]
    sizes = {str(batch): named for batch, named in probes.sizes.items()}
    proof = {"seed": SEED, "batch": BATCH, "inputs": inputs, "sizes": sizes, "outputs": outputs}
    text = json.dumps({**proof, "seal": seal(proto, proof)})
    if len(text) <= _LARGEST_INSIDE:
        return text, None
    return json.dumps({"sha256": digest(text.encode())}), text.encode()


def _described(row: Range) -> dict[str, Any]:
    """A range as plain data; most have no values, and lamella 0.1 knows of none."""
    return {key: value for key, value in dataclasses.asdict(row).items() if key != "values" or value is not None}


def _packed(array: Array) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {"dtype": "string", "shape": array.shape, "data": array.ravel().tolist()}
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "shape": array.shape, "data": base64.b64encode(little.tobytes()).decode()}


def verify(
    path: str | os.PathLike[str], model: Model | None = None, *, external_data: bool = False, timeout: float = 60.0
) -> ParityReport:
    """Run an exported file on the inputs of its proof and compare with what the engine gave then.

    Before that, the file's hash is compared with the one in the proof: it covers graph, arrays, the metadata that was
    exported, and the proof, and finds every change. Adding metadata is none. A quantizer or an optimizer makes another
    model, which this proof is not for. Files of lamella 0.1 have no hash; the report says so.

    With a model, also compare with what the model gives now, on batches of 1, 2 and 7. That is also how to tell
    whether the file is the model's: the proof alone finds damage and runtimes that differ, but whoever changes the
    file on purpose can write another proof.

    A file may be a stranger's. Nothing that it names is opened, unless you ask for it. A graph with loops, branches,
    functions, operators that lamella's layers do not need, or much work, is checked and run in a process of its own.

    Arguments:
        external_data: whether arrays may stand in files in the model's folder; `export` never writes such.
        timeout: seconds that the process may take.

    Raises:
        ParityError: the file or the model was changed, or onnxruntime gives something else.
        DataError: this is no ONNX file, it can't be read or takes too long, its proof is missing or damaged, or the
            model has other inputs or outputs.
        FileNotFoundError: there is no such file.
        ArgumentError: ``model`` is no model.
    """
    if model is not None:
        need_model(model, "verify")
    timeout, external_data = number(timeout, "verify: timeout", above=0.0), flag(external_data, "verify: external_data")
    path = as_path(path, "verify")
    try:
        content, proto, proof = _read(path)
        if external := list(external_arrays(proto)):
            if not external_data:
                raise DataError(
                    f"the data of array {external[0].name!r} stand in another file, which lamella_onnx.export never "
                    "writes. Likely fix: verify(..., external_data=True) if you trust the file"
                )
            fetch(path, external)
            content = proto.SerializeToString()
        return _verified(path, content, proto, proof, model, timeout)
    except DataError as error:
        raise DataError(f"verify {path}: {in_one_line(error)}") from error
    except ParityError as error:
        raise ParityError(f"verify {path}: {in_one_line(error)}") from error


def _read(path: Path) -> tuple[bytes, onnx.ModelProto, dict[str, Any]]:
    """A file's content, parsed, and its proof."""
    content = read(path)
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # the parser's exception belongs to protobuf, not to onnx
        raise DataError(f"this is no ONNX file, or it is damaged ({in_one_line(error)})") from error
    if not proto.HasField("graph"):
        raise DataError("this is no ONNX file, or it is damaged (it has no graph)")
    text = {entry.key: entry.value for entry in proto.metadata_props}.get(PROOF)
    if text is None and path.with_name(MANIFEST).is_file():
        raise DataError(
            "this is a graph of a training step, and carries no proof; export_training_step compared it with the "
            "engine, and lamella_onnx.TrainingSession(folder) holds every file of the folder against its hash"
        )
    if text is None:
        raise DataError("the file carries no proof; it was not written by lamella_onnx.export")
    try:
        proof = _parsed(text)
        if "sha256" in proof:
            proof = _parsed(_beside(path, proof["sha256"]))
    except _Missing as error:
        if read(path) != content:  # it was exported anew meanwhile, and the proof with it
            return _read(path)
        raise DataError(f"the proof stands in {error}, which is missing") from None
    except DataError:  # a ValueError, but no wrong proof
        raise
    except _WRONG as error:
        raise DataError(_damaged(error)) from error
    return content, proto, proof


def has_changed(path: Path, proto: onnx.ModelProto) -> bool | None:
    """Whether a file differs from what was exported, as its seal says; None where it has none, or that is not there."""
    text = {entry.key: entry.value for entry in proto.metadata_props}.get(PROOF)
    try:
        if text is None:
            return None
        proof = _parsed(text)
        if "sha256" in proof:
            proof = _parsed(_beside(path, proof["sha256"]))
        sealed = proof.pop("seal")
        return bool(differences(proto, proof, sealed))
    except (_Missing, DataError, *_WRONG):
        return None


def _parsed(text: str | bytes) -> dict[str, Any]:
    proof: dict[str, Any] = json.loads(text)
    _need(isinstance(proof, dict), "no dict")
    return proof


def _damaged(error: Exception) -> str:
    return f"the proof is damaged ({type(error).__name__}: {error})"


class _Missing(Exception):
    """The proof beside a file is not there."""


def _beside(path: Path, sha256: str) -> bytes:
    """The proof that stands beside the file."""
    _need(re.fullmatch("[0-9a-f]{64}", sha256), f"digest {sha256!r}")
    beside = proof_path(path, sha256)
    try:
        content = read(beside)
    except FileNotFoundError:
        raise _Missing(beside) from None
    except DataError as error:
        raise DataError(f"the proof {beside}: {error}") from error
    if digest(content) != sha256:
        raise DataError(f"{beside} is not the proof that was written with the file")
    return content


def _verified(
    path: Path, content: bytes, proto: onnx.ModelProto, proof: dict[str, Any], model: Model | None, timeout: float
) -> ParityReport:
    """Compare a file with its proof, and with a model."""
    try:
        sealed = proof.pop("seal", None)
        if sealed is not None:
            _need_unchanged(proto, proof, sealed)
        probes, recorded = _taken_apart(proof)
        inputs = probes.draw(proof["batch"], proof["seed"])
    except _WRONG as error:
        raise DataError(_damaged(error)) from error
    opset = next((imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise DataError("the graph uses no operator set of ONNX itself; lamella_onnx.export writes standard ones")
    arrays = {array.name for array in proto.graph.initializer}
    names = _names(given for given in proto.graph.input if given.name not in arrays)
    _same_names("the file's inputs", names, [row.name for row in probes.inputs])
    _same_names("the file's outputs", _names(proto.graph.output), list(recorded))
    evidence = []
    if model is not None:
        own = [(name, spec.shape, spec.dtype) for name, spec in zip(model.input_names, model.input_specs, strict=True)]
        _same_names("the model's inputs", own, [(row.name, row.shape, row.dtype) for row in probes.inputs])
        _same_names("the model's outputs", list(model.output_names), list(recorded))
        evidence = predicted(model, model.copy(dtype="float64", backend="numpy"), probes.batches(SEED))
    has_rounding = any(output.rounding is not None for output in recorded.values())
    replayed = [*near(inputs)] if has_rounding else [inputs]
    feeds = [dict(zip(names, x, strict=True)) for x in (*replayed, *(batch.inputs for batch in evidence))]
    got = outputs(content, proto, feeds, timeout=timeout)
    rows = _with_proof(got[: len(replayed)], recorded) + _with_model(evidence, got[len(replayed) :], recorded)
    report = ParityReport(str(path), opset, proto.ir_version, versions(), tuple(rows), sealed is not None)
    if not report.agrees:
        wrong = next(row for row in rows if not row.agrees)
        raise ParityError(
            f"output {wrong.output!r} on the {wrong.data} differs by {wrong.error:.3g} where "
            f"{wrong.allowed:.3g} is allowed. The {'file' if wrong.data == 'proof' else 'file or the model'} was "
            f"changed after the export, or onnxruntime {report.versions['onnxruntime']} computes something else"
        )
    return report


def _need_unchanged(proto: onnx.ModelProto, proof: dict[str, Any], sealed: dict[str, Any]) -> None:
    """Raise unless a file and its proof are what the seal says."""
    _need(_is_text(sealed["sha256"]) and all(map(_is_text, sealed["parts"].values())), "seal")
    if differing := differences(proto, proof, sealed):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ParityError(
            f"the file was changed after the export: {', '.join(differing[:3])}{more}. Only metadata may be added; "
            "what a quantizer or an optimizer makes of a file is another model, which this proof is not for"
        )


def _with_proof(got: Sequence[Mapping[str, Array]], recorded: dict[str, _Recorded]) -> list[Agreement]:
    """How onnxruntime agrees with what is recorded."""
    found = []
    for name, (e32, e64, rounding) in recorded.items():
        values = [one[name] for one in got]
        how = compare(values[0], e32, e64, by_row=True) if rounding is None else rounding.compare(values, e32, e64)
        found.append(Agreement(name, "proof", values[0].size, *how))
    return found


def _with_model(
    evidence: Sequence[Evidence], got: Sequence[Mapping[str, Array]], recorded: dict[str, _Recorded]
) -> list[Agreement]:
    """How onnxruntime agrees with what the model gives now.

    Where onnxruntime's rounding is recorded, the rule is no measure of the graph: there the model is compared with the
    proof, as the graph was.
    """
    found = [row for pair in zip(evidence, got, strict=True) for row in agreements(*pair, tuple(recorded))]
    found = [row for row in found if recorded[row.output].rounding is None]
    for batch in evidence:
        for (name, then), now in zip(recorded.items(), batch.e32, strict=True):
            if then.rounding is not None and batch.data == f"batch of {BATCH}":
                found.append(Agreement(name, batch.data, now.size, *compare(now, then.e32, then.e64, by_row=True)))
    return found


def _names(values: Iterable[onnx.ValueInfoProto]) -> list[str]:
    """The names of inputs or outputs, all of which are arrays."""
    names = []
    for value in values:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            said = (kind or "a value without a type").removesuffix("_type")
            raise DataError(f"{value.name!r} is no array but {said}; lamella_onnx.export writes arrays only")
        if value.type.tensor_type.elem_type not in _ELEMENTS:
            raise DataError(f"{value.name!r} has elements of a kind that lamella does not know")
        names.append(value.name)
    return names


def _taken_apart(proof: dict[str, Any]) -> tuple[Probes, dict[str, _Recorded]]:
    """What to draw, and what is recorded of outputs, by name."""
    unknown = proof.keys() - {"seed", "batch", "inputs", "sizes", "outputs"}
    _need(not unknown, f"unknown entries {', '.join(sorted(unknown))}; a newer lamella may have written them")
    probes = Probes(tuple(map(_range, proof["inputs"])), _sizes(proof.get("sizes", {})))
    batch, seed = proof["batch"], proof["seed"]
    _need(_is_size(batch) and batch and _is_size(seed), f"batch {batch!r}, seed {seed!r}")
    size = max(map(probes.bytes, (batch, *BATCHES)))
    _need(size <= _LARGEST_INPUTS, f"inputs of {size:,} bytes")
    recorded = dict(map(_recorded, proof["outputs"]))
    _need(recorded and len(recorded) == len(proof["outputs"]), "no outputs, or two of one name")
    return probes, recorded


def _range(packed: dict[str, Any]) -> Range:
    row = Range(**{**packed, "shape": tuple(packed["shape"])})
    sizes_known = all(_is_size(n) or isinstance(n, str) for n in row.shape) and row.shape[0] == "N"
    _need(isinstance(row.name, str) and row.dtype in (*DTYPE_NAMES, "string") and sizes_known, f"input {packed!r}")
    if row.values is not None or row.dtype == "string":
        _need(isinstance(row.values, list) and row.values, f"the values of input {row.name!r}")
        kinds = {"string": (str,), "bool": (bool,)}.get(row.dtype, (int, float))
        _need(all(type(one) in kinds for one in row.values or ()), f"the values of input {row.name!r}")
    if row.low is not None or row.high is not None:
        _need(_is_limit(row.low, row.shape) and _is_limit(row.high, row.shape), f"input {row.name!r}")
    return row


def _is_limit(limit: Any, shape: tuple[int | str, ...]) -> bool:
    """Whether this is a finite number, or one for each place of a row."""
    array = np.asarray(limit, "float64")
    axes = zip(array.shape, shape[1:], strict=True) if array.ndim else ()
    return bool(np.isfinite(array).all()) and all(have in (1, want) for have, want in axes)


def _sizes(packed: dict[str, dict[str, int]]) -> dict[int, dict[str, int]]:
    """The sizes of axes with a name for each batch; older proofs leave them to follow from the batch."""
    known = isinstance(packed, dict) and all(isinstance(named, dict) for named in packed.values())
    _need(known and all(_is_size(n) for named in packed.values() for n in named.values()), f"sizes {packed!r}")
    return {int(batch): {name: size for name, size in named.items() if name != "N"} for batch, named in packed.items()}


def _recorded(packed: dict[str, Any]) -> tuple[str, _Recorded]:
    name, value, exact = packed["name"], _unpacked(packed["value"]), _unpacked(packed["exact"])
    _need(isinstance(name, str) and value.ndim and value.shape == exact.shape, f"output {name!r}")
    if "rounding" not in packed:
        return name, _Recorded(value, exact, None)
    rows, mean = np.asarray(packed["rounding"]["rows"], "float64"), _unpacked(packed["rounding"]["mean"])
    sound = rows.shape == value.shape[:1] and np.isfinite(rows).all() and mean.shape == value.shape
    _need(sound, f"the rounding of output {name!r}")
    return name, _Recorded(value, exact, Rounding(rows, mean))


def _unpacked(packed: dict[str, Any]) -> Array:
    if packed["dtype"] == "string":
        _need(isinstance(packed["data"], list) and all(map(_is_text, packed["data"])), "strings")
        longest = max(map(len, packed["data"]), default=0)
        _need(4 * longest * len(packed["data"]) <= _LARGEST_INPUTS, f"strings of up to {longest:,} letters")
        return np.array(packed["data"], "str").reshape(packed["shape"])
    _need(packed["dtype"] in DTYPE_NAMES and all(map(_is_size, packed["shape"])), f"an array of {packed['dtype']!r}")
    dtype = np.dtype(packed["dtype"])
    flat = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype.newbyteorder("<"))
    return flat.astype(dtype).reshape(packed["shape"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _need(sound: Any, what: str) -> None:
    if not sound:
        raise ValueError(what)


def _same_names(what: str, got: list[Any], expected: list[Any]) -> None:
    if got != expected:
        raise DataError(f"{what} are {got}; the proof is for {expected}. Is this the right model?")
