"""``lamella list``: what installed plugins give: layers, losses, optimizers, ... with what each is called with."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lamella import callbacks, hookspecs, registry
from lamella.callbacks import Callback
from lamella.cli.reference import Docstring, operators
from lamella.commands import OWN, Command
from lamella.errors import RegistryError, did_you_mean, without_addresses
from lamella.protocol.specimen import Specimen
from lamella.registry import FAILURES, INSTALL_AGAIN, Entry, Plugin, shortest_names, snake_case
from lamella.terminal import Terminal, aside, fold, styled, width_of
from lamella.testing.laws import LAWS
from lamella.testing.package import look_here, plugins_of
from lamella.version import __version__

__all__ = ["COMMAND", "KINDS", "Row", "listed", "named", "show"]

KINDS = (
    *("layers", "activations", "losses", "metrics", "optimizers", "schedules", "initializers", "callbacks"),
    *("backends", "commands", "laws"),
)
"""What can be listed."""

_MADE = {
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "schedules",
    "initializers",
    "callbacks",
}  # from classes, by users
_WIDE = 100  # columns of a terminal that has room for ONNX operators beside arguments
_OPERATORS = 28  # columns of these
_SENTENCE = 20  # columns below which the beginning of a sentence tells nothing


class Row(NamedTuple):
    """One thing that a plugin gives."""

    kind: str
    name: str
    aliases: tuple[str, ...]
    thing: Any
    plugin: Plugin
    operators: tuple[str, ...] | None = None

    @property
    def cls(self) -> str:
        """The name of the class that users make one from, if they do."""
        return self.thing.__name__ if self.kind in _MADE and isinstance(self.thing, type) else ""

    @property
    def family(self) -> str:
        """What it stands under: layers under the module that gives them."""
        module = self.plugin.module.partition(":")[0].rpartition(".")[2]
        return f"{module} layers" if self.kind == "layers" else self.kind

    @property
    def origin(self) -> str:
        """Distribution and version, or the module where no distribution is known."""
        return self.plugin.origin if self.plugin.is_known else self.plugin.module

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """What its class is called with."""
        try:
            known = getattr(self.thing, "_signature", None) or inspect.signature(self.thing)
        except FAILURES:  # of a class that hides it
            return []
        return list(known.parameters.values())

    @property
    def sentence(self) -> str:
        """What its docstring says first."""
        if isinstance(self.thing, Command):
            return self.thing.help
        try:
            own = self.thing.__doc__ is not type(self.thing).__doc__  # an object's may be that of its class
            text = Docstring.of(self.thing).sentence if own else ""
        except FAILURES:
            return ""
        return " ".join(text.replace("`", "").split())

    def as_dict(self) -> dict[str, Any]:
        """What JSON says of it."""
        arguments = [
            {
                "name": one.name,
                "default": None if one.default is one.empty else _shown(one.default),
                "keyword_only": one.kind is one.KEYWORD_ONLY,
            }
            for one in self.parameters
        ]
        return {
            "kind": self.kind,
            "name": self.name,
            "aliases": list(self.aliases),
            "class": self.cls or None,
            "arguments": arguments if self.cls else None,
            "summary": self.sentence,
            "onnx_operators": None if self.operators is None else list(self.operators),
            "module": self.plugin.module,
            "distribution": self.plugin.distribution if self.plugin.is_known else None,
            "version": self.plugin.version if self.plugin.is_known else None,
        }


def listed(kinds: Sequence[str], packages: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """Return what plugins give of some kinds, and what is wrong with them.

    Arguments:
        kinds: of `KINDS`.
        packages: distributions, packages or modules, ``"package:name"``, or names of things, to be listed; without
            any, all.

    Raises:
        RegistryError: if there is no such package or thing.
    """
    if not packages:
        return _rows_of(kinds, registry)
    look_here()
    rows: dict[tuple[str, str], Row] = {}
    problems: list[str] = []
    for package in packages:
        name, _, thing = package.partition(":")
        try:
            found, wrong = _rows_of(kinds, *plugins_of(package))
        except RegistryError as error:
            if not (known := named(package)):
                raise RegistryError(f"{_unknown(package)}{error}") from None
            found, wrong = [row for row in known if row.kind in kinds], []
        if thing:
            chosen = [row for row in found if thing in (row.name, row.cls, *row.aliases)]
            if not chosen:
                fix = did_you_mean(thing, [row.name for row in found]) or f" {INSTALL_AGAIN}"
                raise RegistryError("\n".join([f"{name!r} gives no {thing!r} by its hooks.{fix}", *wrong]))
            found = chosen
        rows |= {(row.kind, row.name): row for row in found}
        problems += wrong
    return sorted(rows.values(), key=_place), list(dict.fromkeys(problems))


def named(word: str) -> list[Row]:
    """Return what has a name, another name or a class that is called so, of whatever kind."""
    return [row for row in _rows_of(KINDS, registry)[0] if word in (row.name, row.cls, *row.aliases)]


def _unknown(word: str) -> str:
    """A line that says what a word may stand for that is no name; nothing where it resembles none."""
    rows = _rows_of(KINDS, registry)[0]
    hint = did_you_mean(word, [*KINDS, *(name for row in rows for name in (row.name, *row.aliases))])
    return f"{word!r} is no kind, and no name of anything.{hint}\n" if hint else ""


def _rows_of(kinds: Sequence[str], source: Any, plugins: Sequence[Plugin] | None = None) -> tuple[list[Row], list[str]]:
    """What some plugins of a registry, or all, give of some kinds, and what is wrong with these plugins."""
    keys = None if plugins is None else {plugin.key for plugin in plugins}
    rows: list[Row] = []
    for kind in kinds:
        own = _own(kind, keys)
        given = shortest_names(source.entries(kind)) if kind in hookspecs.KINDS else {}
        entries = own | {entry.qualified if name in own else name: entry for name, entry in given.items()}
        same: dict[tuple[str, int], dict[str, Entry]] = {}  # plugin and object -> the names of it
        for name, entry in entries.items():
            if keys is None or entry.plugin.key in keys:
                same.setdefault((entry.plugin.key, id(entry.object)), {})[name] = entry
        for names in same.values():
            first, *others = sorted(names, key=lambda name: (not _is_its_own(names[name]), name))
            rows.append(Row(kind, first, tuple(others), names[first].object, names[first].plugin))
    plugins = source.plugins() if plugins is None else plugins
    problems = [line for plugin in plugins for line in plugin.complaints]
    if "layers" in kinds:
        specimens: list[Specimen] = []
        for plugin in plugins:
            try:
                specimens += source.specimens(plugin)
            except RegistryError as error:
                problems.append(str(error))
        rows = [row._replace(operators=_operators(row, specimens)) if row.kind == "layers" else row for row in rows]
    shared = [name for row in rows for name in (row.name, *row.aliases) if ":" in name]
    problems += [f"{name} is found by its full name only: lamella, or another plugin, has that name" for name in shared]
    return sorted(rows, key=_place), problems


def _place(row: Row) -> tuple[Any, ...]:
    """Where it stands: lamella's own first within its kind."""
    return KINDS.index(row.kind), not row.plugin.is_own, row.origin, row.family, row.name


