"""The seal of an exported file: hashes of its graph, arrays, metadata and proof, so that `verify` sees every change.

Hashes are of what the file says, field by field, and not of its bytes: whoever reads and saves it again unchanged, as
``onnx.save`` does, keeps the seal whole. Metadata may be added, which computes nothing; all else is a change.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import onnx

__all__ = ["PROOF", "REPORT", "differences", "seal"]

REPORT, PROOF = "lamella.report", "lamella.proof"
_METADATA = "metadata "
_SHORT = 8  # digits that are kept of each part's hash, to name what differs


def seal(proto: onnx.ModelProto, proof: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal that goes into a proof: one hash of everything, and the beginning of each part's."""
    parts = _parts(proto, proof)
    return {"sha256": _overall(parts), "parts": _shortened(parts)}


def differences(proto: onnx.ModelProto, proof: Mapping[str, Any], sealed: Mapping[str, Any]) -> list[str]:
    """Return what of a file differs from what its seal says; nothing if the seal is whole."""
    then = sealed["parts"]
    now = {
        name: digest
        for name, digest in _parts(proto, proof).items()
        if name in then or not name.startswith(_METADATA)  # an entry may be added
    }
    short = _shortened(now)
    if short == then and _overall(now) == sealed["sha256"]:
        return []
    gone = [f"{name} is gone" for name in then if name not in short]
    differing = [f"{name} {'differs' if name in then else 'is new'}" for name in short if short[name] != then.get(name)]
    return [*differing, *gone] or ["the seal itself differs"]


def _parts(proto: onnx.ModelProto, proof: Mapping[str, Any]) -> dict[str, str]:
    """The sha256 of each part of a file, by what messages call it."""
    parts: dict[str, list[Any]] = defaultdict(list)
    for field, value in proto.ListFields():
        if field.name not in ("graph", "metadata_props"):
            parts[field.name].append(_plain(value))
    for field, value in proto.graph.ListFields():
        if field.name not in ("node", "initializer"):
            parts[f"graph.{field.name}"].append(_plain(value))
    for place, node in enumerate(proto.graph.node):  # their names start with those of their layers
        parts[f"nodes {node.name.partition('/')[0]}"].append((place, _plain(node)))
    for array in proto.graph.initializer:
        parts[f"array {array.name}"].append(_plain(array))
    for entry in proto.metadata_props:
        if entry.key != PROOF:
            parts[f"{_METADATA}{entry.key}"].append(_plain(entry))
    parts["proof"].append(json.dumps(proof, sort_keys=True))
    return {name: _sha256(repr(what).encode()) for name, what in parts.items()}


def _plain(value: Any) -> Any:
    """A field's value without what depends on who wrote it: messages and bytes as their hashes, field by field."""
    if hasattr(value, "ListFields"):  # a message
        fields = [
            (field.number, _plain(inner))
            for field, inner in value.ListFields()  # in the order of numbers
            if field.name != "data_location" or inner  # which says "here" where it says nothing
        ]
        return _sha256(repr(fields).encode())
    if isinstance(value, bytes):
        return _sha256(value)
    return value if isinstance(value, str | int | float) else list(map(_plain, value))


def _shortened(parts: Mapping[str, str]) -> dict[str, str]:
    return {name: digest[:_SHORT] for name, digest in parts.items()}


def _overall(parts: Mapping[str, str]) -> str:
    return _sha256(json.dumps(parts, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
