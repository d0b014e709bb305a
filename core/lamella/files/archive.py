"""Files that hold a network: tensors in safetensors format, and a JSON header that says what they belong to.

The header names registered layers and their constructor's arguments. Loading looks names up among installed plugins; it
imports and runs nothing that the file names. Arrays are made only once the sizes that the header asks for are known to
be those of the file's tensors.

Format 2 has a checksum: SHA-256 of the header's text and, for each tensor in the order of names, of a line
``name dtype 2x3`` and its bytes. Format 1 had none, and kept activations and initializers by their plain names.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lamella import hookspecs, registry
from lamella.arguments import number, positive
from lamella.engine.values import Values
from lamella.errors import ArgumentError, DataError, MistakeWarning, RegistryError, counted, did_you_mean, shown
from lamella.files.structure import Reader, Writer, refusing
from lamella.files.writing import kind_of, write_atomically
from lamella.graph.operations import Graph
from lamella.optimizers import Optimizer
from lamella.protocol.declare import ArrayDeclaration
from lamella.protocol.inputs import cast
from lamella.registry import snake_case

__all__ = ["Contents", "read", "read_weights", "write"]

FORMAT = 2
_READS = (1, 2)
_CHECKSUM = "lamella.sha256"
_FLOATS = {"float32": "F32", "float64": "F64"}  # as safetensors calls them
_DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "<u1",
    "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip
_NUMBERS = set(_DTYPES)
_OF_STEPS = {"training.seed", "training.step", "training.t"}  # what the state of a training step has beside weights
_OTHERS = {  # by what they begin with
    b"PK\x03\x04": "a zip archive, as .keras files of Keras and .pt files of PyTorch are",
    b"\x89HDF\r\n": "an HDF5 file, as .h5 files of Keras are",
}
_DEEPEST, _LONGEST = 50, 10_000  # lists in lists, and bits of an int, of what callbacks remember


class Contents(NamedTuple):
    """What a file holds: a graph, its arrays by full name, the step, and the optimizer as it described itself."""

    graph: Graph
    arrays: dict[str, Any]
    step: int
    optimizer: tuple[Optimizer, dict[str, Any], dict[str, Any]] | None
    epochs: int
    training: dict[str, Any] | None


def write(path: str | os.PathLike[str], config: Mapping[str, Any], values: Values, more: Mapping[str, Any]) -> None:
    """Write structure, arrays, optimizer slots and step to one file, whole or not at all.

    ``more`` are further entries of the header: plain data, and arrays.

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
    for name, tensor in tensors.items():
        _check_values(f"save {os.fsdecode(path)}", name, tensor)
    packed, arrays = pack(more)
    header |= packed
    tensors |= arrays
    text = json.dumps(header, allow_nan=False, default=_refuse)
    metadata = {"lamella": text, _CHECKSUM: _checksum(text, sorted(tensors.items()))}
    write_atomically(path, to_bytes(tensors, metadata=metadata))


def check(config: Mapping[str, Any], *others: Any) -> None:
    """Refuse what `write` would refuse: a class, or an argument, that no file can hold, of layers or ``others``.

    Raises:
        DataError: there is one.
    """
    json.dumps([config, *(Writer().configured(one) for one in others)], allow_nan=False, default=_refuse)


