"""Models as plain data: their structure as a dict, and files that hold structure and arrays and no code.

A file is in safetensors format: tensors, and a JSON header that names registered layers and their constructor's
arguments. Loading looks names up among installed plugins; it imports and runs nothing that the file names. Arrays are
made only once the sizes that the header asks for are known to be those of the file's tensors.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import registry
from lamella.activations import ActivationFunction
from lamella.arguments import number, positive
from lamella.backends import get_backend
from lamella.configuration import Configured
from lamella.errors import ArgumentError, DataError, GraphError, RegistryError, VersionWarning, did_you_mean
from lamella.graph import Call, Input, Node, assemble
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.protocol import Layer
from lamella.schedules import Schedule

if TYPE_CHECKING:
    from lamella.model import Model

__all__ = ["from_config", "load", "load_weights", "model_config", "save"]

FORMAT = 1
_KINDS: dict[str, type[Configured]] = {
    "layers": Layer,
    "losses": Loss,
    "optimizers": Optimizer,
    "schedules": Schedule,
    "metrics": Metric,
}
_FLOATS = {"float32": "F32", "float64": "F64"}  # as safetensors calls them
_NUMBERS = {"F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}


def model_config(model: Model) -> dict[str, Any]:
    """Return a model's structure as plain data.

    Layers and inner models stand in one table, each once wherever it is used, those that others hold before these.
    """
    writer = _Writer()
    described = writer.model(model)
    return {**described, "layers": writer.layers}


def from_config(config: Mapping[str, Any], *, backend: str = "numpy") -> Model:
    """Make a model from what ``model.config()`` returned, with fresh initial values.

    Raises:
        RegistryError: a layer that no installed plugin gives.
        DataError: something that is no configuration of a model.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,))
    >>> lm.from_config(model.config())
    <Sequential (N, 4) float32 -> (N, 3) float32, 15 parameters>
    """
    get_backend(backend)  # an unknown one is no fault of the configuration
    with _refusing("from_config", "what model.config() returns"):
        reader = _Reader(config)
        model = reader.allocate(backend)
    reader.note_versions("from_config")
    return model


@contextlib.contextmanager
def _refusing(where: str, expected: str) -> Iterator[None]:
    """Explain whatever goes wrong on the way from a description to a model."""
    try:
        yield
    except (DataError, RegistryError) as error:
        raise error if str(error).startswith(where) else type(error)(f"{where}: {error}") from error.__cause__
    except MemoryError:
        raise
    except Exception as error:  # layers meet arguments that nobody checked, and may raise anything
        raise DataError(
            f"{where}: this is no configuration of a model ({type(error).__name__}: {error}); expected {expected}"
        ) from error


class _Writer:
    """Describes objects as plain data, and collects the layers and inner models that they hold."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}  # id of a layer or inner model -> its place among them

    def model(self, model: Model) -> dict[str, Any]:
        """A model, but for the table of its layers."""
        from lamella.model import Sequential  # a model knows its archive

        places = {id(node): [0, k] for k, node in enumerate(model.input_nodes)}  # node -> call, output; inputs: call 0
        calls: list[dict[str, Any]] = []

        def add(this: Call) -> None:
            for node in this.inputs:
                if id(node) not in places:  # a composite takes it, though no output depends on it
                    if node.call is None:
                        raise GraphError(f"config: {this.layer!r} takes {node!r}, which is no input of the model")
                    add(node.call.top)
            calls.append({"layer": self._place(this.layer), "inputs": [places[id(node)] for node in this.inputs]})
            if this.name is not None:
                calls[-1]["name"] = this.name
            for k, node in enumerate(this.outputs):
                places.setdefault(id(node), [len(calls), k])  # a composite may pass on what it was given

        for this in model.program.calls:
            add(this)
        inputs = []
        for node, spec in zip(model.input_nodes, model.input_specs, strict=True):
            given = {"shape": list(spec.shape[1:]), "dtype": None if spec.is_float else spec.dtype}
            options = {"name": node.name, "low": spec.low, "high": spec.high}
            inputs.append(given | {key: self._value(value) for key, value in options.items() if value is not None})
        return {
            "class": "Sequential" if isinstance(model, Sequential) else "Model",
            "dtype": model.dtype,
            "seed": model.seed,
            "inputs": inputs,
            "calls": calls,
            "outputs": [places[id(node)] for node in model.output_nodes],
            "frozen": sorted(model.frozen_layers),
        }

    def configured(self, value: Configured) -> Any:
        """An object by its registered name; an unregistered class stands for itself, and fits no file."""
        kind = next((kind for kind, base in _KINDS.items() if isinstance(value, base)), None)
        if kind is None:
            return value
        entry = registry.name_of(kind, type(value))
        described: dict[str, Any] = {
            "kind": kind,
            "type": type(value) if entry is None else entry.qualified,
            "version": None if entry is None else entry.plugin.version,
            "config": {name: self._value(item) for name, item in value.config().items()},
        }
        return described | {"name": value.name, "trainable": value.trainable} if isinstance(value, Layer) else described

    def _place(self, layer: Any) -> int:
        if id(layer) not in self._places:
            described = self.configured(layer) if isinstance(layer, Layer) else {"model": self.model(layer)}
            self._places[id(layer)] = len(self.layers)
            self.layers.append(described)
        return self._places[id(layer)]

    def _value(self, value: Any) -> Any:
        from lamella.model import Model  # a model knows its archive

        if isinstance(value, Layer | Model):
            return {"layer": self._place(value)}
        if isinstance(value, Configured):
            return self.configured(value)
        if isinstance(value, ActivationFunction):
            return next((entry.qualified for entry in registry.entries("activations") if entry.object is value), value)
        if isinstance(value, tuple):
            return [self._value(item) for item in value]
        if isinstance(value, dict):  # as pairs: in JSON, keys are strings
            return {"dict": [[self._value(key), self._value(item)] for key, item in value.items()]}
        if isinstance(value, float) and not math.isfinite(value):  # JSON has none
            return {"float": str(value)}
        return value


