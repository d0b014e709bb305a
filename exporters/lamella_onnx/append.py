"""Layers that an exported file has after the model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamella import ArgumentError, GraphError, Layer, Model, registry
from lamella.errors import did_you_mean, shown
from lamella.protocol import Node

__all__ = ["Appended", "extended"]

Appended = Layer | Model | Sequence[Layer | Model]


def extended(model: Model, append: Any) -> tuple[Model, tuple[str, ...]]:
    """Return a model of the same layers and values with more layers after its outputs, and its outputs' names."""
    nodes, names = model.output_nodes, model.output_names
    if isinstance(append, Mapping):
        ends = dict(zip(names, nodes, strict=True))
        for name, layers in append.items():
            if name not in ends:
                raise ArgumentError(
                    f"export: append: unknown output {name!r}; expected {', '.join(names)}."
                    f"{did_you_mean(str(name), names)}"
                )
            made, _ = _chained((ends[name],), (name,), layers)
            if len(made) != 1:
                raise ArgumentError(f"export: append: expected one output in place of {name!r}, got {len(made)}")
            ends[name] = made[0]
        nodes = tuple(ends.values())
    else:
        nodes, names = _chained(nodes, names, append)
    longer = Model(model.input_nodes, nodes, dtype=model.dtype, seed=model.seed, backend=model.backend)
    if model.parameters or model.state:
        longer.copy_values(model)
    appended = [inner for inner in longer.graph.models if inner not in model.graph.models]
    for inner in appended:
        held = any(inner in other.graph.models for other in appended)  # then values are the other's
        if not held and (differing := longer.differing(inner)):
            raise ArgumentError(
                f"export: append: {inner!r} and the exported model share {', '.join(sorted(differing))}, one layer "
                "object, which has other values in each. Likely fix: append copy.deepcopy(...) of it"
            )
    names = tuple(name or own for name, own in zip(names, longer.output_names, strict=True))
    clear = len({*names, *longer.input_names}) == len(names) + len(longer.input_names)
    return longer, names if clear else longer.output_names


def _chained(nodes: tuple[Node, ...], names: tuple[str, ...], layers: Any) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The nodes after one layer or several, and their names: none where a layer gives them one."""
    several = isinstance(layers, list | tuple)
    for layer in layers if several else [layers]:
        if not isinstance(layer, Layer | Model):
            raise ArgumentError(f"export: append: expected a layer or several, got {shown(layer)}{_layer_hint(layer)}")
        try:
            result = layer(*nodes)
        except GraphError as error:
            if len(nodes) == 1 or not all(names) or isinstance(layer, Model):
                raise
            raise ArgumentError(
                f"export: append: {layer!r} can't take all {len(nodes)} outputs, {', '.join(names)}, at once. Likely "
                f"fix: say which one it follows, as in append={{{names[-1]!r}: {layer!r}}}"
            ) from error
        names = _names_after(layer, names)
        nodes = result if isinstance(result, tuple) else (result,)
        names = names or ("",) * len(nodes)
    return nodes, names


def _names_after(layer: Layer | Model, names: tuple[str, ...]) -> tuple[str, ...]:
    """What an appended model calls its outputs; those that it hands through keep their names. A layer has no say."""
    if not isinstance(layer, Model):
        return ()
    known = {id(node): name for node, name in zip(layer.input_nodes, names, strict=True)}
    own = zip(layer.output_nodes, layer.output_names, strict=True)
    return tuple(known.get(id(node), name) for node, name in own)


def _layer_hint(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, Layer):
        return f"; did you mean {given.__name__}(...)?"
    if isinstance(given, str) and given in {entry.name for entry in registry.entries("activations")}:
        return f"; did you mean Activation({given!r})?"
    return ""
