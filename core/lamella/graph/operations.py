"""Graphs: layers joined between input nodes and output nodes, in the order in which they run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lamella.arguments import dtype_name, positive
from lamella.errors import ArgumentError, GraphError, counted, did_you_mean, shown
from lamella.graph.axes import FeatureAxes
from lamella.graph.naming import Names, check_unique, output_names
from lamella.protocol.declare import ArrayDeclaration
from lamella.protocol.layer import Layer, build, call
from lamella.protocol.node import Call, Node, valid_name
from lamella.protocol.spec import FLOATS, ArraySpec

__all__ = ["MOST", "Graph", "Operation", "assemble"]

MOST = 100_000  # operations of a graph, and of all graphs that a file describes


@dataclasses.dataclass(eq=False, repr=False)
class Operation:
    """One layer of a graph, with its place in it. Values are numbered; arrays go by their full names."""

    name: str
    prefix: str  # of the names of its arrays: the layer's name at the first operation where the layer stands
    trainable: bool  # False where the layer, or a composite around it, was made with frozen()
    groups: tuple[str, ...]  # the names of the composites around it, outermost first
    layer: Layer
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: dict[str, str]  # "kernel" -> "conv2d_1.kernel"
    state: dict[str, str]
    forward_yields: bool
    backward_yields: bool

    @property
    def label(self) -> str:
        """The name for messages."""
        return f"{self.name} ({type(self.layer).__name__})"


@dataclasses.dataclass(eq=False, repr=False, frozen=True)
class Graph:
    """Operations in topological order over numbered values; a model without arrays. Callable on nodes, as a layer is.

    Attributes:
        input_nodes, output_nodes: the nodes that it was made from.
        operations: the layers, composites expanded.
        inputs, outputs: the numbers of these values.
        input_names, output_names: what users call them.
        given_names: those of the outputs, where they do not follow from the layers.
        specs: of each value, by number.
        arrays: what the layers declared, by full name.
        calls, call_names: the layers as written, composites whole.
        models: the models and graphs that were used as layers, those that others hold last.
        prefixes: id of a layer, model or graph -> the name that stands before its arrays.
        dtype: of parameters, activations and gradients.
        seed: decides the initial values of arrays.
        kind: "Model" or "Sequential", as it was written.
        frozen_layers: the prefixes of layers whose arrays training leaves alone.
        warnings: what layers take for a mistake.
    """

    input_nodes: tuple[Node, ...]
    output_nodes: tuple[Node, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    given_names: tuple[str, ...] | None
    specs: dict[int, ArraySpec]
    arrays: dict[str, ArrayDeclaration]
    calls: tuple[Call, ...]
    call_names: tuple[str, ...]
    models: tuple[Any, ...]
    prefixes: dict[int, str]
    dtype: str
    seed: int
    kind: str
    frozen_layers: frozenset[str]
    warnings: tuple[str, ...]

    name = None
    trainable = True

    @functools.cached_property
    def input_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of each input."""
        return tuple(self.specs[value] for value in self.inputs)

    @functools.cached_property
    def output_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of each output."""
        return tuple(self.specs[value] for value in self.outputs)

    @property
    def layers(self) -> dict[str, Any]:
        """The layers as written, composites whole, by name."""
        return _ByName(zip(self.call_names, (this.layer for this in self.calls), strict=True))

    def nodes_of(self, name: str) -> tuple[Node, ...]:
        """Return the outputs of a layer as written, by its name.

        Raises:
            ArgumentError: there is no layer of that name.
        """
        if not isinstance(name, str) or name not in self.call_names:
            hint = did_you_mean(name, self.call_names) if isinstance(name, str) else ""
            raise ArgumentError(f"no layer is called {shown(name)}; there are {', '.join(self.call_names)}.{hint}")
        return self.calls[self.call_names.index(name)].outputs

    def inputs_of(self, outputs: Sequence[Node]) -> tuple[Node, ...]:
        """Return the input nodes on which some nodes depend."""
        waiting, seen = list(outputs), set[int]()
        while waiting:
            node = waiting.pop()
            if id(node) not in seen:
                seen.add(id(node))
                waiting += [] if node.call is None else node.call.inputs
        return tuple(node for node in self.input_nodes if id(node) in seen)

    def parameters_of(self, prefixes: frozenset[str]) -> frozenset[str]:
        """Return the full names of the parameters of some layers."""
        own = (operation for operation in self.operations if operation.prefix in prefixes)
        return frozenset(full for operation in own for full in operation.params.values())

    def last(self, output: int) -> Operation | None:
        """Return the operation that gives an output; None for an input that is passed on."""
        return next((one for one in self.operations if self.outputs[output] in one.outputs), None)

    def is_named(self, output: int) -> bool:
        """Whether somebody gave an output its name, so that it is none that was made up."""
        this = self.output_nodes[output].call
        return self.given_names is not None or this is None or (this.top.name or this.top.layer.name) is not None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.signature}>"

    @property
    def signature(self) -> str:
        """The specs of inputs and outputs, for people."""
        inputs, outputs = ", ".join(map(str, self.input_specs)), ", ".join(map(str, self.output_specs))
        return f"{inputs} -> {outputs}"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            known = ("predict", "fit", "evaluate", "gradients", "train_on_batch", "parameters", "state", "save")
            hint = (
                f"; a {self.kind} that was used as a layer comes from a file or a copy as a graph, without values: "
                "make a Model of it, and take them by model.copy_values(outer)"
            )
            raise AttributeError(f"Graph has no {name!r}{hint if name in known else ''}", name=name, obj=self)

    def __call__(self, *nodes: Node, name: str | None = None) -> Any:
        """Use the graph as a layer of a larger one."""
        return call(self, nodes, None if name is None else valid_name(name, "Model: name"))

    def expand(self, *nodes: Node) -> Node | tuple[Node, ...]:
        """Run through the layers on other nodes."""
        if len(nodes) != len(self.input_nodes):
            raise GraphError(f"{self!r} was called with {counted(len(nodes), 'node')}; expected {len(self.inputs)}")
        for node, spec, name in zip(nodes, self.input_specs, self.input_names, strict=True):
            fits = len(node.shape) == len(spec.shape) and node.spec.is_float == spec.is_float
            if not fits or any(isinstance(n, int) and n != m for n, m in zip(spec.shape, node.shape, strict=True)):
                raise GraphError(f"{self!r} was called with {node.spec}; expected {spec} for input {name!r}")
        known = {id(own): node for own, node in zip(self.input_nodes, nodes, strict=True)}
        for this, name in zip(self.calls, self.call_names, strict=True):
            result = call(this.layer, tuple(known[id(node)] for node in this.inputs), name)
            made = result if isinstance(result, tuple) else (result,)
            known.update((id(node), new) for node, new in zip(this.outputs, made, strict=True))
        outputs = tuple(known[id(node)] for node in self.output_nodes)
        return outputs[0] if len(outputs) == 1 else outputs


class _ByName(dict[str, Any]):
    """Layers by name."""

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str) or name not in self:
            hint = did_you_mean(name, self) if isinstance(name, str) else ""
            if isinstance(name, int | slice):
                hint = " By their places: list(model.layers.values())[0], and so on."
            raise KeyError(f"no layer called {shown(name)}; there are {', '.join(self)}.{hint}")
        return super().__getitem__(name)

    def __setitem__(self, name: Any, layer: Any) -> None:
        raise TypeError(
            f"layers[{name!r}] can't be set: a model keeps its layers; make one of other layers, and take values over "
            "by copy_values"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _ByName, (dict(self),)  # a copy sets nothing


def assemble(
    inputs: Any,
    outputs: Any,
    dtype: str,
    *,
    seed: int = 0,
    kind: str = "Model",
    given_names: Sequence[str] | None = None,
) -> Graph:
    """Name the layers between inputs and outputs, propagate shapes and dtypes, and number the values.

    ``given_names`` are what users call the outputs; None for what they call the layers.
    """
    dtype = dtype_name(dtype, "Model: dtype", FLOATS)
    seed = positive(seed, "seed", minimum=0, maximum=2**64 - 1)
    inputs, outputs = _one_or_more(inputs, "inputs"), _one_or_more(outputs, "outputs")
    calls = _reachable(inputs, outputs)
    if len(calls) > MOST:
        raise GraphError(f"Model: {len(calls):,} layers, composites expanded; expected {MOST:,} at most")
    specs: dict[int, ArraySpec] = {}
    number: dict[int, int] = {}
    input_names: list[str] = []
    axes = FeatureAxes()
    taken = 0
    takers = [(id(node), this.layer.needs_float64) for this in calls for node in this.inputs]
    wanting_float64 = {one for one, needs in takers if needs} - {one for one, needs in takers if not needs}
    for node in inputs:
        spec = node.spec
        number[id(node)] = len(number)
        specs[number[id(node)]] = spec
        if spec.is_float:  # the model's dtype, or float64 where that is asked for, or needed by all that take it
            wide = spec.dtype == "float64" or id(node) in wanting_float64
            specs[number[id(node)]] = spec.replace(dtype="float64" if wide else dtype)
        axes.begin(number[id(node)], specs[number[id(node)]])
        input_names.append(node.name or f"input_{taken + 1}")
        taken += input_names[-1].startswith("input_")
    names = Names(input_names)
    arrays: dict[str, ArrayDeclaration] = {}
    stateful: dict[str, str] = {}
    holders: dict[str, Layer] = {}
    told: list[str] = []
    operations: list[Operation] = []
    trainable: dict[int, bool] = {}
    for this in calls:
        layer, name, prefix = names.canonical(this), names.call(this), names.layer(this)
        if holders.setdefault(prefix, layer) is not layer:
            raise GraphError(f"two layers of the model are called {prefix!r}; give one of them another name")
        given = [specs[number[id(node)]] for node in this.inputs]
        built, declare = build(layer, given, dtype, name)
        declared = declare.arrays
        for spec in built:
            if spec.is_float and spec.dtype != dtype and any(own.dtype == spec.dtype for own in given):
                raise GraphError(
                    f"{name}: gives {spec} of {' and '.join(map(str, given))} in a {dtype} model; layers that bring "
                    "float64 to the model's floats, such as Normalization, come first. Likely fix: leave the dtype of "
                    "the input out, and floats follow the model"
                )
        told += [f"{name}: {text}" for text in declare.warnings]
        if len(built) != len(this.outputs):
            raise GraphError(
                f"{name}: build returned {counted(len(built), 'spec')}, {len(this.outputs)} when it was called"
            )
        for node, spec in zip(this.outputs, built, strict=True):
            number[id(node)] = len(number)
            specs[number[id(node)]] = spec
        mistake = axes.follow(
            name,
            declare,
            [(number[id(node)], spec) for node, spec in zip(this.inputs, given, strict=True)],
            [(number[id(node)], spec) for node, spec in zip(this.outputs, built, strict=True)],
        )
        told += [mistake] if mistake else []
        for local, declaration in declared.items():
            full = f"{prefix}.{local}"
            known = arrays.setdefault(full, declaration)
            if (known.shape, known.memory) != (declaration.shape, declaration.memory):
                raise GraphError(
                    f"{name}: shared layer {prefix!r} needs {local!r} of shape {declaration.shape} here and "
                    f"{known.shape} at its first node; use two layers"
                )
            if not declaration.trainable and stateful.setdefault(prefix, name) != name:
                raise GraphError(
                    f"{name}: layer {prefix!r} has state ({local}) and may stand at one node only; use two layers"
                )
        operations.append(
            Operation(
                name=name,
                prefix=prefix,
                trainable=_trainable(this, trainable),
                groups=names.groups(this),
                layer=layer,
                inputs=tuple(number[id(node)] for node in this.inputs),
                outputs=tuple(number[id(node)] for node in this.outputs),
                params={local: f"{prefix}.{local}" for local, d in declared.items() if d.trainable},
                state={local: f"{prefix}.{local}" for local, d in declared.items() if not d.trainable},
                forward_yields=inspect.isgeneratorfunction(type(layer).forward_pass),
                backward_yields=inspect.isgeneratorfunction(type(layer).backward_pass),
            )
        )
    tops = tuple({id(this.top): this.top for this in calls}.values())
    check_unique("inputs", input_names)
    check_unique("nodes", [*input_names, *(operation.name for operation in operations)])
    check_unique("nodes", [*input_names, *map(names.call, tops)])
    known_outputs = output_names(inputs, input_names, outputs, names)
    if given_names is not None:
        if len(given_names) != len(outputs) or not all(isinstance(name, str) and name for name in given_names):
            raise GraphError(f"Model: expected names for {counted(len(outputs), 'output')}, got {shown(given_names)}")
        known_outputs = given_names = tuple(given_names)
        check_unique("inputs and outputs", [*input_names, *known_outputs])
    held = [operation for operation in operations if operation.params or operation.state]
    return Graph(
        input_nodes=inputs,
        output_nodes=outputs,
        operations=tuple(operations),
        inputs=tuple(number[id(node)] for node in inputs),
        outputs=tuple(number[id(node)] for node in outputs),
        input_names=tuple(input_names),
        output_names=known_outputs,
        given_names=given_names,
        specs=specs,
        arrays=arrays,
        calls=tops,
        call_names=tuple(map(names.call, tops)),
        models=_models(calls),
        prefixes=names.layers,
        dtype=dtype,
        seed=seed,
        kind=kind,
        frozen_layers=frozenset(operation.prefix for operation in held if not operation.trainable),
        warnings=tuple(told),
    )


def _reachable(inputs: Sequence[Node], outputs: Sequence[Node]) -> list[Call]:
    """The calls of layers that outputs depend on, in the order in which they were made."""
    known = {id(node) for node in inputs}
    found: dict[int, Call] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if id(node) in known:
            continue
        if node.call is None:
            raise GraphError(
                f"Model: the outputs depend on {node!r}, which is not among the inputs; add it to Model(inputs=...)"
            )
        if node.call.serial not in found:
            found[node.call.serial] = node.call
            waiting.extend(node.call.inputs)
    used = {id(node) for this in found.values() for node in this.inputs} | {id(node) for node in outputs}
    for node in inputs:
        if id(node) not in used:
            raise GraphError(f"Model: no output depends on input {node!r}; leave it out of Model(inputs=...)")
    return [found[serial] for serial in sorted(found)]


def _models(calls: Iterable[Call]) -> tuple[Any, ...]:
    """The models around calls, each once, those that others hold last."""
    seen: set[int] = set()
    found: dict[int, Any] = {}
    for this in calls:
        around, outer = [], this.parent
        while outer is not None and id(outer) not in seen:  # else those around it are known, too
            seen.add(id(outer))
            around.append(outer.layer)
            outer = outer.parent
        found.update((id(layer), layer) for layer in reversed(around) if not isinstance(layer, Layer))
    return tuple(found.values())


def _trainable(this: Call, known: dict[int, bool]) -> bool:
    """Whether neither the layer nor a composite around it was made frozen; calls that are known, by id."""
    if id(this) not in known:
        known[id(this)] = bool(this.layer.trainable) and (this.parent is None or _trainable(this.parent, known))
    return known[id(this)]


def _one_or_more(value: Any, what: str) -> tuple[Node, ...]:
    """A node, or several of them, as a tuple."""
    nodes: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
    result = tuple(nodes)
    if isinstance(value, Mapping):
        given = "lm.Input(shape, name='age')" if what == "inputs" else "layer.named('price')"
        raise GraphError(
            f"Model: {what}: expected a node or a tuple of nodes, got a dict with {shown(list(value))}. Likely fix: "
            f"list({what}.values()), where names are given by {given}"
        )
    if not result or not all(isinstance(node, Node) for node in result):
        raise GraphError(f"Model: {what}: expected a node or a tuple of nodes, got {shown(value)}")
    return result
