"""``lamella layers``: lists every layer that installed plugins give, or writes their reference."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from lamella import registry
from lamella.cli.listing import KINDS, listed, show
from lamella.cli.reference import markdown
from lamella.commands import Command
from lamella.terminal import aside
from lamella.testing.package import find_package

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "package",
        nargs="*",
        metavar="WHAT",
        help="names, such as dense; packages, modules and distributions, or PACKAGE:NAME; by default all layers",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON, with all that is known of each")
    output.add_argument("--markdown", metavar="FILE", help="write their reference to a Markdown page instead")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        return _write(arguments.package, Path(arguments.markdown))
    with aside():
        rows, problems = listed(KINDS if arguments.package else ("layers",), arguments.package)
    others = Counter(row.kind for row in rows if row.kind != "layers")
    what = " ".join(arguments.package)
    also = ", ".join(f"{kind} ({count})" for kind, count in others.items())
    notes = [
        f"lamella list {what}: also {also}"
        if what and also
        else "lamella list: losses, metrics, optimizers and all else"
    ]
    show([row for row in rows if row.kind == "layers"], problems, notes, as_json=arguments.json)
    return 0


def _write(names: list[str], path: Path) -> int:
    """Write the reference; 1 if some of it can't be had."""
    every = dict.fromkeys(plugin.distribution for plugin in registry.plugins())
    with aside():
        packages = [find_package(name) for name in names or every]
    path.write_text(markdown(packages, path.parent), encoding="utf-8")
    faults = [fault for package in packages for fault in package.faults]
    print("".join(f"lamella: {fault}\n" for fault in faults), end="", file=sys.stderr)
    return 1 if faults else 0


COMMAND = Command("list every layer that installed plugins give, or write their reference", _configure, _run)
