"""Checking and running a stranger's graph: at once where that is sure to be short, else in a process with limits."""

from __future__ import annotations

import contextlib
import io
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from lamella import DataError
from lamella_onnx.effort import is_modest
from lamella_onnx.runtime import ParityError, run, session
from lamella_onnx.validity import in_one_line

__all__ = ["outputs", "serve"]

MEMORY = 2**32  # bytes, besides some copies of the file

Arrays = dict[str, np.ndarray[Any, Any]]


def outputs(content: bytes, proto: onnx.ModelProto, feeds: Sequence[Arrays], *, timeout: float) -> list[Arrays]:
    """Check an ONNX file, run it in onnxruntime on some inputs, and return its outputs, by name, for each.

    Graphs with loops, branches, functions or much work have no end that could be seen beforehand, and neither the
    checker nor onnxruntime can be stopped: these run in a process of their own.

    Raises:
        DataError: it is not valid, or takes too long or too much memory.
        ParityError: onnxruntime refuses it.
    """
    if all(is_modest(proto, len(content), feed) for feed in feeds):
        return _outputs(content, feeds)
    return _outputs_apart(content, feeds, timeout)


def _outputs(content: bytes, feeds: Sequence[Arrays]) -> list[Arrays]:
    try:
        onnx.checker.check_model(content)
    except Exception as error:  # the checker's own, and that of the parser
        raise DataError(f"this is no ONNX file, or it is damaged ({in_one_line(error)})") from error
    loaded = session(content)
    return [run(loaded, feed) for feed in feeds]


def _outputs_apart(content: bytes, feeds: Sequence[Arrays], timeout: float) -> list[Arrays]:
    code = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; from lamella_onnx.isolation import serve; serve()"
    packed = _pack({"content": np.frombuffer(content, "uint8"), "timeout": np.array(timeout)}, feeds)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code],
            input=packed,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # whose memory counts
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"checking and running the graph took longer than {timeout:g} seconds. Likely fix: none, if it has a loop "
            "without end; else allow more, with timeout="
        ) from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DataError(f"the process that checked and ran the graph died (status {done.returncode}) {last}".rstrip())
    own, results = _unpack(done.stdout)
    if "error" in own:
        kind, message = own["error"].tolist()
        raise (ParityError if kind == "ParityError" else DataError)(message)
    return results


def serve() -> None:
    """Be the process with limits: read a file and inputs, write outputs or an error."""
    given = sys.stdin.buffer.read()
    own, feeds = _unpack(given)
    _limit(len(given), float(own["timeout"]))
    try:
        packed = _pack({}, _outputs(own["content"].tobytes(), feeds))
    except MemoryError:
        packed = _pack({"error": np.array(["DataError", "the graph takes too much memory"])}, [])
    except (DataError, ParityError) as error:
        packed = _pack({"error": np.array([type(error).__name__, str(error)])}, [])
    sys.stdout.buffer.write(packed)


def _limit(size: int, timeout: float) -> None:
    """Limit memory, and time too, for whoever started this process may be gone."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory, seconds = MEMORY + 8 * size, math.ceil(timeout * (os.cpu_count() or 1)) + 10
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(ValueError, OSError):  # macOS has the limit of memory, and refuses to set it
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _pack(own: Arrays, several: Sequence[Arrays]) -> bytes:
    """Arrays by name, and several more such, without pickling."""
    names = [f"{place}/{name}" for place, arrays in enumerate(several) for name in arrays]
    values = [array for arrays in several for array in arrays.values()]
    file = io.BytesIO()
    arrays: Any = {**own, "names": np.array(names, "str"), **{f"_{k}": value for k, value in enumerate(values)}}
    np.savez(file, **arrays)
    return file.getvalue()


def _unpack(packed: bytes) -> tuple[Arrays, list[Arrays]]:
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        arrays = dict(file)
    several: list[Arrays] = []
    for k, title in enumerate(arrays.pop("names").tolist()):
        place, _, name = title.partition("/")
        several.extend({} for _ in range(len(several), int(place) + 1))
        several[int(place)][name] = arrays.pop(f"_{k}")
    return arrays, several
