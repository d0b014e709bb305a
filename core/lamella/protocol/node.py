"""Nodes: the symbolic arrays that layers are called with while a graph is put together."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

from lamella.elsewhere import DTYPES, hint
from lamella.errors import ArgumentError, shown
from lamella.protocol.spec import ArraySpec

__all__ = ["Call", "Input", "Node", "valid_name"]

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
    _ordinals: dict[int, int] = dataclasses.field(default_factory=dict)  # id of one of them -> its place

    def hold(self, layer: Any) -> None:
        """Count a layer among a composite's own."""
        if self._ordinals.setdefault(id(layer), len(self.inner)) == len(self.inner):
            self.inner.append(layer)

    def ordinal(self, layer: Any) -> int:
        """The place of a layer among a composite's own."""
        return self._ordinals.get(id(layer), len(self.inner))

    def contains(self, node: Node) -> bool:
        """Whether a node is an input of this composite, or was made within it."""
        this = node.call
        while this is not None and this is not self:
            this = this.parent
        return this is self or any(node is known for known in self.inputs)

    @functools.cached_property
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
    and checks draw from ``low <= value < high``; integers outside of it are refused as data. As in `range`, ``high`` is
    one more than the greatest integer: ``low=0, high=256`` for bytes.

    >>> import lamella as lm
    >>> lm.Input((1, 28, 28)).shape
    ('N', 1, 28, 28)
    """
    if isinstance(shape, int):
        shape = (shape,)
    if not isinstance(shape, tuple | list):
        raise ArgumentError(f"Input: shape: expected a tuple of sizes without the batch axis, got {shown(shape)}")
    if any(size is None for size in shape):
        raise ArgumentError(f"Input: shape {tuple(shape)!r}: name an axis of unknown size, for example 'T'")
    if any(isinstance(size, str) and size == "N" for size in shape):
        raise ArgumentError(f"Input: shape {tuple(shape)!r}: the batch axis 'N' is added in front; leave it out")
    if name is not None:
        valid_name(name, "Input: name", spaced=True)
    try:
        spec = ArraySpec(("N", *shape), "float32" if dtype is None else dtype, low, high)
    except ArgumentError as error:
        fix = (
            hint(DTYPES, dtype.__name__ if isinstance(dtype, type) else dtype) if isinstance(dtype, type | str) else ""
        )
        raise ArgumentError(f"{str(error).replace('ArraySpec', 'Input', 1)}{fix}") from None
    return Node(None, next(_serial), spec, name)


def valid_name(name: Any, where: str, *, spaced: bool = False) -> str:
    """Return the name of an input, layer or node, if it is one. Words may be ``spaced``, as in names of columns."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w\-]+( [\w\-]+)*" if spaced else r"[\w\-]+", name):
        spaces = ", and spaces between words" if spaced else ""
        raise ArgumentError(
            f"{where}: expected letters, digits, '_' and '-'{spaces}, got {shown(name)}; '/', '.' and '#' separate "
            "groups, arrays and uses of a layer"
        )
    return name
