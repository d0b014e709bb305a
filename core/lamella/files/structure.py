"""Graphs as plain data: registered words and constructor's arguments, which fit into JSON, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lamella.activations import ACTIVATIONS
from lamella.errors import DataError, GraphError, RegistryError, VersionWarning, shown
from lamella.graph.operations import MOST, Graph, assemble
from lamella.initializers import INITIALIZERS
from lamella.losses import LOSSES
from lamella.metrics import METRICS
from lamella.optimizers import OPTIMIZERS
from lamella.protocol.configured import Configured, words_of
from lamella.protocol.layer import LAYERS, Layer
from lamella.protocol.node import Call, Input, Node
from lamella.registry import SCRIPT, Entry, Kind, Note, Plugin, noting
from lamella.schedules import SCHEDULES

__all__ = ["MissingWord", "Reader", "Writer", "described", "refusing"]

_KINDS: dict[str, Kind] = {kind.name: kind for kind in (LAYERS, LOSSES, OPTIMIZERS, SCHEDULES, METRICS, INITIALIZERS)}
_WORDS: dict[str, Kind] = {**_KINDS, ACTIVATIONS.name: ACTIVATIONS}


def described(model: Any) -> dict[str, Any]:
    """Return the structure of a graph, or of a network, as plain data.

    Layers and inner models stand in one table, each once wherever it is used, those that others hold before these.
    """
    writer = Writer()
    return {**writer.model(model), "layers": writer.layers}


@contextlib.contextmanager
def refusing(where: str, expected: str) -> Iterator[None]:
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


class Writer:
    """Describes objects as plain data, and collects the layers and inner models that they hold."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}  # id of a layer or inner model -> its place among them

    def model(self, model: Any) -> dict[str, Any]:
        """A graph, or a network, but for the table of its layers."""
        graph: Graph = getattr(model, "graph", model)
        places = {id(node): [0, k] for k, node in enumerate(graph.input_nodes)}  # node -> call, output; inputs: call 0
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

        for this in graph.calls:
            add(this)
        inputs = []
        for node, spec in zip(graph.input_nodes, graph.input_specs, strict=True):
            given = {"shape": list(spec.shape[1:]), "dtype": None if spec.dtype == graph.dtype else spec.dtype}
            options = {"name": node.name, "low": spec.low, "high": spec.high}
            inputs.append(given | {key: self._value(value) for key, value in options.items() if value is not None})
        return {
            "class": graph.kind,
            "dtype": graph.dtype,
            "seed": model.seed,
            "inputs": inputs,
            "calls": calls,
            "outputs": [places[id(node)] for node in graph.output_nodes],
            **({} if graph.given_names is None else {"output_names": list(graph.given_names)}),
            "frozen": sorted(model.frozen_layers),
        }

    def configured(self, value: Configured) -> Any:
        """An object by its registered name; an unregistered class stands for itself, and fits no file."""
        kind = next((kind for kind in _KINDS.values() if kind.gives(value)), None)
        if kind is None:
            return value
        entry = kind.entry_of(type(value))
        described: dict[str, Any] = {
            "kind": kind.name,
            "type": type(value) if entry is None else entry.qualified,
            "version": None if entry is None else entry.plugin.version or None,
            "config": {name: self._value(item, words_of(value)) for name, item in value.config().items()},
        }
        return described | {"name": value.name, "trainable": value.trainable} if isinstance(value, Layer) else described

    def _place(self, layer: Any) -> int:
        if id(layer) not in self._places:
            described = self.configured(layer) if isinstance(layer, Layer) else {"model": self.model(layer)}
            self._places[id(layer)] = len(self.layers)
            self.layers.append(described)
        return self._places[id(layer)]

    def _value(self, value: Any, words: Mapping[str, Note] = MappingProxyType({})) -> Any:
        """An argument; ``words`` are those that its owner has looked up among registered names."""
        if isinstance(value, Layer) or _is_model(value):
            return {"layer": self._place(value)}
        if isinstance(value, Configured):
            return self.configured(value)
        if isinstance(value, str):
            return _noted(words[value]) if value in words else value
        if isinstance(value, MissingWord):
            return value.described
        if isinstance(value, tuple):
            return [self._value(item, words) for item in value]
        if isinstance(value, dict):  # as pairs: in JSON, keys are strings
            return {"dict": [[self._value(key), self._value(item, words)] for key, item in value.items()]}
        if isinstance(value, float) and not math.isfinite(value):  # JSON has none
            return {"float": str(value)}
        for kind in (ACTIVATIONS, INITIALIZERS):
            if not kind.fault(value):
                entry = next((entry for entry in kind.entries() if entry.object is value), None)
                if entry is not None:
                    return _word(kind.name, entry)
        return value


