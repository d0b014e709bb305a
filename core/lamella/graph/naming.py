"""The names of a graph: of its layers, whose arrays carry them, of its operations, and of its outputs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lamella.errors import GraphError
from lamella.protocol.layer import LAYERS, Layer
from lamella.protocol.node import Call, Node
from lamella.registry import snake_case

__all__ = ["Names", "check_unique", "output_names"]


class Names:
    """Gives every call of a graph its name, and every layer the name that its arrays carry.

    A layer goes by the name it was given, else by that of its first call, else by ``<registered name>_<n>``. A call
    goes by its own name, else by its layer's, with ``#2``, ``#3`` where the layer is used again. Within a composite
    both follow the composite's, after a slash; an inner layer named "" takes the composite's own.
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self.layers: dict[int, str] = {}  # id of a layer -> the name of its arrays
        self._calls: dict[int, str] = {}
        self._canonical: dict[int, Any] = {}  # id of a call -> its layer
        self._used: set[str] = set(inputs)
        self._first: dict[int, Call] = {}  # id of a composite -> its first call
        self._numbers: dict[str, int] = {}  # what stands before a number -> the last one that was given to it

    def canonical(self, this: Call) -> Any:
        """The layer of a call. A composite makes new inner layers each time it is called; those of its first call
        stand for all of them, so that sharing the composite shares what is inside."""
        if this.parent is None:
            return this.layer
        if id(this) in self._canonical:
            return self._canonical[id(this)]
        outer = self.canonical(this.parent)
        first = self._first.setdefault(id(outer), this.parent)
        k = this.parent.ordinal(this.layer)
        used = first.inner[k] if k < len(first.inner) else None
        if used != this.layer:
            raise GraphError(
                f"{outer!r} is shared, but expands to {this.layer!r} here and to {used!r} where it was first called; "
                "use two layers, or call it on nodes of equal shape"
            )
        self._canonical[id(this)] = used
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
                    name = self._numbered(f"{name}#", 2)
            self._calls[id(this)] = name
            self._used.add(name)
        return self._calls[id(this)]

    def groups(self, this: Call) -> tuple[str, ...]:
        """The names of the composites around a call, outermost first."""
        return () if this.parent is None else (*self.groups(this.parent), self.call(this.parent))

    def free(self, scope: str, base: str) -> str:
        """The first ``<base>_<n>`` of a scope that is not taken."""
        return self._numbered(_join(scope, f"{base}_"), 1)

    def _numbered(self, name: str, first: int) -> str:
        """The name with the first number that is not taken; what is taken stays so."""
        numbers = itertools.count(self._numbers.get(name, first - 1) + 1)
        self._numbers[name] = number = next(k for k in numbers if f"{name}{k}" not in self._used)
        return f"{name}{number}"


def _join(scope: str, name: str) -> str:
    return f"{scope}/{name}".strip("/")


def check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GraphError(f"two {what} of the model are called {name!r}; give one of them another name")
        seen.add(name)


def _base(layer: Any) -> str:
    """What a made-up name starts with: the registered name, or the class's in snake case."""
    if not isinstance(layer, Layer):  # a model; without arrays, a graph, which goes by what it was
        return snake_case(getattr(layer, "kind", type(layer).__name__))
    entry = LAYERS.entry_of(type(layer))
    return entry.name if entry else snake_case(type(layer).__name__)


def output_names(
    inputs: Sequence[Node], input_names: list[str], outputs: Sequence[Node], names: Names
) -> tuple[str, ...]:
    """Outputs go by the outermost layer that made them; several of one layer are numbered: ``split_1.0``."""
    of_inputs = {id(node): name for node, name in zip(inputs, input_names, strict=True)}
    own = [of_inputs[id(node)] if node.call is None else names.call(node.call.top) for node in outputs]
    if len({id(node) for node in outputs}) != len(outputs):
        raise GraphError(f"Model: the same node stands twice among the outputs {', '.join(own)}")
    total, seen = Counter(own), Counter[str]()
    given = []
    for name in own:
        given.append(name if total[name] == 1 else f"{name}.{seen[name]}")
        seen[name] += 1
    return tuple(given)
