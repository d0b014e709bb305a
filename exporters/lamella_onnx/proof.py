"""The proof that a file carries, and its replay: inputs to draw again, and what the engine gave for them.

A proof guards against damage, and against runtimes that differ. It is no signature: whoever can write the file can
write a proof to go with it.
"""

from __future__ import annotations

import base64
import dataclasses
import glob
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from lamella import ArgumentError, DataError, Layer, Model
from lamella.backends.namespace import DTYPE_NAMES
from lamella_onnx.parity import Agreement, Array, Arrays, Evidence, ParityReport, compare, examine, predicted, versions
from lamella_onnx.probes import BATCHES, Probes, Range
from lamella_onnx.rounding import Rounding, near
from lamella_onnx.runtime import ParityError, run, session

__all__ = ["PROOF", "REPORT", "SEED", "digest", "make_proof", "need_model", "proof_path", "proof_paths", "verify"]

REPORT, PROOF = "lamella.report", "lamella.proof"
SEED, BATCH = 0, 2
_LARGEST_INSIDE = 64 * 1024  # a longer proof stands in a file beside the model
_LARGEST_INPUTS = 2**31  # bytes that a proof may ask to draw


class _Recorded(NamedTuple):
    """What a proof records of an output: the engine's result in the model's dtype and in float64."""

    e32: Array
    e64: Array
    rounding: Rounding | None  # of onnxruntime, which lamella 0.1 recorded where it was large


def digest(proof: bytes) -> str:
    """Return the digest that identifies a proof."""
    return hashlib.sha256(proof).hexdigest()


def proof_path(path: Path, sha256: str) -> Path:
    """Return where a proof stands that is too long for the model's file; the digest keeps those of others apart."""
    return path.with_name(f"{path.name}.{sha256[:8]}.proof")


