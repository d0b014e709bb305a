"""Layers after the outputs of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamella import registry
from lamella.errors import ArgumentError, GraphError, did_you_mean, shown
from lamella.graph.operations import Graph, assemble
from lamella.protocol.configured import words_of
from lamella.protocol.layer import Layer
from lamella.protocol.node import Node

__all__ = ["Ends", "ends_of", "extended", "same_ends"]

Ends = tuple[tuple[str | None, tuple[Any, ...]], ...]
"""Layers, or models, in their order, by the name of the output that they follow; None for all outputs at once."""


def ends_of(graph: Graph, append: Any) -> Ends:
    """Return what shall follow the outputs of a graph: a layer or model, several, or a dict of these by output."""
    if not isinstance(append, Mapping):
        return ((None, _several(append)),)
    names = graph.output_names
    if not append:
        raise ArgumentError(f"append: expected layers for an output or more, {', '.join(names)}, got {{}}")
    for name in append:
        if name not in names:
            raise ArgumentError(
                f"append: unknown output {shown(name)}; expected {', '.join(names)}.{did_you_mean(str(name), names)}"
            )
    return tuple((name, _several(layers)) for name, layers in append.items())


def same_ends(one: Ends, other: Ends) -> bool:
    """Whether two are the same: the same models, and equal layers, whose words mean the same."""
    return [(name, len(layers)) for name, layers in one] == [(name, len(layers)) for name, layers in other] and all(
        a is b or (isinstance(a, Layer) and isinstance(b, Layer) and a == b and words_of(a) == words_of(b))
        for (_, own), (_, others) in zip(one, other, strict=True)
        for a, b in zip(own, others, strict=True)
    )


def extended(graph: Graph, ends: Ends) -> Graph:
    """Return a graph of the same layers with more after its outputs.

    Outputs keep their names where a dict says which layers follow them, and a single one where it was given its name,
    unless the last layer has a name of its own.

    Raises:
        ArgumentError: layers that take other outputs, or give several in place of one.
        GraphError: layers that do not fit the outputs.
    """
    nodes, names = graph.output_nodes, graph.output_names
    for name, layers in ends:
        if name is None:
            names = ("",) if len(names) == 1 and not graph.is_named(0) else names
            nodes, names = _chained(nodes, names, layers)
            continue
        place = names.index(name)
        made, _ = _chained((nodes[place],), (name,), layers)
        if len(made) != 1:
            raise ArgumentError(f"append: expected one output in place of {name!r}, got {len(made)}")
        nodes = (*nodes[:place], *made, *nodes[place + 1 :])
    longer = assemble(graph.input_nodes, nodes, graph.dtype, seed=graph.seed)
    names = tuple(name or own for name, own in zip(names, longer.output_names, strict=True))
    if names == longer.output_names or len({*names, *longer.input_names}) < len(names) + len(longer.input_names):
        return longer
    return assemble(graph.input_nodes, nodes, graph.dtype, seed=graph.seed, given_names=names)


def _several(append: Any) -> tuple[Any, ...]:
    """One layer or several, as a tuple."""
    layers = tuple(append) if isinstance(append, list | tuple) and append else (append,)
    for layer in layers:
        if not isinstance(layer, Layer) and not isinstance(getattr(layer, "graph", layer), Graph):
            raise ArgumentError(f"append: expected a layer or several, got {shown(layer)}{_layer_hint(layer)}")
    return layers


def _chained(
    nodes: tuple[Node, ...], names: tuple[str, ...], layers: Sequence[Any]
) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The nodes after layers, and their names: none where a layer gives them one."""
    for layer in layers:
        try:
            result = layer(*nodes)
        except GraphError as error:
            if len(nodes) == 1 or not all(names) or not isinstance(layer, Layer):
                raise
            raise ArgumentError(
                f"append: {layer!r} can't take all {len(nodes)} outputs, {', '.join(names)}, at once. Likely "
                f"fix: say which one it follows, as in append={{{names[-1]!r}: {layer!r}}}"
            ) from error
        names = _names_after(layer, names)
        nodes = result if isinstance(result, tuple) else (result,)
        names = names if len(names) == len(nodes) else ("",) * len(nodes)
    if isinstance(layers[-1], Layer) and layers[-1].name is not None:
        names = ("",) * len(nodes)
    return nodes, names


def _names_after(layer: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """What an appended model calls its outputs; those that it hands through keep their names. So does a single one."""
    if isinstance(layer, Layer):
        return names if len(names) == 1 else ()
    graph: Graph = getattr(layer, "graph", layer)
    known = {id(node): name for node, name in zip(graph.input_nodes, names, strict=True)}
    own = zip(graph.output_nodes, graph.output_names, strict=True)
    return tuple(known.get(id(node), name) for node, name in own)


def _layer_hint(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, Layer):
        return f"; did you mean {given.__name__}(...)?"
    if isinstance(given, str) and given in {entry.name for entry in registry.entries("activations")}:
        return f"; did you mean Activation({given!r})?"
    return ""
