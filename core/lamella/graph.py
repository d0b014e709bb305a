"""Layers joined into a graph: symbolic inputs, nodes, and the assembly of a program that the engine runs."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lamella import registry
from lamella.errors import ArgumentError, GraphError, RegistryError, counted
from lamella.protocol import ArrayDeclaration, ArraySpec, Declare, Layer, is_generator, snake_case, valid_name

__all__ = ["Call", "Input", "Leaf", "Node", "Program", "assemble", "call"]

_serial = itertools.count()


@dataclasses.dataclass(eq=False)
class Call:
    """One use of a layer on nodes. A composite's call is the ``parent`` of the calls that its expansion made."""

    layer: Any  # a Layer, or a Model used as one
    inputs: tuple[Node, ...]
    name: str | None
    parent: Call | None
    serial: int = dataclasses.field(default_factory=lambda: next(_serial))
    outputs: tuple[Node, ...] = ()
    inner: list[Any] = dataclasses.field(default_factory=list)  # a composite's layers, each once, in order of calls

    def ordinal(self, layer: Any) -> int:
        """The place of a layer among a composite's own."""
        return next((k for k, known in enumerate(self.inner) if known is layer), len(self.inner))

    def contains(self, node: Node) -> bool:
        """Whether a node is an input of this composite, or was made within it."""
        this = node.call
        while this is not None and this is not self:
            this = this.parent
        return this is self or any(node is known for known in self.inputs)

    @property
    def top(self) -> Call:
        """The outermost composite's call, or this one."""
        return self if self.parent is None else self.parent.top


@dataclasses.dataclass(eq=False)
class Node:
    """An array of a graph: an input, or one output of a layer. Layers are called with nodes."""

    call: Call | None
    index: int
    spec: ArraySpec
    name: str | None = None

    @property
    def shape(self) -> tuple[int | str, ...]:
        """The shape, starting with ``"N"``."""
        return self.spec.shape

    def __repr__(self) -> str:
        origin = f"output of {type(self.call.layer).__name__}" if self.call else "input"
        return f"<node {self.spec}, {origin}{f' {self.name!r}' if self.name else ''}>"

    def __add__(self, other: object) -> Any:
        raise TypeError("nodes are joined by layers, such as lm.layer('add')(a, b), and not by operators")

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __add__