def _noted(note: Note) -> Any:
    """What was looked up: its word, or an activation itself if a script has given its name to another since."""
    kind, _, entry = note
    if kind == ACTIVATIONS.name and entry.plugin.distribution == SCRIPT:
        current = ACTIVATIONS.entry_of(entry.object)
        return entry.object if current is None else _word(kind, current)
    return _word(kind, entry)


def _word(kind: str, entry: Entry) -> dict[str, Any]:
    """A registered word, as files keep it."""
    return {"kind": kind, "word": entry.qualified, "version": entry.plugin.version or None}


class MissingWord:
    """An initializer that no installed plugin gives, in a model whose values came from a file: nobody needs it."""

    def __init__(self, described: Mapping[str, Any], error: RegistryError) -> None:
        self.described, self._error = dict(described), error

    def __call__(self, *arguments: Any) -> Any:
        raise self._error

    def __repr__(self) -> str:
        return repr(self._name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MissingWord) and self.described == other.described

    def __hash__(self) -> int:
        return hash(self._name)

    @property
    def _name(self) -> str:
        return str(self.described.get("word") or self.described.get("type"))


class Reader:
    """Makes layers and graphs of their descriptions: in ``graph`` the whole, in ``inner`` those used as layers.

    ``given`` are classes and functions by name, in place of what is registered. ``drawn`` says whether initial values
    will be drawn, for which initializers must be there.
    """

    def __init__(
        self, config: Mapping[str, Any], given: Mapping[str, Any] = MappingProxyType({}), *, drawn: bool = True
    ) -> None:
        self._given, self._drawn = given, drawn
        self.taken: set[str] = set()  # names among the given that were asked for
        self.names: set[str] = set()  # full names that were looked up
        self.versions: dict[str, tuple[str, str]] = {}  # distribution -> its version then and now, where they differ
        self.layers: list[Any] = []
        self._operations = 0  # of all graphs so far, but for what composites expand to
        for described in config["layers"]:
            inner = "model" in described
            self.layers.append(self._graph(described["model"]) if inner else self.configured(described, Layer))
        self.graph = self._graph(config)

    @property
    def inner(self) -> list[Graph]:
        """The graphs used as layers, each after those that it holds."""
        return [layer for layer in self.layers if isinstance(layer, Graph)]

    def note_versions(self, where: str, *, stacklevel: int = 3) -> None:
        """Warn of every distribution that has another version now."""
        for distribution, (then, now) in self.versions.items():
            warnings.warn(
                f"{where}: written with {distribution} {then}; {now} is installed. If results differ, install "
                f"{distribution}=={then}",
                VersionWarning,
                stacklevel=stacklevel,
            )

    def configured(self, described: Mapping[str, Any], base: type[Configured] = Configured) -> Any:
        """An object of a registered class, which must be of the kind that is wanted."""
        kind, found = _KINDS[described["kind"]], described["type"]
        if not isinstance(found, type):
            try:
                found = self._found(kind, found)
            except RegistryError as error:
                if kind is INITIALIZERS and not self._drawn:
                    return MissingWord(described, error)
                raise
        if not isinstance(found, type) or kind.fault(found) or not issubclass(found, base):
            raise TypeError(f"{described['type']!r} is no {base.__name__}")
        arguments = {argument: self._value(item) for argument, item in described["config"].items()}
        entry, version = kind.entry_of(found), described["version"]
        differs = entry is not None and self._note_version(entry.plugin, version)
        if differs:
            arguments = found.migrate(arguments, str(version))
        try:
            made = found(**arguments)
        except TypeError as error:
            if entry is None or not differs:
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

    def _found(self, kind: Kind, name: str) -> Any:
        """What stands for a full name: what was given for it, or is registered."""
        self.names.add(str(name))
        plain = str(name).rpartition(":")[2]
        for key in (name, plain) if name == f"{SCRIPT}:{plain}" else (name,):
            if key in self._given:
                self.taken.add(key)
                found = self._given[key]
                if expected := kind.fault(found):
                    raise DataError(f"layers: {key!r}: expected {expected}, got {shown(found)}")
                return found
        return kind.find(name)

    def _word(self, described: Mapping[str, Any]) -> Any:
        """A registered word: plain where that means the same here, else in full."""
        kind, name = _WORDS[described["kind"]], described["word"]
        with noting() as notes:
            try:
                found = self._found(kind, name)
            except RegistryError as error:
                if kind is INITIALIZERS and not self._drawn:
                    return MissingWord(described, error)
                raise
        if not notes:  # it was given
            return found
        self._note_version(notes[0].entry.plugin, described["version"])
        plain = name.rpartition(":")[2]
        try:
            return plain if kind.find(plain) is found else name
        except RegistryError:  # several give the plain name
            return name

    def _note_version(self, plugin: Plugin, then: Any) -> bool:
        """Take down that a distribution had another version then, if so."""
        differs = plugin.distribution != SCRIPT and then not in (None, plugin.version)
        if differs:
            self.versions[plugin.distribution] = str(then), plugin.version
        return differs

    def _graph(self, config: Mapping[str, Any]) -> Graph:
        inputs = [Input(**{key: self._value(value) for key, value in given.items()}) for given in config["inputs"]]
        nodes: list[tuple[Node, ...]] = [tuple(inputs)]
        for entry in config["calls"]:
            self._operations += len(getattr(_at(self.layers, entry["layer"]), "operations", " "))
        if self._operations > MOST:
            raise DataError(
                f"models within models come to {self._operations:,} layers and more; expected {MOST:,} at most"
            )
        for entry in config["calls"]:
            given = [_at(_at(nodes, number), k) for number, k in entry["inputs"]]
            result = _at(self.layers, entry["layer"])(*given, name=entry.get("name"))
            nodes.append(result if isinstance(result, tuple) else (result,))
        outputs = tuple(_at(_at(nodes, number), k) for number, k in config["outputs"])
        if config["class"] not in ("Model", "Sequential"):
            raise ValueError(f"class: expected 'Model' or 'Sequential', got {config['class']!r}")
        names = config.get("output_names")
        graph = assemble(
            nodes[0], outputs, config["dtype"], seed=config["seed"], kind=config["class"], given_names=names
        )
        frozen = frozenset(config["frozen"])
        known = {operation.prefix for operation in graph.operations if operation.params or operation.state}
        if unknown := frozen - known:
            raise ValueError(f"frozen: there are no layers {unknown!r} with arrays")
        return dataclasses.replace(graph, frozen_layers=frozen)

    def _value(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(self._value(item) for item in value)
        match value:
            case {"layer": number}:
                return _at(self.layers, number)
            case {"dict": pairs}:
                return {self._value(key): self._value(item) for key, item in pairs}
            case {"word": str()}:
                return self._word(value)
            case {"float": text}:
                return float(text)
            case Mapping():
                return self.configured(value)
        return value


def _is_model(value: Any) -> bool:
    """Whether a value is a graph, or a network, which has one."""
    return isinstance(getattr(value, "graph", value), Graph)


def _at(items: Sequence[Any], number: Any) -> Any:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(items):
        raise IndexError(f"expected a number below {len(items)}, got {number!r}")
    return items[number]
