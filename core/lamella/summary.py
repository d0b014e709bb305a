"""A model as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.protocol import snake_case
from lamella.terminal import Column, Table, Terminal, styled

if TYPE_CHECKING:
    from lamella.graph import Leaf
    from lamella.model import Model

__all__ = ["print_summary"]


def print_summary(model: Model) -> None:
    """Print a table of a model's layers: output shapes, parameters, connections, shared and frozen marks, totals."""
    program = model.program
    source = dict(zip(program.inputs, program.input_names, strict=True))
    headings = ("layer", "output shape", Column("parameters", right=True), "connected to", "")
    table = Table(headings, title=_title(model))
    for name, spec in zip(model.input_names, model.input_specs, strict=True):
        table.add(f"{name} (Input)", _shape(spec), "", "", spec.dtype if not spec.is_float else "")
    shown: tuple[str, ...] = ()
    first: dict[str, str] = {}  # owner -> the leaf whose row shows its parameters
    rows: set[str] = set()
    for leaf in program.leaves:
        own = [group for group in leaf.groups if group != leaf.name]
        for depth, group in enumerate(own):
            if shown[: depth + 1] != tuple(own[: depth + 1]) and group not in rows:
                table.add("  " * depth + styled(group, "italic"))
        shown = tuple(own)
        rows.add(leaf.name)
        marks = []
        count = sum(_size(program.arrays[full]) for full in (*leaf.params.values(), *leaf.state.values()))
        if first.setdefault(leaf.owner, leaf.name) != leaf.name:
            marks.append(f"shared with {first[leaf.owner]}")
            count = 0
        if leaf.owner in model.frozen_layers:
            marks.append("frozen")
        source.update(dict.fromkeys(leaf.outputs, leaf.name))
        table.add(
            "  " * len(own) + _title_of(leaf),
            ", ".join(_shape(program.specs[value]) for value in leaf.outputs),
            f"{count:,}" if count else "",
            ", ".join(source[value] for value in leaf.inputs),
            ", ".join(marks),
        )
    table.notes.append(_totals(model))
    Terminal().print(table)


def _title_of(leaf: Leaf) -> str:
    """The name, and the class where the name does not tell it."""
    kind = type(leaf.layer).__name__
    return leaf.name if leaf.name.rpartition("/")[2].startswith(snake_case(kind)) else f"{leaf.name} ({kind})"


def _title(model: Model) -> str:
    return f"{type(model).__name__}, {model.dtype} on {model.backend}"


def _shape(spec: Any) -> str:
    return f"({', '.join(map(str, spec.shape))}{',' if len(spec.shape) == 1 else ''})"


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
