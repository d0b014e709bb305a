"""A model as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.protocol import ArraySpec, snake_case
from lamella.terminal import Column, Table, Terminal, styled

if TYPE_CHECKING:
    from lamella.graph import Leaf
    from lamella.model import Model

__all__ = ["print_summary"]


def print_summary(model: Model) -> None:
    """Print a table of a model's layers: output shapes, parameters, connections, shared and frozen marks, totals.

    Composites stand as groups, in which names are those within the composite.
    """
    program = model.program
    paths: dict[int, tuple[str, ...]] = {
        value: (name,) for value, name in zip(program.inputs, program.input_names, strict=True)
    }  # of each value: the names of the composites around it, outermost first, and that of its leaf
    rows: list[list[str]] = [
        [f"{name} (Input)", _shape(spec), "", "", ""]
        for name, spec in zip(model.input_names, model.input_specs, strict=True)
    ]
    shown: tuple[str, ...] = ()
    groups: dict[str, list[str]] = {}  # the rows of composites
    first: dict[str, str] = {}  # owner -> the leaf whose row shows its parameters
    leaves: set[str] = set()
    for leaf in program.leaves:
        own = tuple(group for group in leaf.groups if group != leaf.name)
        for depth, group in enumerate(own):
            if shown[: depth + 1] != own[: depth + 1] and group not in leaves:
                groups[group] = ["  " * depth + styled(_within(own[:depth], group), "italic"), "", "", "", ""]
                rows.append(groups[group])
        shown = own
        leaves.add(leaf.name)
        marks = []
        count = sum(_size(program.arrays[full]) for full in (*leaf.params.values(), *leaf.state.values()))
        name, known = _within(own, leaf.name), first.setdefault(leaf.owner, leaf.name)
        if known != leaf.name:
            count = 0
            place = f"/{_within(own[:1], leaf.name)}"  # in the outermost composite
            whole = bool(own) and known.endswith(place)
            if whole and own[0] in groups:  # it is shared as a whole, and says so
                groups[own[0]][-1] = f"shared with {known.removesuffix(place)}"
            marks.append("shared" if whole else f"shared with {_within(own, known)}")
        if leaf.owner in model.frozen_layers:
            marks.append("frozen")
        paths.update(dict.fromkeys(leaf.outputs, (*own, leaf.name)))
        rows.append(
            [
                "  " * len(own) + _title_of(leaf, name),
                ", ".join(_shape(program.specs[value]) for value in leaf.outputs),
                f"{count:,}" if count else "",
                ", ".join(dict.fromkeys(_source(paths[value], leaf.groups) for value in leaf.inputs)),
                ", ".join(marks),
            ]
        )
    notes = "notes" if any(row[-1] for row in rows) else ""
    headings = ("layer", Column("output shape", share=2.0), Column("parameters", right=True), "connected to", notes)
    table = Table(headings, title=_title(model))
    for row in rows:
        table.add(*row)
    table.notes.append(_totals(model))
    Terminal().print(table)


def _within(groups: tuple[str, ...], name: str) -> str:
    """A name as it is within the innermost of the composites."""
    return name.removeprefix(f"{groups[-1]}/") if groups else name


def _source(path: tuple[str, ...], groups: tuple[str, ...]) -> str:
    """What a value is called within some composites: by the outermost composite that made it and is none of these."""
    depth = next((k for k, name in enumerate(path) if name not in groups), len(path) - 1)
    return _within(tuple(name for name in path[:depth] if name in groups), path[depth])


def _title_of(leaf: Leaf, name: str) -> str:
    """The name, and the class where the name does not tell it."""
    kind = type(leaf.layer).__name__
    return name if name.rpartition("/")[2].startswith(snake_case(kind)) else f"{name} ({kind})"


def _title(model: Model) -> str:
    return f"{type(model).__name__}, {model.dtype} on {model.backend}"


def _shape(spec: ArraySpec) -> str:
    """The shape, and the dtype of integers; it stays in one piece where lines are folded."""
    return (str(spec) if not spec.is_float else str(spec).rpartition(" ")[0]).replace(" ", "\N{NO-BREAK SPACE}")


def _size(declared: Any) -> int:
    size = 1
    for n in declared.shape:
        size *= n
    return size


def _totals(model: Model) -> str:
    width = 4 if model.dtype == "float32" else 8
    sizes = {name: _size(declared) for name, declared in model.program.arrays.items()}
    frozen = {
        full for leaf in model.program.leaves if leaf.owner in model.frozen_layers for full in leaf.params.values()
    }
    trained = sum(sizes[name] for name in model.parameters if name not in frozen)
    parts = [f"{trained:,} trainable parameters"]
    if frozen:
        parts.append(f"{sum(sizes[name] for name in frozen):,} frozen")
    if len(model.state):
        parts.append(f"{sum(sizes[name] for name in model.state):,} in state")
    return f"{', '.join(parts)}; {_bytes(sum(sizes.values()) * width)} in all"


def _bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000  # type: ignore[assignment]
    return ""