class _Reader:
    """Makes layers and models of their descriptions. Models get their arrays last, in `allocate`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.versions: dict[str, tuple[str, str]] = {}  # distribution -> its version then and now, where they differ
        self.layers: list[Any] = []
        self.models: list[tuple[Model, frozenset[str]]] = []  # with frozen layers; each after those that it holds
        for described in config["layers"]:
            inner = "model" in described
            self.layers.append(self._model(described["model"]) if inner else self.configured(described, Layer))
        self.model = self._model(config)

    def allocate(self, backend: str) -> Model:
        """Give every model its arrays, and return the outermost."""
        from lamella.model import Model  # a model knows its archive

        for model, frozen in self.models:
            nodes = model.input_nodes, model.output_nodes
            Model.__init__(model, *nodes, dtype=model.dtype, seed=model.seed, backend=backend)
            model._frozen = frozen
        return self.model

    def note_versions(self, where: str) -> None:
        """Warn of every distribution that has another version now."""
        for distribution, (then, now) in self.versions.items():
            warnings.warn(
                f"{where}: written with {distribution} {then}; {now} is installed. If results differ, install "
                f"{distribution}=={then}",
                VersionWarning,
                stacklevel=3,
            )

    def configured(self, described: Mapping[str, Any], base: type[Configured] = Configured) -> Any:
        """An object of a registered class, which must be of the kind that is wanted."""
        expected, found = _KINDS[described["kind"]], described["type"]
        if not isinstance(found, type):
            found = registry.find(described["kind"], found)
        if not isinstance(found, type) or not issubclass(found, expected) or not issubclass(found, base):
            raise TypeError(f"{described['type']!r} is no {base.__name__}")
        arguments = {argument: self._value(item) for argument, item in described["config"].items()}
        entry, version = registry.name_of(described["kind"], found), described["version"]
        if entry is not None and version not in (None, entry.plugin.version):
            self.versions[entry.plugin.distribution] = str(version), entry.plugin.version
            arguments = found.migrate(arguments, str(version))
        try:
            made = found(**arguments)
        except TypeError as error:
            if entry is None or version in (None, entry.plugin.version):
                raise
            raise DataError(
                f"{error} It was written by {entry.plugin.distribution} {version}, and {entry.plugin.version} is "
                f"installed: install {entry.plugin.distribution}=={version}, or let {found.__name__}.migrate translate "
                "the arguments"
            ) from error
        if isinstance(made, Layer):
            made = made if described["name"] is None else made.named(described["name"])
            made = made if described["trainable"] else made.frozen()
        return made

    def _model(self, config: Mapping[str, Any]) -> Model:
        """A model that can be called on nodes, and has no arrays yet."""
        from lamella.model import Model, Sequential  # a model knows its archive

        inputs = [Input(**{key: self._value(value) for key, value in given.items()}) for given in config["inputs"]]
        nodes: list[tuple[Node, ...]] = [tuple(inputs)]
        for entry in config["calls"]:
            given = [_at(_at(nodes, number), k) for number, k in entry["inputs"]]
            result = _at(self.layers, entry["layer"])(*given, name=entry.get("name"))
            nodes.append(result if isinstance(result, tuple) else (result,))
        model: Model = object.__new__({"Model": Model, "Sequential": Sequential}[config["class"]])
        model.input_nodes = nodes[0]
        model.output_nodes = tuple(_at(_at(nodes, number), k) for number, k in config["outputs"])
        model.dtype, model.seed = config["dtype"], config["seed"]
        model.program = assemble(model.input_nodes, model.output_nodes, model.dtype)
        frozen = frozenset(config["frozen"])
        unknown = frozen - {leaf.owner for leaf in model.program.leaves if leaf.params or leaf.state}
        if unknown:
            raise ValueError(f"frozen: there are no layers {unknown!r} with arrays")
        self.models.append((model, frozen))
        return model

    def _value(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(self._value(item) for item in value)
        match value:
            case {"layer": number}:
                return _at(self.layers, number)
            case {"dict": pairs}:
                return {self._value(key): self._value(item) for key, item in pairs}
            case {"float": text}:
                return float(text)
            case Mapping():
                return self.configured(value)
        return value


def _at(items: Sequence[Any], number: Any) -> Any:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(items):
        raise IndexError(f"expected a number below {len(items)}, got {number!r}")
    return items[number]


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to one file: structure, arrays, optimizer slots, step and seed.

    The file appears whole or not at all.

    Raises:
        DataError: a layer that no installed plugin gives, so that no other program could load it.
    """
    from safetensors.numpy import save as to_bytes

    tensors = {f"parameters/{name}": value for name, value in model.parameters.items()}
    tensors |= {f"state/{name}": value for name, value in model.state.items()}
    header: dict[str, Any] = {"format": FORMAT, "model": model.config(), "step": model.step}
    state = model.optimizer_state
    if state is not None:
        optimizer, progress, slots = state.as_numpy()
        header["optimizer"] = {"object": _Writer().configured(optimizer), **progress}
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