def proof_paths(path: Path) -> list[Path]:
    """Return all proofs that stand beside a file."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.proof"))


def need_model(model: Any, where: str) -> None:
    """Raise unless this is a model."""
    if not isinstance(model, Model):
        fix = "; put it into lamella.Sequential([...], input_shape=...)" if isinstance(model, Layer) else ""
        raise ArgumentError(f"{where}: model: expected a lamella.Model, got {model!r}{fix}")


def make_proof(evidence: Evidence, probes: Probes, names: Sequence[str]) -> tuple[str, bytes | None]:
    """Return the proof for the metadata, and, if it is too long for that, the content of the file beside the model.

    Arguments:
        evidence: the batch that is recorded, and what the engine gave for it.
        probes: what it was drawn from.
        names: those of the outputs.
    """
    results = zip(names, evidence.e32, evidence.e64, strict=True)
    outputs = [{"name": name, "value": _packed(e32), "exact": _packed(e64)} for name, e32, e64 in results]
    proof = json.dumps(
        {
            "seed": SEED,
            "batch": BATCH,
            "inputs": [dataclasses.asdict(row) for row in probes.inputs],
            "sizes": probes.sizes,
            "outputs": outputs,
        }
    )
    if len(proof) <= _LARGEST_INSIDE:
        return proof, None
    return json.dumps({"sha256": digest(proof.encode())}), proof.encode()


def _packed(array: Array) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "shape": array.shape, "data": base64.b64encode(little.tobytes()).decode()}


def verify(path: str | os.PathLike[str], model: Model | None = None) -> ParityReport:
    """Run an exported file on the inputs of its proof and compare with what the engine gave then.

    With a model, also compare with what the model gives now, on batches of 1, 2 and 7. That is also how to tell
    whether the file is the model's: the proof alone finds damage and runtimes that differ, but whoever changes the
    file on purpose can write another proof.

    Raises:
        ParityError: onnxruntime gives something else: the file or the model was changed, or the runtime differs.
        DataError: this is no ONNX file, its proof is missing or damaged, or the model has other inputs or outputs.
        ArgumentError: ``model`` is no model.
    """
    if model is not None:
        need_model(model, "verify")
    path = Path(path)
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
        onnx.checker.check_model(proto)
    except Exception as error:  # the parser's exception belongs to protobuf, not to onnx
        raise DataError(f"verify {path}: this is no ONNX file, or it is damaged ({error})") from error
    probes, inputs, recorded = _proof(path, {prop.key: prop.value for prop in proto.metadata_props})
    loaded = session(content)
    _same_names(path, "the file's inputs", [v.name for v in loaded.get_inputs()], [row.name for row in probes.inputs])
    _same_names(path, "the file's outputs", [v.name for v in loaded.get_outputs()], list(recorded))
    agreements = _agreements_with_proof(inputs, recorded, loaded)
    if model is not None:
        own = [(name, spec.shape, spec.dtype) for name, spec in zip(model.input_names, model.input_specs, strict=True)]
        _same_names(path, "the model's inputs", own, [(row.name, row.shape, row.dtype) for row in probes.inputs])
        _same_names(path, "the model's outputs", list(model.output_names), list(recorded))
        agreements += _agreements_with_model(model, probes, loaded, recorded)
    opset = next(imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx"))
    report = ParityReport(str(path), opset, proto.ir_version, versions(), tuple(agreements))
    if not report.agrees:
        wrong = next(row for row in agreements if not row.agrees)
        raise ParityError(
            f"verify {path}: output {wrong.output!r} on the {wrong.data} differs by {wrong.error:.3g} where "
            f"{wrong.allowed:.3g} is allowed. The {'file' if wrong.data == 'proof' else 'file or the model'} was "
            f"changed after the export, or onnxruntime {report.versions['onnxruntime']} computes something else"
        )
    return report


def _agreements_with_proof(
    inputs: Arrays, recorded: dict[str, _Recorded], loaded: onnxruntime.InferenceSession
) -> list[Agreement]:
    """How onnxruntime agrees with what is recorded."""
    has_rounding = any(output.rounding is not None for output in recorded.values())
    names = [given.name for given in loaded.get_inputs()]
    runs = [run(loaded, dict(zip(names, x, strict=True))) for x in (near(inputs) if has_rounding else [inputs])]
    found = []
    for name, (e32, e64, rounding) in recorded.items():
        got = [one[name] for one in runs]
        how = compare(got[0], e32, e64, by_row=True) if rounding is None else rounding.compare(got, e32, e64)
        found.append(Agreement(name, "proof", got[0].size, *how))
    return found


def _agreements_with_model(
    model: Model, probes: Probes, loaded: onnxruntime.InferenceSession, recorded: dict[str, _Recorded]
) -> list[Agreement]:
    """How onnxruntime agrees with what the model gives now.

    Where onnxruntime's rounding is recorded, the rule is no measure of the graph: there the model is compared with the
    proof, as the graph was.
    """
    evidence = predicted(model, model.copy(dtype="float64", backend="numpy"), probes.batches(SEED))
    found = [row for row in examine(loaded, evidence, model.output_names) if recorded[row.output].rounding is None]
    batch = next(batch for batch in evidence if batch.data == f"batch of {BATCH}")
    for name, now in zip(model.output_names, batch.e32, strict=True):
        then = recorded[name]
        if then.rounding is not None:
            found.append(Agreement(name, batch.data, now.size, *compare(now, then.e32, then.e64, by_row=True)))
    return found


def _proof(path: Path, metadata: dict[str, str]) -> tuple[Probes, Arrays, dict[str, _Recorded]]:
    """What to draw, the inputs drawn, and what is recorded of outputs, by name."""
    if PROOF not in metadata:
        raise DataError(f"verify {path}: the file carries no proof; it was not written by lamella_onnx.export")
    try:
        proof = json.loads(metadata[PROOF])
        if "sha256" in proof:
            proof = json.loads(_beside(path, proof["sha256"]))
        probes = Probes(tuple(map(_range, proof["inputs"])), _sizes(proof.get("sizes", {})))
        batch, seed = proof["batch"], proof["seed"]
        _need(_is_size(batch) and batch and _is_size(seed), f"batch {batch!r}, seed {seed!r}")
        size = max(map(probes.bytes, (batch, *BATCHES)))
        _need(size <= _LARGEST_INPUTS, f"inputs of {size:,} bytes")
        return probes, probes.draw(batch, seed), dict(map(_recorded, proof["outputs"]))
    except DataError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"verify {path}: the proof is damaged ({type(error).__name__}: {error})") from error


def _beside(path: Path, sha256: str) -> bytes:
    """The proof that stands beside the file."""
    _need(re.fullmatch("[0-9a-f]{64}", sha256), f"digest {sha256!r}")
    beside = proof_path(path, sha256)
    try:
        content = beside.read_bytes()
    except FileNotFoundError:
        raise DataError(f"verify {path}: the proof stands in {beside}, which is missing") from None
    if digest(content) != sha256:
        raise DataError(f"verify {path}: {beside} is not the proof that was written with the file")
    return content


def _range(packed: dict[str, Any]) -> Range:
    row = Range(**{**packed, "shape": tuple(packed["shape"])})
    sizes_known = all(_is_size(n) or isinstance(n, str) for n in row.shape) and row.shape[0] == "N"
    _need(isinstance(row.name, str) and row.dtype in DTYPE_NAMES and sizes_known, f"input {packed!r}")
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
    _need(isinstance(name, str) and value.shape == exact.shape, f"output {name!r}")
    if "rounding" not in packed:
        return name, _Recorded(value, exact, None)
    rows, mean = np.asarray(packed["rounding"]["rows"], "float64"), _unpacked(packed["rounding"]["mean"])
    sound = rows.shape == value.shape[:1] and np.isfinite(rows).all() and mean.shape == value.shape
    _need(sound, f"the rounding of output {name!r}")
    return name, _Recorded(value, exact, Rounding(rows, mean))


def _unpacked(packed: dict[str, Any]) -> Array:
    _need(packed["dtype"] in DTYPE_NAMES and all(map(_is_size, packed["shape"])), f"an array of {packed['dtype']!r}")
    dtype = np.dtype(packed["dtype"])
    flat = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype.newbyteorder("<"))
    return flat.astype(dtype).reshape(packed["shape"])


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _need(sound: Any, what: str) -> None:
    if not sound:
        raise ValueError(what)


def _same_names(path: Path, what: str, got: list[Any], expected: list[Any]) -> None:
    if got != expected:
        raise DataError(f"verify {path}: {what} are {got}; the proof is for {expected}. Is this the right model?")