def Input(
    shape: Sequence[int | str] | int,
    dtype: str | None = None,
    *,
    name: str | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Node:
    """Begin a graph: an array with the given shape for each sample, the batch axis not counted.

    ``dtype=None`` is the model's own float type. An axis given by a name, such as ``"T"``, may have any size. Exports
    and checks draw from ``low <= value < high``; integers outside of it are refused as data.

    >>> import lamella as lm
    >>> lm.Input((1, 28, 28)).shape
    ('N', 1, 28, 28)
    """
    if isinstance(shape, int):
        shape = (shape,)
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise ArgumentError(f"Input: shape: expected a tuple of sizes without the batch axis, got {shape!r}")
    if any(size is None for size in shape):
        raise ArgumentError(f"Input: shape {tuple(shape)!r}: name an axis of unknown size, for example 'T'")
    if "N" in shape:
        raise ArgumentError(f"Input: shape {tuple(shape)!r}: the batch axis 'N' is added in front; leave it out")
    if name is not None:
        valid_name(name, "Input: name")
    try:
        spec = ArraySpec(("N", *shape), dtype or "float32", low, high)
    except ArgumentError as error:
        raise ArgumentError(str(error).replace("ArraySpec", "Input", 1)) from None
    return Node(None, next(_serial), spec, name)


_open_group: contextvars.ContextVar[Call | None] = contextvars.ContextVar("open_group", default=None)


def call(layer: Any, nodes: tuple[Any, ...], name: str | None) -> Any:
    """Add a layer to the graph that the nodes belong to; what ``layer(node)`` does."""
    for node in nodes:
        if not isinstance(node, Node):
            hint = "pass nodes one by one: layer(a, b)" if isinstance(node, list | tuple) else (
                "a layer has no parameters of its own; build a model and call model.predict on arrays"
            )  # fmt: skip
            raise GraphError(
                f"{type(layer).__name__} was called with {type(node).__name__}; expected nodes from lamella.Input or "
                f"other layers. Likely fix: {hint}"
            )
    if not nodes:
        raise GraphError(f"{type(layer).__name__} was called with no nodes; expected one or more, as in layer(x)")
    parent = _open_group.get()
    if parent is not None and not any(parent.contains(node) for node in nodes):
        parent = None  # the graph of a model that the composite makes for itself
    if parent is not None and parent.ordinal(layer) == len(parent.inner):
        parent.inner.append(layer)
    this = Call(layer, nodes, name, parent)
    token = _open_group.set(this)
    try:
        _check_takes(layer, "expand", len(nodes))
        expanded = layer.expand(*nodes)
    finally:
        _open_group.reset(token)
    if expanded is None:
        if type(layer).forward_pass is Layer.forward_pass:
            raise GraphError(
                f"{type(layer).__name__} defines neither forward_pass nor expand; a layer needs one of them"
                + _renamed(layer)
            )
        specs, _ = _build(layer, [node.spec for node in nodes], "float32", name)
        _check_takes(layer, "forward_pass", len(nodes), first="ctx")
        _check_takes(layer, "backward_pass", len(nodes), first="ctx", count=len(specs))
        this.outputs = tuple(Node(this, index, spec) for index, spec in enumerate(specs))
    else:
        this.outputs = expanded if isinstance(expanded, tuple) else (expanded,)
        if not all(isinstance(node, Node) for node in this.outputs):
            raise GraphError(f"{type(layer).__name__}.expand must return a node or a tuple of nodes, got {expanded!r}")
    return this.outputs[0] if len(this.outputs) == 1 else this.outputs


def _check_takes(layer: Any, method: str, nodes: int, *, first: str = "", count: int | None = None) -> None:
    """Refuse a method that does not take a first argument, if it has a name, and one for each node, or ``count``."""
    signature = inspect.signature(getattr(layer, method))
    count = nodes if count is None else count
    error = _does_not_take(signature, count + bool(first))
    if not error:
        return
    where = "" if method == "build" else f"{type(layer).__name__}.{method}, "
    fix = f"give {layer!r} as many nodes as its {method} takes"
    if first and next(iter(signature.parameters), first) != first and not _does_not_take(signature, count):
        fix = f"its first argument is missing: def {method}(self, {', '.join([first, *signature.parameters])})"
    elif method == "backward_pass":
        fix = f"it takes ctx, and a gradient for each output, of which build returns {count}"
    raise GraphError(f"{where}called with {counted(nodes, 'node')}: {error}; {fix}")


def _does_not_take(signature: inspect.Signature, count: int) -> str:
    """Why so many arguments can't be given by position, or nothing."""
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        return str(error)
    return ""


def _build(
    layer: Layer, inputs: list[ArraySpec], dtype: str, name: str | None
) -> tuple[tuple[ArraySpec, ...], dict[str, ArrayDeclaration]]:
    """Run a layer's ``build`` and check what it returns."""
    label = f"{type(layer).__name__} {name!r}" if name else repr(layer)
    where = f"{label}, called with {' and '.join(map(str, inputs)) or 'no inputs'}"
    declare = Declare(dtype)
    try:
        _check_takes(layer, "build", len(inputs), first="declare")
        result = layer.build(declare, *inputs)
    except ValueError as error:
        raise GraphError(f"{where}: {error}") from error
    for local, declared in declare.arrays.items():
        if isinstance(declared.initializer, str):
            try:
                registry.find("initializers", declared.initializer)
            except RegistryError as error:
                raise RegistryError(f"{where}: initializer of {local!r}: {error}") from None
    specs = result if isinstance(result, tuple) else (result,)
    for spec in specs:
        if not isinstance(spec, ArraySpec):
            raise GraphError(f"{where}: build must return an ArraySpec or a tuple of them, got {result!r}")
        if inputs and spec.shape[:1] != inputs[0].shape[:1]:
            raise GraphError(f"{where}: build returned {spec}; axis 0 must stay the batch axis, {inputs[0].shape[0]!r}")
    for spec in (*inputs, *specs):  # where a layer's own words have not refused it
        if 0 in spec.shape:
            raise GraphError(f"{where}: expected sizes of 1 or more, got {spec}, in which there are no numbers")
    return specs, declare.arrays


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One layer of a program, with its place in it. Values are numbered; arrays go by their full names."""

    name: str
    owner: str  # the name that its arrays carry: that of the first node where the layer stands
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


class Cost(NamedTuple):
    """What decides how a program's batches are cut."""

    work: int  # multiplications that a row costs, roughly: in layers that walk over time, in one step and for one gate
    largest: int  # bytes that the largest layer reads and writes for a row
    widest: int  # numbers in the largest matrix of weights
    coupled: bool  # whether layers share sums over the batch
    recurrent: bool  # whether layers walk over time


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph made ready to run: leaves in topological order over numbered values."""

    leaves: tuple[Leaf, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    specs: dict[int, ArraySpec]
    arrays: dict[str, ArrayDeclaration]  # by full name
    calls: tuple[Call, ...]  # as written, composites whole
    call_names: tuple[str, ...]
    inner_models: tuple[Any, ...]  # models used as layers
    owners: dict[int, str]  # id of a layer or model -> the name that stands before its arrays
    dtype: str

    @functools.cached_property
    def cost(self) -> Cost:
        """What a row costs, once for all steps; an axis of unknown size counts as 16.

        Every weight is used once for each output position. Where layers walk over time, all steps come one after the
        other, and threads pay only if one of them is long.
        """
        itemsize = 4 if self.dtype == "float32" else 8
        sizes = {
            value: math.prod(n if isinstance(n, int) else 16 for n in spec.shape[1:])
            for value, spec in self.specs.items()
        }
        work = largest = 0
        for leaf in self.leaves:
            width = self.specs[leaf.inputs[0]].shape[-1]
            reach = max((_reach(self.arrays[full].shape, width) for full in leaf.params.values()), default=1)
            if leaf.layer.recurrent:
                work += _work_of_a_step([self.arrays[full].shape for full in leaf.params.values()])
            else:
                work += max(1, reach) * sum(sizes[value] for value in leaf.outputs)
            largest = max(largest, itemsize * sum(sizes[value] for value in (*leaf.inputs, *leaf.outputs)))
        matrices = (math.prod(array.shape) for array in self.arrays.values() if len(array.shape) == 2)
        coupled = any(leaf.forward_yields or leaf.backward_yields for leaf in self.leaves)
        recurrent = any(leaf.layer.recurrent for leaf in self.leaves)
        return Cost(work, largest, max(matrices, default=0), coupled, recurrent)


def _renamed(layer: Layer) -> str:
    """What somebody who comes from another engine may have called a method."""
    names = {"forward": "forward_pass", "call": "forward_pass", "backward": "backward_pass"}
    found = [f"{theirs} is called {ours} here" for theirs, ours in names.items() if hasattr(layer, theirs)]
    return f" ({'; '.join(found)})" if found else ""


def _work_of_a_step(shapes: Iterable[tuple[int, ...]]) -> int:
    """Multiplications in one step of a recurrence and for one of its gates, whose kernels stand side by side."""
    kernels = [shape for shape in shapes if len(shape) == 2] or [(1, 1)]
    units, columns = kernels[-1]  # that of the state, (units, gates * units)
    return sum(map(math.prod, kernels)) // max(1, columns // max(1, units))


def _reach(kernel: tuple[int, ...], width: int | str) -> int:
    """How many numbers one number of the output is a sum over: (in, out) or (filters, channels, height, width)."""
    if len(kernel) == 2:
        return kernel[0] if kernel[0] == width else 1  # else a table, in which rows are looked up
    return math.prod(kernel[1:])


def assemble(inputs: Sequence[Node], outputs: Sequence[Node], dtype: str) -> Program:
    """Name the layers between inputs and outputs, propagate shapes and dtypes, and number the values."""
    leaves = _reachable(inputs, outputs)
    specs: dict[int, ArraySpec] = {}
    number: dict[int, int] = {}
    input_names: list[str] = []
    for node in inputs:
        spec = node.spec
        if spec.is_float and spec.dtype not in ("float32", dtype):
            raise GraphError(f"Input {spec} in a {dtype} model; leave dtype out, and floats follow the model")
        number[id(node)] = len(number)
        specs[number[id(node)]] = spec.replace(dtype=dtype) if spec.is_float else spec
        taken = len([name for name in input_names if name.startswith("input_")]) + 1
        input_names.append(node.name or f"input_{taken}")
    names = _Names(input_names)
    arrays: dict[str, ArrayDeclaration] = {}
    stateful: dict[str, str] = {}
    owners: dict[str, Layer] = {}
    program: list[Leaf] = []
    for this in leaves:
        layer, name, owner = names.canonical(this), names.call(this), names.layer(this)
        if owners.setdefault(owner, layer) is not layer:
            raise GraphError(f"two layers of the model are called {owner!r}; give one of them another name")
        given = [specs[number[id(node)]] for node in this.inputs]
        built, declared = _build(layer, given, dtype, name)
        if len(built) != len(this.outputs):
            raise GraphError(
                f"{name}: build returned {counted(len(built), 'spec')}, {len(this.outputs)} when it was called"
            )
        for node, spec in zip(this.outputs, built, strict=True):
            number[id(node)] = len(number)
            specs[number[id(node)]] = spec
        for local, declaration in declared.items():
            full = f"{owner}.{local}"
            known = arrays.setdefault(full, declaration)
            if (known.shape, known.memory) != (declaration.shape, declaration.memory):
                raise GraphError(
                    f"{name}: shared layer {owner!r} needs {local!r} of shape {declaration.shape} here and "
                    f"{known.shape} at its first node; use two layers"
                )
            if not declaration.trainable and stateful.setdefault(owner, name) != name:
                raise GraphError(
                    f"{name}: layer {owner!r} has state ({local}) and may stand at one node only; use two layers"
                )
        program.append(
            Leaf(
                name=name,
                owner=owner,
                trainable=_trainable(this),
                groups=names.groups(this),
                layer=layer,
                inputs=tuple(number[id(node)] for node in this.inputs),
                outputs=tuple(number[id(node)] for node in this.outputs),
                params={local: f"{owner}.{local}" for local, d in declared.items() if d.trainable},
                state={local: f"{owner}.{local}" for local, d in declared.items() if not d.trainable},
                forward_yields=is_generator(type(layer).forward_pass),
                backward_yields=is_generator(type(layer).backward_pass),
            )
        )
    tops = tuple({id(this.top): this.top for this in leaves}.values())
    _check_unique("inputs", input_names)
    _check_unique("nodes", [*input_names, *(leaf.name for leaf in program)])
    _check_unique("nodes", [*input_names, *map(names.call, tops)])
    return Program(
        leaves=tuple(program),
        inputs=tuple(number[id(node)] for node in inputs),
        outputs=tuple(number[id(node)] for node in outputs),
        input_names=tuple(input_names),
        output_names=_output_names(inputs, input_names, outputs, names),
        specs=specs,
        arrays=arrays,
        calls=tops,
        call_names=tuple(map(names.call, tops)),
        inner_models=tuple({id(c.layer): c.layer for leaf in leaves for c in _models_around(leaf)}.values()),
        owners=names.layers,
        dtype=dtype,
    )


def _reachable(inputs: Sequence[Node], outputs: Sequence[Node]) -> list[Call]:
    """The leaf calls that outputs depend on, in the order in which they were made."""
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


class _Names:
    """Gives every call of a graph its name, and every layer the name that its arrays carry.

    A layer goes by the name it was given, else by that of its first call, else by ``<registered name>_<n>``. A call
    goes by its own name, else by its layer's, with ``#2``, ``#3`` where the layer is used again. Within a composite
    both follow the composite's, after a slash; an inner layer named "" takes the composite's own.
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self.layers: dict[int, str] = {}  # id of a layer -> the name of its arrays
        self._calls: dict[int, str] = {}
        self._used: set[str] = set(inputs)
        self._first: dict[int, Call] = {}  # id of a composite -> its first call

    def canonical(self, this: Call) -> Any:
        """The layer of a call. A composite makes new inner layers each time it is called; those of its first call
        stand for all of them, so that sharing the composite shares what is inside."""
        if this.parent is None:
            return this.layer
        outer = self.canonical(this.parent)
        first = self._first.setdefault(id(outer), this.parent)
        k = this.parent.ordinal(this.layer)
        used = first.inner[k] if k < len(first.inner) else None
        if used != this.layer:
            raise GraphError(
                f"{outer!r} is shared, but expands to {this.layer!r} here and to {used!r} where it was first called; "
                "use two layers, or call it on nodes of equal shape"
            )
        return used

    def layer(self, this: Call) -> str:
        """The name that the arrays of a call's layer carry."""
        layer = self.canonical(this)
        if id(layer) not in self.layers:
            scope = self.layer(this.parent) if this.parent else ""
            given = this.name if layer.name is None else layer.name
            if given == "" and not scope:
                raise GraphError(f"{layer!r}: the empty name stands for the composite's own, within expand only")
            self.layers[id(layer)] = self.free(scope, _base(layer)) if given is None else _join(scope, given)
        self._used.add(self.layers[id(layer)])
        return self.layers[id(layer)]

    def call(self, this: Call) -> str:
        """The name of a call."""
        if id(this) not in self._calls:
            scope, outer = (self.call(this.parent), self.layer(this.parent)) if this.parent else ("", "")
            first = id(self.canonical(this)) not in self.layers
            own = self.layer(this)
            if this.name is not None:
                name = _join(scope, this.name)
            else:
                name = scope + own[len(outer) :] if scope != outer and own.startswith(outer) else own
                if not first and name in self._used and name != scope:
                    name = next(n for k in itertools.count(2) if (n := f"{name}#{k}") not in self._used)
            self._calls[id(this)] = name
            self._used.add(name)
        return self._calls[id(this)]

    def groups(self, this: Call) -> tuple[str, ...]:
        """The names of the composites around a call, outermost first."""
        return () if this.parent is None else (*self.groups(this.parent), self.call(this.parent))

    def free(self, scope: str, base: str) -> str:
        """The first ``<base>_<n>`` of a scope that is not taken."""
        return next(n for k in itertools.count(1) if (n := _join(scope, f"{base}_{k}")) not in self._used)


def _join(scope: str, name: str) -> str:
    return f"{scope}/{name}".strip("/")


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GraphError(f"two {what} of the model are called {name!r}; give one of them another name")
        seen.add(name)


def _models_around(this: Call) -> Iterable[Call]:
    """The calls of models around a call, innermost last."""
    if this.parent is not None:
        yield from _models_around(this.parent)
        if not isinstance(this.parent.layer, Layer):
            yield this.parent


def _trainable(this: Call) -> bool:
    return bool(this.layer.trainable) and (this.parent is None or _trainable(this.parent))


def _base(layer: Any) -> str:
    """What a made-up name starts with: the registered name, or the class's in snake case."""
    entry = registry.name_of("layers", type(layer)) if isinstance(layer, Layer) else None
    return entry.name if entry else snake_case(type(layer).__name__)


def _output_names(
    inputs: Sequence[Node], input_names: list[str], outputs: Sequence[Node], names: _Names
) -> tuple[str, ...]:
    """Outputs go by the outermost layer that made them; several of one layer are numbered: ``split_1.0``."""
    own: list[str] = []
    for node in outputs:
        if node.call is None:
            own.append(input_names[next(k for k, given in enumerate(inputs) if given is node)])
        else:
            own.append(names.call(node.call.top))
    repeated = [name if own.count(name) == 1 else f"{name}.{own[:k].count(name)}" for k, name in enumerate(own)]
    if len({id(node) for node in outputs}) != len(outputs):
        raise GraphError(f"Model: the same node stands twice among the outputs {', '.join(own)}")
    return tuple(repeated)


def one_or_more(value: Any, what: str) -> tuple[Node, ...]:
    """A node, or several of them, as a tuple."""
    nodes: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
    result = tuple(nodes)
    if not result or not all(isinstance(node, Node) for node in result):
        raise GraphError(f"Model: {what}: expected a node or a tuple of nodes, got {value!r}")
    return result
