"""Files that hold a network: tensors in safetensors format, and a JSON header that says what they belong to.

The header names registered layers and their constructor's arguments. Loading looks names up among installed plugins; it
imports and runs nothing that the file names. Arrays are made only once the sizes that the header asks for are known to
be those of the file's tensors.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lamella.arguments import number, positive
from lamella.engine.values import Values
from lamella.errors import ArgumentError, DataError, did_you_mean
from lamella.files.structure import Reader, Writer, refusing
from lamella.files.writing import write_atomically
from lamella.graph.operations import Graph
from lamella.optimizers import Optimizer

__all__ = ["Contents", "read", "read_weights", "write"]

FORMAT = 1
_FLOATS = {"float32": "F32", "float64": "F64"}  # as safetensors calls them
_NUMBERS = {"F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}


class Contents(NamedTuple):
    """What a file holds: a graph, its arrays by full name, the step, and the optimizer as it described itself."""

    graph: Graph
    arrays: dict[str, Any]
    step: int
    optimizer: tuple[Optimizer, dict[str, Any], dict[str, Any]] | None


def write(path: str | os.PathLike[str], config: Mapping[str, Any], values: Values) -> None:
    """Write structure, arrays, optimizer slots and step to one file, whole or not at all.

    Raises:
        DataError: a layer that no installed plugin gives, so that no other program could load it.
    """
    from safetensors.numpy import save as to_bytes

    tensors: dict[str, Any] = {}
    for kind, storage in (("parameters", values.parameters), ("state", values.state)):
        tensors |= {f"{kind}/{name}": storage.numpy(name) for name in storage.layout.declarations}
    header: dict[str, Any] = {"format": FORMAT, "model": config, "step": values.step}
    if values.optimizer is not None:
        optimizer, counters, slots = values.optimizer.as_numpy()
        header["optimizer"] = {"object": Writer().configured(optimizer), **counters}
        tensors |= {f"slots/{name}": slot for name, slot in slots.items()}
    text = json.dumps(header, allow_nan=False, default=_refuse)
    write_atomically(path, to_bytes(tensors, metadata={"lamella": text}))


def _refuse(value: Any) -> Any:
    """Called for what JSON can't hold."""
    if isinstance(value, type):
        raise DataError(
            f"save: class {value.__qualname__} is not registered by an installed plugin, so no other program could "
            "find it; give it a name by an entry point in the group 'lamella' (see lamella.hookspecs), or export the "
            "model to ONNX"
        )
    raise DataError(f"save: argument {value!r}: in a file it must be plain data, or registered by an installed plugin")


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a file that `write` wrote. Imports and runs nothing but installed plugins.

    Raises:
        DataError: a file that is no model, is damaged, or holds arrays of other sizes than its layers have.
        RegistryError: a layer that no installed plugin gives; the message says which distribution to install.
    """
    where = f"load {path}"
    with _opened(where, path) as file, refusing(where, "what model.save() writes"):
        header = _header(where, file)
        reader = Reader(header["model"])
        graph = reader.graph
        step, optimizer = positive(header["step"], "step", minimum=0), None
        counters: dict[str, Any] = {}
        if "optimizer" in header:
            optimizer = reader.configured(header["optimizer"]["object"], Optimizer)
            counters["t"] = positive(header["optimizer"]["t"], "t", minimum=0)
            counters["began"] = positive(header["optimizer"].get("began", 0), "began", minimum=0)
            counters["scale"] = number(header["optimizer"].get("scale", 1.0), "scale", minimum=0.0)
            counters["missed"] = {
                name: positive(count, "missed") for name, count in header["optimizer"].get("missed", {}).items()
            }
            if any(name not in graph.arrays or n > counters["t"] for name, n in counters["missed"].items()):
                raise DataError(f"{where}: a parameter missed more steps than there were, or the model has it not")
        places = {name: f"{'parameters' if one.trainable else 'state'}/{name}" for name, one in graph.arrays.items()}
        wanted = {places[name]: one.shape for name, one in graph.arrays.items()}
        learned = sum(math.prod(one.shape) for one in graph.arrays.values() if one.trainable)
        wanted |= {f"slots/{name}": (learned,) for name in optimizer.slots} if optimizer else {}
        if odd := set(wanted) ^ set(file.keys()):
            raise DataError(f"{where}: arrays of the file and of the model's layers differ: {', '.join(sorted(odd))}")
        dtype = {_FLOATS[graph.dtype]}
        tensors = {name: _array(where, file, name, "the model", shape, dtype) for name, shape in wanted.items()}
        _check_inner_models(where, reader.inner, sum(map(np.size, tensors.values())))
    reader.note_versions(where, stacklevel=4)
    slots = {name: tensors[f"slots/{name}"] for name in optimizer.slots} if optimizer else {}
    arrays = {name: tensors[place] for name, place in places.items()}
    return Contents(graph, arrays, step, (optimizer, counters, slots) if optimizer else None)


def _check_inner_models(where: str, inner: list[Graph], held: int) -> None:
    """What inner models hold stands in the file too, but for branches that lead to no output: 64 MB are plenty."""
    size = sum(math.prod(one.shape) for graph in inner for one in graph.arrays.values())
    if size > held * len(inner) + 2**24:
        raise DataError(f"{where}: models used as layers have {size} entries; expected about the file's {held}")


def read_weights(
    path: str | os.PathLike[str], graph: Graph, mapping: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Return arrays for a graph, by full name, from a file of `write`, or any safetensors file.

    ``mapping`` says, for names of the model, what they are called in the file; names that are not in it go by
    themselves. None leaves arrays as they are, by name or pattern: ``{"head.*": None}`` loads all but the head.

    Raises:
        DataError: an array that is missing, of another shape, or holds no plain numbers.
    """
    where = f"load_weights {path}"
    arrays = graph.arrays
    sources: dict[str, str | None] = {name: name for name in arrays}
    for name, source in (mapping or {}).items():
        if not isinstance(name, str):
            raise ArgumentError(f"load_weights: mapping: expected names of the model's arrays, got {name!r}")
        if source is not None and not isinstance(source, str):
            raise ArgumentError(f"load_weights: mapping: expected a name in the file, or None, got {source!r}")
        named = [name] if source is not None else fnmatch.filter(arrays, name)
        if not named or named[0] not in arrays:
            raise DataError(
                f"load_weights: mapping names {name!r}, which the model does not have.{did_you_mean(name, arrays)}"
            )
        sources |= dict.fromkeys(named, source)
    found = {}
    with _opened(where, path) as file:
        own = {name.removeprefix("parameters/").removeprefix("state/"): name for name in file.keys()}  # noqa: SIM118
        for name, source in sources.items():
            if source is None:
                continue
            if source not in own:
                hint = did_you_mean(source, own) or f" mapping={{{name!r}: None}} leaves it as it is."
                raise DataError(f"{where}: no array {source!r} for {name!r}.{hint}")
            shape = arrays[name].shape
            found[name] = _array(where, file, own[source], repr(name), shape, _NUMBERS).astype(graph.dtype)
    return found


