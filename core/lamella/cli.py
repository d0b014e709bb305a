"""The command line: ``lamella``, its own commands, and those that plugins give through ``lamella_commands``."""

from __future__ import annotations

import argparse
import io
import itertools
import math
import os
import platform
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamella import __version__, errors, registry
from lamella.registry import FAILURES, by_name
from lamella.terminal import Column, Table, Terminal, aside, styled
from lamella.testing import Specimen

__all__ = ["OWN", "Command", "main"]


@dataclass(frozen=True)
class Command:
    """A command: its line of help, what adds its arguments, and what runs it and returns the exit status."""

    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lamella`` and return its exit status: 2, and a message without a traceback, for what the user can mend."""
    _mend_streams()
    stream = sys.stdout
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        stream.flush()
        return status
    except errors.LamellaError as error:
        message = str(error)
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except ModuleNotFoundError as error:
        if (error.name or "lamella").startswith("lamella"):
            raise
        message = f"{error}; try: python -m pip install {error.name}"
    except KeyboardInterrupt:
        print("\nlamella: interrupted", file=sys.stderr)
        return 130
    print(f"lamella: {message}", file=sys.stderr)
    return 2


def _mend_streams() -> None:
    """Let a stream that was closed swallow what it is given, and the others escape what their encoding lacks."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  open as long as the program runs
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    root = argparse.ArgumentParser(
        prog="lamella",
        description="A small neural-network engine: every layer is a plugin, every trained model becomes an ONNX file "
        "that onnxruntime has already agreed with.",
    )
    root.add_argument("--version", action="version", version=_versions(), help="print versions and exit")
    choices = root.add_subparsers(title="commands", metavar="COMMAND")
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    with aside():
        commands = _commands(asked)
    for name, command in sorted(commands.items()):
        sub = choices.add_parser(name, help=command.help, description=f"{command.help[:1].upper()}{command.help[1:]}.")
        if name == asked:
            command.configure(sub)
            sub.set_defaults(run=command.run)
    if asked is not None and asked not in commands:
        full = sorted(name for name in commands if name.endswith(f":{asked}"))
        if full:
            raise errors.RegistryError(f"several distributions give the command {asked!r}; say {' or '.join(full)}")
        hint = errors.did_you_mean(asked, commands)
        known = f"unknown command {asked!r}; expected one of {', '.join(sorted(commands))}.{hint}"
        raise errors.RegistryError("\n".join([known, *_broken_plugins()]))
    parsed = root.parse_args(arguments)
    if asked is None:
        root.print_help()
        return 0
    status: int = parsed.run(parsed)
    return status


def _commands(asked: str | None) -> dict[str, Command]:
    """By name, in full where lamella or several others have it; where lamella has what is asked for, only lamella's."""
    if asked in OWN:
        return OWN
    inside = [plugin for plugin in registry.plugins() if plugin.is_own]
    own = {**OWN, **{entry.name: entry.object for plugin in inside for entry in registry.entries("commands", plugin)}}
    if asked in own:
        return own
    found = by_name(registry.entries("commands"))
    return {**OWN, **{entry.qualified if name in OWN else name: entry.object for name, entry in found.items()}}


def _broken_plugins() -> list[str]:
    return [f"{plugin} could not be loaded: {plugin.error}" for plugin in registry.plugins() if plugin.error]


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    def described(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    others = ", ".join(map(described, ("numpy", "onnx", "onnxruntime")))
    return f"lamella {__version__} (Python {platform.python_version()}, {others})"


class _Row(NamedTuple):
    layer: str
    name: str
    family: str
    origin: str
    parameters: str
    operators: str


def _rows(specimens: list[Specimen], only: Collection[type] | None) -> list[_Row]:
    from lamella.reference import operators

    rows = []
    for name, entry in by_name(registry.entries("layers")).items():
        plugin, cls = entry.plugin, entry.object
        if only is not None and cls not in only:
            continue
        family = plugin.module.partition(":")[0].rpartition(".")[2]
        try:
            known = operators([specimen for specimen in specimens if type(specimen.subject) is cls])
        except FAILURES:  # `lamella check` tells what is wrong with it
            known = None
        nodes = "?" if known is None else ", ".join(known) or "nothing"
        rows.append(_Row(name, cls.__name__, family, plugin.origin, str(cls._signature)[1:-1], nodes))
    return sorted(rows, key=lambda row: (not row.origin.startswith("lamella "), row.origin, row.family, row.layer))


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


def _configure_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "package", nargs="*", help="a distribution, a package or a module whose layers to list; by default all"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write their reference to a Markdown page instead")


def _layers(arguments: argparse.Namespace) -> int:
    packages = []
    if arguments.package or arguments.markdown:
        from lamella.testing.package import find_package  # which loads the laws

        every = dict.fromkeys(plugin.distribution for plugin in registry.plugins())
        with aside():
            packages = [find_package(name) for name in arguments.package or every]
    if arguments.markdown:
        from lamella.reference import markdown

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
    wrong = [*_broken_plugins(), *wrong]
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


def _configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="+",
        help="a distribution, a package or a module (my_package), or one layer of it (my_package:MyLayer)",
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def _check(arguments: argparse.Namespace) -> int:
    from lamella.testing.command import check  # the laws load when they are asked for

    return check(arguments.target, as_json=arguments.json)


def _configure_new_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the distribution and its folder, such as lamella-swish")
    parser.add_argument("--folder", default=".", help="where to put it; the current folder by default")


def _new_plugin(arguments: argparse.Namespace) -> int:
    from lamella.new_plugin import create

    with aside():
        told = create(arguments.name, arguments.folder)
    print(told)
    return 0


OWN = {
    "check": Command(
        "examine what a package gives against the laws that all such things obey", _configure_check, _check
    ),
    "layers": Command("list every layer that installed plugins give", _configure_layers, _layers),
    "new-plugin": Command("write a package for a layer of your own, ready to test", _configure_new_plugin, _new_plugin),
}
"""The commands of lamella itself; plugins give others."""