def _is_its_own(entry: Entry) -> bool:
    """Whether a name is that of the thing itself, and no alias."""
    try:
        own = getattr(entry.object, "__name__", None)
    except FAILURES:  # of an object with attributes of its own making
        return False
    return isinstance(own, str) and entry.name in (own, snake_case(own))


def _own(kind: str, keys: Collection[str] | None) -> dict[str, Entry]:
    """What lamella has by no hook, if all of its plugins are listed: callbacks, commands and laws."""
    plugins = [plugin for plugin in registry.plugins() if plugin.is_own]
    if not plugins or not all(keys is None or plugin.key in keys for plugin in plugins):
        return {}
    public = {name: getattr(callbacks, name) for name in callbacks.__all__ if name != Callback.__name__}
    classes = {name: one for name, one in public.items() if isinstance(one, type) and issubclass(one, Callback)}
    given: dict[str, tuple[str, Mapping[str, Any]]] = {
        "callbacks": (callbacks.__name__, classes),
        "commands": ("lamella.cli", OWN),
        "laws": ("lamella.testing.laws", LAWS),
    }
    module, things = given.get(kind, ("", {}))
    place = dataclasses.replace(plugins[0], module=module)
    return {name: Entry(name, one, place) for name, one in things.items()}


def _operators(row: Row, specimens: Iterable[Specimen]) -> tuple[str, ...] | None:
    try:
        return operators([specimen for specimen in specimens if type(specimen.subject) is row.thing])
    except KeyboardInterrupt:
        raise
    except BaseException:  # `lamella check` tells what is wrong with it
        return None


def _shown(default: object) -> str:
    try:
        return without_addresses(repr(default))
    except FAILURES:
        return "?"


def _written(parameters: Iterable[inspect.Parameter]) -> list[str]:
    """Parameters as a signature writes them, but for annotations."""
    written = []
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        written.append(one.name if one.default is one.empty else f"{one.name}={_shown(one.default)}")
    return written


def _fitting(before: str, parts: Sequence[str], after: str, room: float, more: str) -> str:
    """As many parts as fit, with commas between."""
    text = ""
    for count in range(len(parts), -1, -1):
        kept = list(parts[:count])
        if count < len(parts):
            kept = [*kept[: -1 if kept[-1:] == ["*"] else None], more]
        text = f"{before}{', '.join(kept)}{after}"
        if width_of(text) <= room:
            break
    return text


