"""Layers: configuration, a forward pass and a backward pass; what happens when one is called on nodes."""

from __future__ import annotations

import contextvars
import inspect
import weakref
from collections import Counter
from typing import Any, Protocol, Self, overload

from lamella import elsewhere, registry
from lamella.arguments import knows
from lamella.errors import GraphError, RegistryError, counted
from lamella.protocol.configured import Configured, note_words
from lamella.protocol.context import Context
from lamella.protocol.declare import Declare
from lamella.protocol.node import Call, Node, valid_name
from lamella.protocol.spec import ArraySpec

__all__ = ["LAYERS", "Layer", "build", "call", "layer"]


class _OneOutput(Protocol):
    """What a layer with a single output says of itself: most say nothing else."""

    def build(self, declare: Declare, /, *inputs: Any, **named: Any) -> ArraySpec: ...

    def expand(self, /, *nodes: Any, **named: Any) -> Node | None: ...


class Layer(Configured):
    """One step of a model: configuration plus a forward and a backward pass.

    A layer made of array code overrides ``forward_pass``, ``backward_pass`` and, unless its output has its input's
    shape, ``build``. A layer made of other layers overrides only ``expand``. A layer object holds its configuration
    and nothing else: parameters and state belong to the model, activations to the context.

    >>> import lamella as lm
    >>> class Scale(lm.Layer):
    ...     def __init__(self, factor: float):
    ...         self.factor = factor
    ...     def forward_pass(self, ctx, x):
    ...         return x * self.factor
    ...     def backward_pass(self, ctx, dy):
    ...         return dy * self.factor
    >>> model = lm.Sequential([Scale(3.0)], input_shape=(2,))
    >>> model.predict([[1.0, 2.0]])
    array([[3., 6.]], dtype=float32)
    """

    recurrent = False
    """True for a layer that walks over time: every slice walks all of it, so the fewer slices the better."""

    gives_probabilities = False
    """True for a layer that makes probabilities of anything, as softmax does: losses on logits are wrong after it."""

    needs_float64 = False
    """True for a layer that has to see an input of floats in float64, and gives the model's floats all the same."""

    _name: str | None = None
    _trainable = True
    _elsewhere = elsewhere.LAYER

    # Type checkers take *inputs with **named for any arguments, so that overrides may give each input a name.

    def build(self, declare: Declare, /, *inputs: Any, **named: Any) -> Any:
        """Declare parameters and state, and return the spec of the output, or of each output."""
        if len(inputs) != 1:
            raise GraphError(f"{type(self).__name__} takes one input, got {len(inputs)}; override build to take more")
        spec: ArraySpec = inputs[0]
        return spec

    def forward_pass(self, ctx: Context, /, *inputs: Any, **named: Any) -> Any:
        """Return the output, or a tuple of outputs. Axis 0 of each array counts the rows of this slice."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward_pass nor expand")

    def backward_pass(self, ctx: Context, /, *gradients: Any, **named: Any) -> Any:
        """Return the gradient of each input; hand gradients of parameters to ``ctx.grad``."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward_pass")

    def expand(self, /, *nodes: Any, **named: Any) -> Any:
        """Call other layers on the nodes and return the output; None, the default, where the layer is array code."""
        return None

    @overload
    def __call__(self: _OneOutput, *nodes: Node, name: str | None = None) -> Node: ...

    @overload
    def __call__(self, *nodes: Node, name: str | None = None) -> Any: ...

    @knows(elsewhere.CALL)
    def __call__(self, *nodes: Node, name: str | None = None) -> Any:
        """Add the layer to a graph and return its output node, or a tuple of them."""
        if name is not None:
            valid_name(name, f"{type(self).__name__}: name")
        return call(self, nodes, name)

    @property
    def name(self) -> str | None:
        """The name given with ``named``, or None where the model makes one up."""
        return self._name

    @property
    def trainable(self) -> bool:
        """False for a layer made with ``frozen()``."""
        return self._trainable

    def named(self, name: str) -> Self:
        """Return a copy with a name. Within ``expand``, the empty name stands for the outer layer's own."""
        return self._copy(
            name=name if isinstance(name, str) and not name else valid_name(name, f"{type(self).__name__}.named")
        )

    def frozen(self) -> Self:
        """Return a copy whose parameters and state training leaves alone."""
        return self._copy(trainable=False)

    def _copy(self, *, name: str | None = None, trainable: bool | None = None) -> Self:
        copy = self.replace()
        object.__setattr__(copy, "_name", self._name if name is None else name)
        object.__setattr__(copy, "_trainable", self._trainable if trainable is None else trainable)
        return copy

    def _identity(self) -> tuple[Any, ...]:
        return (*super()._identity(), self._name, self._trainable)

    def __repr__(self) -> str:
        named = "" if self._name is None else f".named({self._name!r})"
        return f"{super().__repr__()}{named}{'' if self._trainable else '.frozen()'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.config(), self._name, self._trainable)


def _rebuild(cls: type[Layer], config: dict[str, Any], name: str | None, trainable: bool) -> Layer:
    return cls(**config)._copy(name=name, trainable=trainable)


LAYERS = registry.Kind("layers", "lamella.Layer", base=Layer)