@contextlib.contextmanager
def _opened(where: str, path: str | os.PathLike[str]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        fix = "; an ONNX file runs in onnxruntime, and load reads what model.save wrote"
        onnx = os.fspath(path).lower().endswith(".onnx")
        raise DataError(
            f"{where}: this is no lamella model, or it is damaged ({error}){fix if onnx else ''}"
        ) from error
    with file:
        yield file


def _header(where: str, file: Any) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {})["lamella"])
        form = header["format"] if isinstance(header, dict) else None
    except (KeyError, ValueError, RecursionError):
        raise DataError(f"{where}: a safetensors file, but not one that lamella wrote") from None
    if form != FORMAT:
        raise DataError(f"{where}: format {form!r}; this version reads format {FORMAT}")
    return dict(header)


def _array(where: str, file: Any, tensor: str, whom: str, shape: tuple[int, ...], dtypes: set[str]) -> Any:
    """One tensor of a file, read once its shape and dtype are known to be right."""
    found = file.get_slice(tensor)
    own, dtype = tuple(found.get_shape()), found.get_dtype()
    if own != shape:
        raise DataError(f"{where}: {tensor!r} has shape {own}; {whom} needs {shape}")
    if dtype not in dtypes:
        raise DataError(f"{where}: {tensor!r} is of dtype {dtype}; {whom} takes {', '.join(sorted(dtypes))}")
    return file.get_tensor(tensor)
