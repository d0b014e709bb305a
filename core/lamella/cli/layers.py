"""``lamella layers``: lists every layer that installed plugins give, or writes their reference."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lamella import errors, registry
from lamella.cli.reference import markdown, operators
from lamella.commands import Command
from lamella.protocol.layer import LAYERS, Layer
from lamella.protocol.specimen import Specimen
from lamella.registry import FAILURES, shortest_names
from lamella.terminal import Column, Table, Terminal, aside, styled
from lamella.testing.package import find_package

__all__ = ["COMMAND"]


class _Row(NamedTuple):
    layer: str
    name: str
    family: str
    origin: str
    parameters: str
    operators: str


def _rows(specimens: list[Specimen], only: Collection[type] | None) -> list[_Row]:
    rows = []
    for name, entry in shortest_names(LAYERS.entries()).items():
        plugin, cls = entry.plugin, entry.object
        if only is not None and cls not in only:
            continue
        family = plugin.module.partition(":")[0].rpartition(".")[2]
        try:
            known = operators([specimen for specimen in specimens if type(specimen.subject) is cls])
        except KeyboardInterrupt:
            raise
        except BaseException:  # `lamella check` tells what is wrong with it
            known = None
        nodes = "?" if known is None else ", ".join(known) or "nothing"
        rows.append(_Row(name, cls.__name__, family, plugin.origin, _arguments(cls), nodes))
    return sorted(rows, key=lambda row: (not row.origin.startswith("lamella "), row.origin, row.family, row.layer))


def _arguments(cls: type[Layer]) -> str:
    try:
        return str(cls._signature)[1:-1]
    except FAILURES:  # a default whose __repr__ fails
        return "?"


def _specimens() -> tuple[list[Specimen], list[str]]:
    """All specimens, and what is wrong with those that can't be had."""
    found: list[Specimen] = []
    wrong = []
    for plugin in registry.plugins():
        try:
            found += registry.specimens(plugin)
        except errors.RegistryError as error:
            wrong.append(str(error))
    return found, wrong


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "package", nargs="*", help="a distribution, a package or a module whose layers to list; by default all"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write their reference to a Markdown page instead")


def _run(arguments: argparse.Namespace) -> int:
    packages = []
    if arguments.package or arguments.markdown:
        every = dict.fromkeys(plugin.distribution for plugin in registry.plugins())
        with aside():
            packages = [find_package(name) for name in arguments.package or every]
    if arguments.markdown:
        path = Path(arguments.markdown)
        path.write_text(markdown(packages, path.parent), encoding="utf-8")
        faults = [fault for package in packages for fault in package.faults]
        print("".join(f"lamella: {fault}\n" for fault in faults), end="", file=sys.stderr)
        return 1 if faults else 0
    return _list_layers({one.cls for package in packages for one in package.subjects if one.cls} if packages else None)


def _list_layers(only: Collection[type] | None) -> int:
    """On a terminal a table in groups; elsewhere one line for each layer, with everything in it."""
    with aside():
        specimens, wrong = _specimens()
        rows = _rows(specimens, only)
    terminal = Terminal()
    wrong = [*registry.broken(), *wrong]
    shared = [row.layer for row in rows if ":" in row.layer]
    wrong += [f"{name} is found by its full name only: lamella, or another plugin, has that name" for name in shared]
    if not terminal.is_terminal:
        heading = ("layer", "class", "family", "distribution", "arguments", "ONNX operators")
        lines = [tuple(cell or "none" for cell in line) for line in (heading, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
        print("".join(f"\n{line}\n" for line in wrong), end="")
        return 0
    columns = (
        Column("layer", share=math.inf),
        Column("class and arguments", share=5),
        Column("ONNX operators", share=2),
    )
    table = Table(columns)
    families = [list(group) for _, group in itertools.groupby(rows, key=lambda row: (row.origin, row.family))]
    for family in families:
        if table.rows:
            table.add()
        table.add(styled(family[0].family, "bold"), styled(family[0].origin, "dim"))
        for row in family:
            table.add(f"  {row.layer}", f"{styled(row.name, 'cyan')}({row.parameters})", row.operators)
    table.notes.append(f"{len(rows)} layers in {len(families)} families")
    if any(row.operators == "?" for row in rows):
        table.notes.append("?: no specimen says which")
    table.notes += [f"\n{styled(line, 'yellow')}" for line in wrong]
    terminal.print(table)
    return 0


COMMAND = Command("list every layer that installed plugins give", _configure, _run)
