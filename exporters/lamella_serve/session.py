"""An ONNX file in onnxruntime: what it takes and gives, and its answers as NumPy arrays."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from lamella import DataError
from lamella_onnx.external import external_arrays
from lamella_onnx.files import read
from lamella_onnx.proof import has_changed
from lamella_onnx.validity import in_one_line
from lamella_serve.datatypes import DATATYPES, Array
from lamella_serve.refusals import Refusal
from lamella_serve.signature import Signature, signature_of

__all__ = ["Session", "Stop"]

Stop = onnxruntime.RunOptions  # ends a run from another thread, with `terminate = True`

_BF16 = DATATYPES["BF16"]
_SIZED_BY_VALUES = {  # operators whose work depends on values, and which of their inputs is the first to hold such
    **dict.fromkeys(
        ("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range"), 0
    ),
    **dict.fromkeys(("AffineGrid", "CenterCropPad", "Col2Im", "DFT", "Expand", "MaxUnpool", "NonMaxSuppression"), 1),
    **dict.fromkeys(("OneHot", "Pad", "Resize", "STFT", "Tile", "TopK", "Upsample"), 1),
}
_SILENT = 4  # onnxruntime's log level for fatal errors only: what goes wrong is told to whoever asked


class Session:
    """A loaded model. It answers from any thread.

    Attributes:
        signature: what it takes and gives.
        metadata: the entries of the file's metadata.
        about: what else the file says of itself: producer, description, opset, IR version, size in bytes.
        files: the other files that hold its arrays.
        changed: whether the file was changed after lamella had exported it; None where nothing tells.
        open_ended: whether the values of its inputs may say how long a run takes, so that no measurement foretells it.
        divides: whether it has divisions, perhaps of integers.
    """

    def __init__(self, path: Path, *, external_data: bool, threads: int) -> None:
        """Load a file.

        Arguments:
            external_data: whether arrays may stand in other files, in the model's folder.
            threads: how many work on one answer.

        Raises:
            DataError: it can't be read, is no ONNX file, gives what the protocol can't carry, or onnxruntime can't
                load it.
            FileNotFoundError: there is none.
        """
        content = read(path)
        proto = _parsed(content)
        self.files = _external(path, proto, external_data)
        self.signature: Signature = signature_of(proto.graph)
        self.metadata = {_text(entry.key): _text(entry.value) for entry in proto.metadata_props}
        opset = next((one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), None)
        self.about = {
            "producer": f"{_text(proto.producer_name)} {_text(proto.producer_version)}".strip(),
            "description": _text(proto.doc_string or proto.graph.doc_string),
            "opset": opset,
            "ir_version": proto.ir_version,
            "size": len(content) + sum(file.stat().st_size for file in self.files),
        }
        self.changed = has_changed(path, proto)
        self.open_ended = _is_open_ended(proto)
        self.divides = any(node.op_type in ("Div", "Mod") for node in _nodes(proto))
        del proto
        self._session = _load(str(path.resolve()) if self.files else content, threads)
        self.names = [tensor.name for tensor in self.signature.outputs]
        tensors = (*self.signature.inputs, *self.signature.outputs)
        self._needs_values = any(tensor.datatype is _BF16 for tensor in tensors)
        if self._needs_values and any(tensor.datatype.kind == "s" for tensor in tensors):
            raise DataError("it has tensors of BF16 beside strings, which can't go into onnxruntime together")

    def run(self, feeds: Mapping[str, Array], stop: Any = None) -> list[Array]:
        """Return all outputs.

        Raises:
            Refusal: onnxruntime can't do it with these inputs.
        """
        try:
            if self._needs_values:
                return self._run_values(feeds, stop)
            return self._session.run(self.names, feeds, stop)  # type: ignore[no-any-return]
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise _refusal(error) from None

    def _run_values(self, feeds: Mapping[str, Array], stop: Any) -> list[Array]:
        """Run with values of onnxruntime: NumPy has no bfloat16, which goes in and out as its bits."""
        given = {}
        for tensor in self.signature.inputs:
            array = np.ascontiguousarray(feeds[tensor.name]).reshape(feeds[tensor.name].shape)
            if tensor.datatype is _BF16:
                bits = array.view(np.uint16)
                given[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BF16.onnx)
            else:
                given[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        values = self._session.run_with_ort_values(self.names, given, stop)
        return [
            _bits(value).view(_BF16.numpy) if tensor.datatype is _BF16 else value.numpy()
            for tensor, value in zip(self.signature.outputs, values, strict=True)
        ]


def _bits(value: Any) -> Array:
    """A copy of the 16-bit elements of a value."""
    shape = tuple(value.shape())
    count = int(np.prod(shape))
    return np.frombuffer(ctypes.string_at(value.data_ptr(), 2 * count), np.uint16, count).reshape(shape)


def _text(said: str | bytes) -> str:
    """What a file says; protobuf gives bytes where they are no UTF-8."""
    return said if isinstance(said, str) else said.decode(errors="replace")


def _is_open_ended(proto: onnx.ModelProto) -> bool:
    fixed = {"", *(array.name for array in proto.graph.initializer)}  # what does not depend on values of the inputs
    for node in proto.graph.node:
        if node.op_type in ("Shape", "Size") or fixed.issuperset(node.input):
            fixed.update(node.output)
        first = _SIZED_BY_VALUES.get(node.op_type)
        if any(_graphs(node)) or (first is not None and not fixed.issuperset(node.input[first:])):
            return True
    return len(proto.functions) > 0


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of functions and of the graphs within too."""
    left: list[Any] = [proto.graph, *proto.functions]
    while left:
        for node in left.pop().node:
            yield node
            left += _graphs(node)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node: the branches of If, the body of Loop."""
    return [graph for one in node.attribute for graph in ((one.g, *one.graphs) if one.HasField("g") else one.graphs)]


def _parsed(content: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # the parser's exception belongs to protobuf, not to onnx
        raise DataError(f"this is no ONNX file, or it is damaged ({in_one_line(error)})") from error
    if not proto.HasField("graph"):
        raise DataError("this is no ONNX file, or it is damaged (it has no graph)")
    return proto


def _external(path: Path, proto: onnx.ModelProto, allowed: bool) -> list[Path]:
    """The other files that hold a model's arrays, all in the model's own folder or below."""
    folder = Path(os.path.realpath(path)).parent
    files = set()
    for array in external_arrays(proto):
        location = next((entry.value for entry in array.external_data if entry.key == "location"), "")
        if not allowed:
            raise DataError(
                f"the data of array {array.name!r} stand in another file, {location!r}. Likely fix: --external-data, "
                "if you trust the file"
            )
        file = Path(os.path.realpath(folder / location))
        if not file.is_relative_to(folder) or not file.is_file():
            where = "outside of the model's folder" if not file.is_relative_to(folder) else "which is no file"
            raise DataError(f"the data of array {array.name!r} stand in {location!r}, {where}")
        files.add(file)
    return sorted(files)


def _load(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave cores to the server
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise DataError(f"onnxruntime {onnxruntime.__version__} can't load it: {in_one_line(_short(error))}") from error


def _refusal(error: Exception) -> Refusal:
    said = in_one_line(_short(error))
    if "alloc" in said.lower():
        return Refusal(503, f"onnxruntime has not enough memory for this request: {said}")
    return Refusal(400, f"onnxruntime can't run the model on these inputs: {said}")


def _short(error: Exception) -> str:
    """What onnxruntime says, without the places in its own source."""
    said = str(error)
    return said.split(" Status Message: ", 1)[-1]