def show(rows: Sequence[Row], problems: Sequence[str], notes: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print a table on a terminal, a line for each name elsewhere, or JSON; problems go to standard error."""
    terminal = Terminal()
    if as_json:
        entries = [row.as_dict() for row in rows]
        print(json.dumps({"lamella": __version__, "entries": entries, "problems": problems}, indent=2))
        return
    if terminal.is_terminal:
        for line in _table(rows, notes, terminal):
            terminal.print(line)
    else:
        heading = ("name", "kind", "distribution", "class")
        named = [row._replace(name=name) for row in rows for name in (row.name, *row.aliases)]
        lines = [heading, *((row.name, row.kind, row.origin, _short(row)) for row in sorted(named, key=_place))]
        widths = [max(map(width_of, column)) for column in zip(*lines, strict=True)]
        for cells in lines:
            print("  ".join(map(_padded, cells, widths)).rstrip())
    sys.stdout.flush()
    errors = Terminal(sys.stderr)
    if not rows and not terminal.is_terminal:
        errors.print("lamella: there is nothing of these kinds")
    for problem in problems:
        errors.print(f"\n{styled(problem, 'yellow')}" if errors.is_terminal else f"lamella: {problem}")


def _short(row: Row) -> str:
    """Its class with the arguments that have to be given."""
    if not row.cls:
        return ""
    needed = _written(one for one in row.parameters if one.default is one.empty)
    return f"{row.cls}({', '.join([*needed, *['...'] * (len(needed) < len(_written(row.parameters)))])})"


def _table(rows: Sequence[Row], notes: Sequence[str], terminal: Terminal) -> list[str]:
    """Lines that fit the terminal: names, and beside or below each what it is called with, as far as there is room."""
    width, more = terminal.width, "…" if terminal.has_unicode else "..."
    with_operators = width >= _WIDE and any(row.kind == "layers" for row in rows)
    names = [wide for wide in (width_of(row.name) for row in rows) if wide <= width // 2]
    left = 4 + max(names, default=4)  # two columns before and two behind the name
    room = width - left - (2 + _OPERATORS if with_operators else 0)
    lines = [
        styled(_padded("name", left), "bold")
        + styled(_padded("class and arguments", room + 2 if with_operators else 0), "bold")
        + (styled("ONNX operators", "bold") if with_operators else ""),
        ("─" if terminal.has_unicode else "-") * width,
    ]
    shortened = False
    for (family, origin), group in itertools.groupby(rows, key=lambda row: (row.family, row.origin)):
        lines += [""] * (len(lines) > 2)
        lines.append(f"{styled(family, 'bold')}  {styled(origin, 'dim')}")
        for row in group:
            line, text = f"  {row.name}", _text(row, room, more)
            if width_of(line) > left - 2 or width_of(text) > room:
                lines += fold(line, width)
                line, text = " " * 6, _text(row, room + left - 6, more)
            line = _padded(line, 6 if line.isspace() else left) + _colored(row, text)
            if with_operators and row.kind == "layers":
                known = "?" if row.operators is None else _fitting("", row.operators, "", _OPERATORS, more) or "nothing"
                line = _padded(line, left + room + 2) + known
            shortened = shortened or more in line
            lines += [part.rstrip() for part in fold(line, width)]
    counts = Counter(row.kind for row in rows)
    said = [", ".join(f"{count} {_counted(kind, count)}" for kind, count in counts.items()) or "nothing", *notes]
    if shortened:
        said.append(f"{more} stands for what does not fit; --json prints it all")
    if with_operators and any(row.kind == "layers" and row.operators is None for row in rows):
        said.append("?: no specimen says which")
    return [*lines, "", *(part for note in said for part in fold(note, width))]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def _text(row: Row, room: int, more: str) -> str:
    """What it is called with, or what it is; and its other names."""
    also = f"also {', '.join(row.aliases)}" if row.aliases else ""
    room -= width_of(also) + 2 if also else 0
    sentence = row.sentence.rstrip(".")
    if row.cls:
        text = _fitting(f"{row.cls}(", _written(row.parameters), ")", room, more)
    elif width_of(sentence) > room >= _SENTENCE:
        text = f"{fold(sentence, room - len(more))[0].rstrip(' ,;:.')}{more}"
    else:
        text = sentence if width_of(sentence) <= room else ""
    return "; ".join(part for part in (text, also) if part)


def _colored(row: Row, text: str) -> str:
    return text.replace(row.cls, styled(row.cls, "cyan"), 1) if row.cls else text


def _counted(kind: str, count: int) -> str:
    """The kind, in the singular for one."""
    return kind if count > 1 else "loss" if kind == "losses" else kind.removesuffix("s")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"kinds ({', '.join(KINDS)}); names, such as adam; packages, modules and distributions, or PACKAGE:NAME; "
        "by default everything",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all that is known of each")


def _run(arguments: argparse.Namespace) -> int:
    kinds = [kind for kind in KINDS if kind in arguments.what] or KINDS
    packages = [word for word in arguments.what if word not in KINDS]
    with aside():
        rows, problems = listed(kinds, packages)
    show(rows, problems, as_json=arguments.json)
    return 0


COMMAND = Command("list what installed plugins give: layers, losses, optimizers and all else", _configure, _run)
