"""onnxruntime: what each release of it reads, and loading and running a graph in the installed one."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from lamella.errors import ArgumentError, LamellaError, shown
from lamella_onnx.validity import in_one_line

__all__ = [
    "DEFAULT_OPSET",
    "OLDEST_OPSET",
    "ParityError",
    "Target",
    "installed",
    "refusal",
    "resolve",
    "run",
    "session",
]

OLDEST_OPSET = 18  # from here on, the axes of every reduction are an input
DEFAULT_OPSET = 21  # read by every onnxruntime since 1.18


class Target(NamedTuple):
    """A runtime, with the newest operator set and file format (IR version) that it reads."""

    runtime: str
    opset: int
    ir: int


# Found by loading models of every opset and IR version into each release; 1.14, 1.17 and 1.18 from
# https://onnxruntime.ai/docs/reference/compatibility.html
_RELEASES = {
    "1.14": (18, 8),
    "1.15": (18, 8),
    "1.16": (19, 9),
    "1.17": (20, 9),
    **dict.fromkeys(("1.18", "1.19", "1.20"), (21, 10)),
    **dict.fromkeys(("1.21", "1.22"), (22, 10)),
    "1.23": (23, 11),
    "1.24": (25, 13),
    **dict.fromkeys((f"1.{minor}" for minor in range(25, 32)), (26, 13)),
    "1.32": (28, 14),
}


@functools.cache
def installed() -> Target:
    """Return what the installed onnxruntime reads, found by trying."""
    opsets = range(onnx.defs.onnx_opset_version(), OLDEST_OPSET - 1, -1)
    opset = next((opset for opset in opsets if _loads(opset, 8)), OLDEST_OPSET)
    ir = next((ir for ir in range(onnx.IR_VERSION, 8, -1) if _loads(OLDEST_OPSET, ir)), 8)
    return Target(f"onnxruntime=={onnxruntime.__version__}", opset, ir)


def _loads(opset: int, ir: int) -> bool:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own exceptions, which it does not export
        return False
    return True


def resolve(opset: int | None, target: str | None) -> int:
    """Return the opset to write: the one asked for, else 21, or the newest that the target reads.

    The IR version follows from it: the oldest that the opset allows, so that as many runtimes as possible read the
    file.

    Raises:
        ArgumentError: an unknown target, or an opset that it, the exporter or the installed onnxruntime can't do.

    >>> resolve(None, "onnxruntime==1.16"), resolve(None, None)
    (19, 21)
    """
    wanted = _named(target)
    if opset is None:
        return min(DEFAULT_OPSET, wanted.opset, installed().opset)
    if isinstance(opset, bool) or not isinstance(opset, int) or opset < OLDEST_OPSET:
        raise ArgumentError(
            f"export: opset: expected {OLDEST_OPSET} or newer, got {shown(opset)}; leave it out for the default"
        )
    for reader, purpose in ((wanted, "reads"), (installed(), "is installed to check the file, and reads")):
        if opset > reader.opset or helper.find_min_ir_version_for([helper.make_opsetid("", opset)]) > reader.ir:
            raise ArgumentError(
                f"export: opset={shown(opset)}: {reader.runtime} {purpose} opsets {OLDEST_OPSET} to {reader.opset}; "
                "ask for an older one, or leave it out"
            )
    return opset


def _named(target: str | None) -> Target:
    if target is None or (isinstance(target, str) and target == "onnxruntime"):
        return installed()
    match = re.fullmatch(r"onnxruntime==(1\.\d+)(\.\d+)*", target) if isinstance(target, str) else None
    if match is None or match[1] not in _RELEASES:
        oldest, *_, newest = _RELEASES
        raise ArgumentError(
            f"export: target: expected 'onnxruntime==<version>' from {oldest} to {newest}, or None for the installed "
            f"one, got {shown(target)}"
        )
    return Target(target or "", *_RELEASES[match[1]])


class ParityError(LamellaError, RuntimeError):
    """A graph that onnxruntime refuses, or whose results differ from the engine's, or that nothing can be tried on."""


def session(model: bytes, threads: int = 2) -> onnxruntime.InferenceSession:
    """Load a model as users of onnxruntime do by default, but for its log: our errors say what stands there."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise ParityError(
            f"onnxruntime {onnxruntime.__version__} can't load the graph: {in_one_line(error)}"
        ) from error


def refusal(what: str, error: Exception) -> ParityError:
    """Return the error for a graph that onnxruntime can't run."""
    return ParityError(f"onnxruntime {onnxruntime.__version__} can't run {what}: {in_one_line(error)}")


def run(loaded: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a model; inputs and outputs by name. What the graph has no input for is left out.

    Strings come as NumPy's, and not as objects.
    """
    given = {value.name: feeds[value.name] for value in loaded.get_inputs()}
    try:
        outputs = [array.astype("str") if array.dtype == object else array for array in loaded.run(None, given)]
        return dict(zip([value.name for value in loaded.get_outputs()], outputs, strict=True))
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
        raise refusal(f"the graph on {shapes}", error) from error