def load(path: str | os.PathLike[str], *, backend: str = "numpy") -> Model:
    """Read a model that `save` wrote. Imports and runs nothing but installed plugins.

    Raises:
        DataError: a file that is no model, is damaged, or holds arrays of other sizes than its layers have.
        RegistryError: a layer that no installed plugin gives; the message says which distribution to install.

    Where a distribution has another version than the one that wrote the file, its classes may `migrate` their
    arguments, and a `VersionWarning` says so.
    """
    from lamella.step import OptimizerState

    where = f"load {path}"
    get_backend(backend)  # an unknown one is no fault of the file
    with _opened(where, path) as file, _refusing(where, "what model.save() writes"):
        header = _header(where, file)
        reader = _Reader(header["model"])
        step, optimizer = positive(header["step"], "step", minimum=0), None
        progress: dict[str, Any] = {}
        if "optimizer" in header:
            optimizer = reader.configured(header["optimizer"]["object"], Optimizer)
            progress["t"] = positive(header["optimizer"]["t"], "t", minimum=0)
            progress["began"] = positive(header["optimizer"].get("began", 0), "began", minimum=0)
            progress["scale"] = number(header["optimizer"].get("scale", 1.0), "scale", minimum=0.0)
        arrays = reader.model.program.arrays
        places = {name: f"{'parameters' if one.trainable else 'state'}/{name}" for name, one in arrays.items()}
        wanted = {places[name]: one.shape for name, one in arrays.items()}
        learned = sum(math.prod(one.shape) for one in arrays.values() if one.trainable)
        wanted |= {f"slots/{name}": (learned,) for name in optimizer.slots} if optimizer else {}
        if odd := set(wanted) ^ set(file.keys()):
            raise DataError(f"{where}: arrays of the file and of the model's layers differ: {', '.join(sorted(odd))}")
        dtype = {_FLOATS[reader.model.dtype]}
        tensors = {name: _array(where, file, name, "the model", shape, dtype) for name, shape in wanted.items()}
        _check_inner_models(where, [model for model, _ in reader.models[:-1]], sum(map(np.size, tensors.values())))
        model = reader.allocate(backend)
    for name, place in places.items():
        (model.parameters if arrays[name].trainable else model.state)[name] = tensors[place]
    model.step = step
    if optimizer:
        slots = {name: tensors[f"slots/{name}"] for name in optimizer.slots}
        model.optimizer_state = OptimizerState.from_numpy(model, optimizer, progress, slots)
    reader.note_versions(where)
    return model


def _check_inner_models(where: str, inner: Sequence[Model], held: int) -> None:
    """What inner models hold stands in the file too, but for branches that lead to no output: 64 MB are plenty."""
    size = sum(math.prod(one.shape) for model in inner for one in model.program.arrays.values())
    if size > held * len(inner) + 2**24:
        raise DataError(f"{where}: models used as layers have {size} numbers; expected about the file's {held}")


def load_weights(model: Model, path: str | os.PathLike[str], mapping: Mapping[str, str | None] | None = None) -> None:
    """Take parameters and state from a file of `save`, or any safetensors file.

    ``mapping`` says, for names of the model, what they are called in the file; names that are not in it go by
    themselves. None leaves arrays as they are, by name or pattern: ``{"head.*": None}`` loads all but the head.
    Everything is checked before anything changes.

    Raises:
        DataError: an array that is missing, of another shape, or holds no plain numbers.
    """
    where = f"load_weights {path}"
    arrays = model.program.arrays
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
            found[name] = _array(where, file, own[source], repr(name), shape, _NUMBERS).astype(model.dtype)
    for name, value in found.items():
        (model.parameters if arrays[name].trainable else model.state)[name] = value


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


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then rename."""
    import tempfile  # it and pathlib cost a quarter of `import lamella`

    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", folder)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", os.fspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