def pack(more: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return further entries of a header as plain data for JSON, and the arrays in them as tensors by name.

    Raises:
        DataError: something that is neither plain data nor an array of numbers, or is nested too deep.
    """
    tensors: dict[str, Any] = {}
    return {name: _packed(value, tensors) for name, value in more.items()}, tensors


def _packed(value: Any, tensors: dict[str, Any], depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise DataError(f"save: what callbacks remember is nested deeper than {_DEEPEST} times; keep it flat")
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case np.ndarray() if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            name = f"more/{len(tensors)}"
            tensors[name] = np.array(value, value.dtype.newbyteorder("="), order="C")  # safetensors takes memory as is
            return {"tensor": name}
        case Mapping():
            pairs = ((_packed_key(key), _packed(item, tensors, depth + 1)) for key, item in value.items())
            return {"dict": [list(pair) for pair in pairs]}
        case list() | tuple():
            return [_packed(item, tensors, depth + 1) for item in value]
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case None | bool() | str():
            return value
        case int() if value.bit_length() <= _LONGEST:
            return value
    raise DataError(
        f"save: {shown(value)}: what callbacks and metrics remember must be plain data: numbers, strings, None, lists, "
        "dicts, and NumPy arrays of numbers"
    )


def _packed_key(key: Any) -> Any:
    """A key of a dict, if reading gives an equal one: a tuple would come back as a list."""
    key = key.item() if isinstance(key, np.generic) else key
    return key if isinstance(key, str | int | None) or (isinstance(key, float) and math.isfinite(key)) else _refuse(key)


def _unpacked(value: Any, tensors: Callable[[str], Any]) -> Any:
    """The inverse of `_packed`, with lists in place of tuples."""
    match value:
        case list():
            return [_unpacked(item, tensors) for item in value]
        case {"tensor": str(name)}:
            return tensors(name)
        case {"dict": list(pairs)}:
            return {key: _unpacked(item, tensors) for key, item in pairs}
        case {"float": str(text)}:
            return float(text)
    return value


def _checksum(text: str, tensors: Iterable[tuple[str, np.ndarray[Any, Any]]]) -> str:
    """Of a header and its tensors, in the order of their names."""
    found = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        shape = "x".join(map(str, tensor.shape))
        found.update(f"{name} {tensor.dtype.name} {shape}\n".encode())
        found.update(np.ascontiguousarray(tensor).data)
    return found.hexdigest()


def _place(name: str, declared: ArrayDeclaration) -> str:
    """What an array is called in a file."""
    return f"{'parameters' if declared.trainable else 'state'}/{name}"


def _check_values(where: str, name: str, tensor: Any) -> None:
    """Refuse what no training leaves behind: parameters are finite, and slots and state are no NaN."""
    may_be_infinite = not name.startswith("parameters/")
    wrong = np.isnan(tensor) if may_be_infinite else ~np.isfinite(tensor)
    if wrong.any():
        kind = "NaN" if may_be_infinite else "NaN or infinite"
        raise DataError(
            f"{where}: {name!r}: expected finite numbers, got {counted(int(wrong.sum()), 'value')} of {kind}"
        )


def _refuse(value: Any) -> Any:
    """Called for what JSON can't hold."""
    if isinstance(value, type):
        if any(_stands_for(entry, value) for kind in hookspecs.KINDS for entry in registry.entries(kind)):
            raise DataError(
                f"save: class {value.__qualname__} was registered, and another class of its name has been since, as "
                "where a cell of a notebook ran again; make the model again, of the class that is registered now"
            )
        raise DataError(
            f"save: class {value.__qualname__} is not registered by an installed plugin, so no other program could "
            f"find it; give it a name, in a script by @lm.register({snake_case(value.__name__)!r}) above it, in a "
            "package by an entry point in the group 'lamella' (see lamella.hookspecs), or export the model to ONNX"
        )
    raise DataError(
        f"save: argument {value!r}: in a file it must be plain data, or have a name: in a script by lm.register('name')"
        "(...), in a package by an entry point in the group 'lamella'"
    )


def _stands_for(entry: registry.Entry, value: type) -> bool:
    """Whether a script has registered a class of the same name, and not this one."""
    name = getattr(entry.object, "__qualname__", None)
    return entry.plugin.distribution == registry.SCRIPT and name == value.__qualname__ and entry.object is not value


def read(
    path: str | os.PathLike[str], given: Mapping[str, Any] = MappingProxyType({}), *, with_optimizer: bool = True
) -> Contents:
    """Read a file that `write` wrote. Imports and runs nothing but installed plugins.

    ``given`` has classes and functions by name, in place of registered ones. An optimizer that no plugin gives is left
    out, with a warning, since nothing else needs it.

    Raises:
        DataError: a file that is no model, is damaged, or holds arrays of other sizes than its layers have.
        RegistryError: a layer that no installed plugin gives; the message says which distribution to install.
    """
    where = f"load {path}"
    file = opened(where, path)
    with refusing(where, "what model.save() writes"):
        header = _header(where, file)
        reader = Reader(header["model"], given, drawn=False)
        graph = reader.graph
        step, optimizer = positive(header["step"], "step", minimum=0), None
        counters: dict[str, Any] = {}
        held = header.get("optimizer") if with_optimizer else None
        if held is not None:
            optimizer = _optimizer(where, reader, held["object"])
        if held is not None and optimizer is not None:
            counters["t"] = positive(held["t"], "t", minimum=0)
            counters["began"] = positive(held.get("began", 0), "began", minimum=0)
            counters["scale"] = number(held.get("scale", 1.0), "scale", minimum=0.0)
            counters["missed"] = {name: positive(count, "missed") for name, count in held.get("missed", {}).items()}
            if any(name not in graph.arrays or n > counters["t"] for name, n in counters["missed"].items()):
                raise DataError(f"{where}: a parameter missed more steps than there were, or the model has it not")
        places = {name: _place(name, one) for name, one in graph.arrays.items()}
        wanted = {places[name]: one.shape for name, one in graph.arrays.items()}
        learned = sum(math.prod(one.shape) for one in graph.arrays.values() if one.trainable)
        wanted |= {f"slots/{name}": (learned,) for name in optimizer.slots} if optimizer else {}
        there = {name for name in file.names if not name.startswith("more/")}
        if optimizer is None and "optimizer" in header:
            there = {name for name in there if not name.startswith("slots/")}
        if odd := set(wanted) ^ there:
            raise DataError(f"{where}: arrays of the file and of the model's layers differ: {', '.join(sorted(odd))}")
        dtype = {_FLOATS[graph.dtype]}
        tensors = {name: _array(where, file, name, "the model", shape, dtype) for name, shape in wanted.items()}
        for name, tensor in tensors.items():
            _check_values(where, name, tensor)
        epochs = positive(header.get("epochs", 0), "epochs", minimum=0)

        @functools.cache  # a header may name one array many times
        def more(name: str) -> Any:
            return _read(where, file, f"more/{name.removeprefix('more/')}")

        training = _unpacked(header.get("training"), more)
        if not isinstance(training, dict | None):
            raise DataError(f"{where}: training: expected a dict, got {training!r:.60}")
        _check_inner_models(where, reader.inner, sum(map(np.size, tensors.values())))
    if unknown := given.keys() - reader.taken:
        name = sorted(unknown)[0]
        raise ArgumentError(f"{where}: layers: the file has no {name!r}.{did_you_mean(name, reader.names)}")
    reader.note_versions(where, stacklevel=4)
    slots = {name: tensors[f"slots/{name}"] for name in optimizer.slots} if optimizer else {}
    arrays = {name: tensors[place] for name, place in places.items()}
    return Contents(graph, arrays, step, (optimizer, counters, slots) if optimizer else None, epochs, training)


def outline(where: str, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return a file's header as it is, and the shapes of its tensors, once the checksum is known to be right."""
    file = opened(where, path)
    return _header(where, file), {name: file.shape(name) for name in file.names}


def best(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file says of the best value so far, under "monitor" and "value"; nothing where it says nothing.

    Raises:
        DataError: a file that is no model, or is damaged.
    """
    where = f"load {os.fsdecode(path)}"
    file = opened(where, path)
    with refusing(where, "what model.save() writes"):
        found = _unpacked(_header(where, file).get("best"), str)
    return found if isinstance(found, dict) else {}


def _optimizer(where: str, reader: Reader, described: Mapping[str, Any]) -> Optimizer | None:
    """The optimizer, or None, with a warning, where it or its schedule is not there."""
    try:
        made: Optimizer = reader.configured(described, Optimizer)
    except RegistryError as error:
        warnings.warn(
            f"{where}: the optimizer is left out, and training would start anew: {error}", MistakeWarning, stacklevel=6
        )
        return None
    return made


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
    file = opened(where, path)
    if file.metadata.keys() & {"lamella", _CHECKSUM}:
        _header(where, file)
    own: dict[str, str] = {}
    for name in file.names:
        plain = name.removeprefix("parameters/").removeprefix("state/")
        if plain in own:
            raise DataError(f"{where}: {own[plain]!r} and {name!r} are two arrays of one name")
        own[plain] = name
    for name, source in sources.items():
        if source is None:
            continue
        if source not in own:
            instead = _instead(name, file, own, sources, arrays[name].shape)
            raise DataError(f"{where}: no array {source!r} for {name!r}.{instead}")
        shape = arrays[name].shape
        found[name] = cast(_array(where, file, own[source], repr(name), shape, _NUMBERS), graph.dtype, where)
        _check_values(where, _place(name, arrays[name]), found[name])
    return found


def _instead(name: str, file: File, own: Mapping[str, str], sources: Mapping[str, str | None], shape: Any) -> str:
    """What may be done about an array that a file does not have: another name, or a mapping that leaves it out."""
    missing = {one for one, source in sources.items() if source is not None and source not in own}
    patterns: dict[str, None] = {}
    for one in (one for one in sources if one in missing):
        layer = f"{one.rpartition('.')[0]}.*"
        patterns[layer if missing.issuperset(fnmatch.filter(sources, layer)) else one] = None
    free = [other for other in own.keys() - sources.values() if file.shape(own[other]) == shape]
    hint = did_you_mean(str(sources[name]), sorted(free))
    return f"{hint} Likely fix: mapping={shown(patterns)} leaves these as they are"


def opened(where: str, path: str | os.PathLike[str]) -> File:
    """Read a file of safetensors format.

    Raises:
        DataError: it is none.
    """
    given = os.fsdecode(path)
    if os.path.isfile(os.path.join(given, "training.json")):
        raise IsADirectoryError(
            f"{where}: this is the folder of a training step, which export_training_step wrote; "
            "lamella_onnx.TrainingSession(folder) takes it"
        )
    with open(given, "rb", opener=_without_waiting) as plain:  # says in Python's own words what is not there
        mode = os.fstat(plain.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{where}: expected a file, got {kind_of(mode)}")
        content = plain.read()
    if other := next((kind for start, kind in _OTHERS.items() if content.startswith(start)), None):
        raise DataError(
            f"{where}: expected a file of lamella or of safetensors, got {other}. Likely fix: make a model of the same "
            "layers, and assign the arrays by name: model.parameters['dense_1.kernel'] = array"
        )
    onnx = given.lower().endswith(".onnx")
    fix = "; an ONNX file runs in onnxruntime, and load reads what model.save wrote"
    return parsed(where, content, fix if onnx else "")


def parsed(where: str, content: bytes, fix: str = "") -> File:
    """Take what stands in a file of safetensors format; ``fix`` ends the error.

    Raises:
        DataError: it is none.
    """
    from safetensors import SafetensorError

    try:
        return File(content)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where}: this is no lamella model, or it is damaged ({error}){fix}") from error


class File:
    """A file of safetensors format, read once: what happens to it later makes no difference."""

    def __init__(self, content: bytes) -> None:
        from safetensors import deserialize

        self._tensors: dict[str, dict[str, Any]] = dict(deserialize(content))  # type: ignore[no-untyped-call]  # which checks every size
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        self.metadata: dict[str, str] = header.get("__metadata__") or {}
        self.names = sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._tensors[name]["shape"])

    def dtype(self, name: str) -> str:
        """The dtype of a tensor, as safetensors calls it."""
        return str(self._tensors[name]["dtype"])

    def tensor(self, name: str) -> Any:
        """A tensor; `LookupError` if there is none of that name, or of a dtype that NumPy has."""
        held = self._tensors[name]
        return np.frombuffer(held["data"], _DTYPES[held["dtype"]]).reshape(held["shape"])


def _without_waiting(path: str, flags: int) -> int:
    """Open what may be a pipe that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _header(where: str, file: File) -> dict[str, Any]:
    """What a file says of its tensors, once the checksum is known to be right."""
    metadata = file.metadata
    if _OF_STEPS.issubset(file.names):
        raise DataError(
            f"{where}: this is the state of a training step: weights without layers. TrainingSession(folder)."
            "load_state(path) takes it, where lamella_onnx.export_training_step wrote the folder; model.load_weights "
            "takes its weights"
        )
    try:
        header = json.loads(metadata["lamella"])
        form = header["format"] if isinstance(header, dict) else None
    except (KeyError, ValueError, RecursionError):
        raise DataError(f"{where}: a safetensors file, but not one that lamella wrote") from None
    if form not in _READS or type(form) is not int:
        newer = isinstance(form, int) and form > FORMAT
        fix = "; a newer lamella wrote it: pip install --upgrade lamella" if newer else ""
        raise DataError(f"{where}: format {form!r}; this version reads formats 1 and 2{fix}")
    if form != 1:
        tensors = ((name, _read(where, file, name)) for name in file.names)
        if metadata.get(_CHECKSUM) != _checksum(metadata["lamella"], tensors):
            raise DataError(
                f"{where}: the file is damaged: its checksum is not that of what it holds. Take another copy"
            )
    return dict(header)


def _array(where: str, file: File, tensor: str, whom: str, shape: tuple[int, ...], dtypes: set[str]) -> Any:
    """One tensor of a file, read once its shape and dtype are known to be right."""
    own, dtype = file.shape(tensor), file.dtype(tensor)
    if own != shape:
        raise DataError(f"{where}: {tensor!r} has shape {own}; {whom} needs {shape}")
    if dtype not in dtypes:
        raise DataError(f"{where}: {tensor!r} is of dtype {dtype}; {whom} takes {', '.join(sorted(dtypes))}")
    return _read(where, file, tensor)


def _read(where: str, file: File, name: str) -> Any:
    try:
        return file.tensor(name)
    except KeyError as error:  # there is none, or of a dtype that NumPy has not
        raise DataError(f"{where}: {name!r} can't be read ({type(error).__name__}: {error})") from error
