"""The proof that a file carries, and its replay: inputs to draw again, and what the engine gave for them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lamella import DataError, Model
from lamella_onnx.parity import (
    BATCHES,
    Agreement,
    Array,
    Arrays,
    ParityError,
    ParityReport,
    Range,
    compare,
    draw,
    examine,
    predict,
    run,
    session,
    versions,
)

__all__ = ["PROOF", "REPORT", "make_proof", "proof_path", "verify"]

REPORT, PROOF = "lamella.report", "lamella.proof"
SEED, BATCH = 0, 2
_LARGEST_INSIDE = 64 * 1024  # a longer proof stands in a file beside the model


def proof_path(path: Path) -> Path:
    """Where a proof stands that is too long for the model's own file."""
    return path.with_name(f"{path.name}.proof")


def make_proof(model: Model, exact: Model, drawn: tuple[Range, ...], seed: int) -> tuple[str, bytes | None]:
    """Return the proof for the metadata, and, if it is too long for that, the content of the file beside the model."""
    inputs = draw(drawn, BATCH, seed)
    results = zip(model.output_names, predict(model, inputs), predict(exact, inputs), strict=True)
    proof = json.dumps(
        {
            "seed": seed,
            "batch": BATCH,
            "inputs": [dataclasses.asdict(row) for row in drawn],
            "outputs": [{"name": name, "value": _packed(e32), "exact": _packed(e64)} for name, e32, e64 in results],
        }
    )
    if len(proof) <= _LARGEST_INSIDE:
        return proof, None
    return json.dumps({"sha256": hashlib.sha256(proof.encode()).hexdigest()}), proof.encode()


def _packed(array: Array) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "shape": array.shape, "data": base64.b64encode(little.tobytes()).decode()}


def _unpacked(packed: Mapping[str, Any]) -> Array:
    dtype = np.dtype(packed["dtype"])
    flat = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype.newbyteorder("<"))
    return flat.astype(dtype).reshape(packed["shape"])


def verify(path: str | os.PathLike[str], model: Model | None = None) -> ParityReport:
    """Run an exported file on the inputs of its proof and compare with what the engine gave then.

    With a model, also compare with what the model gives now, on batches of 1, 2 and 7.

    Raises:
        ParityError: onnxruntime gives something else: the file or the model was changed, or the runtime differs.
        DataError: no ONNX file, one without a proof, or one of a model with other inputs or outputs.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
        onnx.checker.check_model(proto)
    except Exception as error:  # the parser's exception belongs to protobuf, not to onnx
        raise DataError(f"verify {path}: this is no ONNX file, or it is damaged ({error})") from error
    drawn, inputs, recorded = _proof(path, {prop.key: prop.value for prop in proto.metadata_props})
    _same_names(path, "the file's inputs", [v.name for v in proto.graph.input], [row.name for row in drawn])
    _same_names(path, "the file's outputs", [v.name for v in proto.graph.output], list(recorded))
    loaded = session(content)
    agreements = [
        Agreement(name, "proof", got.size, *compare(got, *recorded[name]))
        for name, got in zip(recorded, run(loaded, inputs), strict=True)
    ]
    if model is not None:
        own = [(name, spec.shape, spec.dtype) for name, spec in zip(model.input_names, model.input_specs, strict=True)]
        _same_names(path, "the model's inputs", own, [(row.name, row.shape, row.dtype) for row in drawn])
        _same_names(path, "the model's outputs", list(model.output_names), list(recorded))
        exact = model.copy(dtype="float64", backend="numpy")
        batches = {f"batch of {size}": draw(drawn, size, SEED) for size in BATCHES}
        agreements += examine(loaded, model, exact, batches)
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


def _proof(path: Path, metadata: dict[str, str]) -> tuple[tuple[Range, ...], Arrays, dict[str, tuple[Array, Array]]]:
    """What to draw, the inputs drawn, and the recorded outputs by name, in the model's dtype and in float64."""
    if PROOF not in metadata:
        raise DataError(f"verify {path}: the file carries no proof; it was not written by lamella_onnx.export")
    text = metadata[PROOF]
    try:
        proof = json.loads(text)
        if "sha256" in proof:
            text = proof_path(path).read_text()
            if hashlib.sha256(text.encode()).hexdigest() != proof["sha256"]:
                raise DataError(f"verify {path}: {proof_path(path)} is not the proof that was written with the file")
            proof = json.loads(text)
        drawn = tuple(Range(**{**row, "shape": tuple(row["shape"])}) for row in proof["inputs"])
        recorded = {row["name"]: (_unpacked(row["value"]), _unpacked(row["exact"])) for row in proof["outputs"]}
        return drawn, draw(drawn, proof["batch"], proof["seed"]), recorded
    except FileNotFoundError:
        raise DataError(f"verify {path}: the proof stands in {proof_path(path)}, which is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"verify {path}: the proof is damaged ({type(error).__name__}: {error})") from error


def _same_names(path: Path, what: str, got: list[Any], expected: list[Any]) -> None:
    if got != expected:
        raise DataError(f"verify {path}: {what} are {got}; the proof is for {expected}. Is this the right model?")
