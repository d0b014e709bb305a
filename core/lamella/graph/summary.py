"""A model as a table."""

from __future__ import annotations

import math
from collections.abc import Collection

from lamella.graph.operations import Graph, Operation
from lamella.protocol.spec import ArraySpec
from lamella.registry import snake_case
from lamella.terminal import Column, Table, styled

__all__ = ["summary_of"]


def summary_of(graph: Graph, title: str, frozen: Collection[str]) -> Table:
    """Return a table of a graph's layers: output shapes, parameters, connections, shared and frozen marks, totals.

    Composites stand as groups, in which names are those within the composite.
    """
    paths: dict[int, tuple[str, ...]] = {
        value: (name,) for value, name in zip(graph.inputs, graph.input_names, strict=True)
    }  # of each value: the names of the composites around it, outermost first, and that of its operation
    rows: list[list[str]] = [
        [f"{name} (Input)", _shape(spec), "", "", ""]
        for name, spec in zip(graph.input_names, graph.input_specs, strict=True)
    ]
    shown: tuple[str, ...] = ()
    groups: dict[str, list[str]] = {}  # the rows of composites
    first: dict[str, str] = {}  # prefix -> the operation whose row shows its parameters
    seen: set[str] = set()
    for operation in graph.operations:
        own = tuple(group for group in operation.groups if group != operation.name)
        for depth, group in enumerate(own):
            if shown[: depth + 1] != own[: depth + 1] and group not in seen:
                groups[group] = ["  " * depth + styled(_within(own[:depth], group), "italic"), "", "", "", ""]
                rows.append(groups[group])
        shown = own
        seen.add(operation.name)
        marks = []
        count = sum(
            math.prod(graph.arrays[full].shape) for full in (*operation.params.values(), *operation.state.values())
        )
        name, known = _within(own, operation.name), first.setdefault(operation.prefix, operation.name)
        if known != operation.name:
            count = 0
            place = f"/{_within(own[:1], operation.name)}"  # in the outermost composite
            whole = bool(own) and known.endswith(place)
            if whole and own[0] in groups:  # it is shared as a whole, and says so
                groups[own[0]][-1] = f"shared with {known.removesuffix(place)}"
            marks.append("shared" if whole else f"shared with {_within(own, known)}")
        if operation.prefix in frozen:
            marks.append("frozen")
        paths.update(dict.fromkeys(operation.outputs, (*own, operation.name)))
        rows.append(
            [
                "  " * len(own) + _title_of(operation, name),
                ", ".join(_shape(graph.specs[value]) for value in operation.outputs),
                f"{count:,}" if count else "",
                ", ".join(dict.fromkeys(_source(paths[value], operation.groups) for value in operation.inputs)),
                ", ".join(marks),
            ]
        )
    notes = "notes" if any(row[-1] for row in rows) else ""
    headings = ("layer", Column("output shape", share=2.0), Column("parameters", right=True), "connected to", notes)
    table = Table(headings, title=title)
    for row in rows:
        table.add(*row)
    table.notes.append(_totals(graph, frozen))
    return table


def _within(groups: tuple[str, ...], name: str) -> str:
    """A name as it is within the innermost of the composites."""
    return name.removeprefix(f"{groups[-1]}/") if groups else name


def _source(path: tuple[str, ...], groups: tuple[str, ...]) -> str:
    """What a value is called within some composites: by the outermost composite that made it and is none of these."""
    depth = next((k for k, name in enumerate(path) if name not in groups), len(path) - 1)
    return _within(tuple(name for name in path[:depth] if name in groups), path[depth])


def _title_of(operation: Operation, name: str) -> str:
    """The name, and the class where the name does not tell it."""
    kind = type(operation.layer).__name__
    return name if name.rpartition("/")[2].startswith(snake_case(kind)) else f"{name} ({kind})"


def _shape(spec: ArraySpec) -> str:
    """The shape, and the dtype of integers; it stays in one piece where lines are folded."""
    return (str(spec) if not spec.is_float else str(spec).rpartition(" ")[0]).replace(" ", "\N{NO-BREAK SPACE}")


def _totals(graph: Graph, frozen: Collection[str]) -> str:
    width = 4 if graph.dtype == "float32" else 8
    sizes = {name: math.prod(declared.shape) for name, declared in graph.arrays.items()}
    held = graph.parameters_of(frozenset(frozen))
    trained = sum(sizes[name] for name, one in graph.arrays.items() if one.trainable and name not in held)
    state = [sizes[name] for name, one in graph.arrays.items() if not one.trainable]
    parts = [f"{trained:,} trainable parameters"]
    if held:
        parts.append(f"{sum(sizes[name] for name in held):,} frozen")
    if state:
        parts.append(f"{sum(state):,} in state")
    return f"{', '.join(parts)}; {_bytes(sum(sizes.values()) * width)} in all"


def _bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000  # type: ignore[assignment]
    return ""