def layer(name: str, /, **arguments: Any) -> Layer:
    """Make a layer by its registered name.

    >>> import lamella as lm
    >>> lm.layer("dense", units=10)
    Dense(10)
    """
    made: Layer = registry.find("layers", name)(**arguments)
    return made


_TOLD = 3  # inputs that messages tell one by one

_open_group: contextvars.ContextVar[Call | None] = contextvars.ContextVar("open_group", default=None)


def call(layer: Any, nodes: tuple[Any, ...], name: str | None) -> Any:
    """Add a layer to the graph that the nodes belong to; what ``layer(node)`` does."""
    for node in nodes:
        if not isinstance(node, Node):
            hint = "a layer has no parameters of its own; build a model and call model.predict on arrays"
            if isinstance(node, list | tuple):
                hint = "pass nodes one by one: layer(a, b)"
            elif not isinstance(layer, Layer):
                hint = "model.predict(x) takes arrays"
            raise GraphError(
                f"{type(layer).__name__} was called with {type(node).__name__}; expected nodes from lamella.Input or "
                f"other layers. Likely fix: {hint}"
            )
    if not nodes:
        raise GraphError(f"{type(layer).__name__} was called with no nodes; expected one or more, as in layer(x)")
    parent = _open_group.get()
    if parent is not None and not any(parent.contains(node) for node in nodes):
        parent = None  # the graph of a model that the composite makes for itself
    if parent is not None:
        parent.hold(layer)
    this = Call(layer, nodes, name, parent)
    token = _open_group.set(this)
    with registry.noting() as notes:
        try:
            _check_takes(layer, "expand", len(nodes))
            expanded = layer.expand(*nodes)
        except ValueError as error:
            if not isinstance(layer, Layer):  # a model says itself what it was called with
                raise
            raise GraphError(f"{_called(layer, [node.spec for node in nodes], name)}: {error}") from error
        finally:
            _open_group.reset(token)
        specs = _built(layer, nodes, name) if expanded is None else ()
    if isinstance(layer, Configured):
        note_words(layer, notes)
    if expanded is None:
        this.outputs = tuple(Node(this, index, spec) for index, spec in enumerate(specs))
    else:
        this.outputs = expanded if isinstance(expanded, tuple) else (expanded,)
        if not all(isinstance(node, Node) for node in this.outputs):
            raise GraphError(f"{type(layer).__name__}.expand must return a node or a tuple of nodes, got {expanded!r}")
    return this.outputs[0] if len(this.outputs) == 1 else this.outputs


def _built(layer: Any, nodes: tuple[Any, ...], name: str | None) -> tuple[ArraySpec, ...]:
    """The specs of the outputs of a layer that is array code."""
    if type(layer).forward_pass is Layer.forward_pass:
        raise GraphError(
            f"{type(layer).__name__} defines neither forward_pass nor expand; a layer needs one of them"
            + _renamed(layer)
        )
    specs, _ = build(layer, [node.spec for node in nodes], "float32", name)
    _check_takes(layer, "forward_pass", len(nodes), first="ctx")
    _check_takes(layer, "backward_pass", len(nodes), first="ctx", count=len(specs))
    return specs


_takes: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()  # how many arguments methods take


def _check_takes(layer: Any, method: str, nodes: int, *, first: str = "", count: int | None = None) -> None:
    """Refuse a method that does not take a first argument, if it has a name, and one for each node, or ``count``."""
    bound, count = getattr(layer, method), nodes if count is None else count
    function = getattr(bound, "__func__", None)
    known = set() if function is None else _takes.setdefault(function, set())
    if count + bool(first) in known:
        return
    signature = inspect.signature(bound)
    error = _does_not_take(signature, count + bool(first))
    if not error:
        known.add(count + bool(first))
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


def _called(layer: Layer, inputs: list[ArraySpec], name: str | None) -> str:
    """A layer and what it was called with, for messages."""
    label = f"{type(layer).__name__} {name!r}" if name else repr(layer)
    given = list(map(str, inputs))
    if len(given) > _TOLD:
        given = [f"{count} of {one}" for one, count in Counter(given).items()]
    return f"{label}, called with {' and '.join(given) or 'no inputs'}"


def _renamed(layer: Layer) -> str:
    """What somebody who comes from another engine may have called a method."""
    names = {"forward": "forward_pass", "call": "forward_pass", "backward": "backward_pass"}
    found = [f"{theirs} is called {ours} here" for theirs, ours in names.items() if hasattr(layer, theirs)]
    return f" ({'; '.join(found)})" if found else ""


def build(layer: Layer, inputs: list[ArraySpec], dtype: str, name: str | None) -> tuple[tuple[ArraySpec, ...], Declare]:
    """Run a layer's ``build`` and check what it returns."""
    where = _called(layer, inputs, name)
    declare = Declare(dtype)
    try:
        _check_takes(layer, "build", len(inputs), first="declare")
        result = layer.build(declare, *inputs)
    except ValueError as error:
        if layer.name == "" and name is None:  # which stands for the composite around it, and that says the same
            raise GraphError(str(error)) from error
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
            raise GraphError(f"{where}: expected sizes of 1 or more, got {spec}, which has no elements")
    return specs, declare
