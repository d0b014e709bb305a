"""The pages of the reference, written from docstrings, signatures, specimens, the registry and the commands' parsers.

What lamella's plugins register, and what its modules name in ``__all__``, comes onto a page without a line here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import inspect
import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import drawing
import tree

import lamella
from lamella import cli, errors, hookspecs, registry
from lamella.activations import ActivationFunction
from lamella.cli.reference import Docstring, markdown, operator_links, paragraphs, source_link, table
from lamella.commands import COMMANDS, Command
from lamella.testing.package import find_package

ELSEWHERE = {"layers", "commands", "laws"}  # kinds with a page of their own, or none
_ERRORS = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
_ERRORS.sort(key=lambda name: len(getattr(errors, name).__mro__))  # what the others extend comes first
MODULES = {  # what is on a page, beside the kinds: the title, and modules with those of their names that are meant
    "models": ("Models", {"lamella": "Model Sequential Input Node from_config load inspect set_threads Task History"}),
    "export": ("ONNX export", {"lamella_onnx": ""}),
    "serving": ("Serving in Python", {"lamella_serve": ""}),
    "scikit-learn": ("Estimators", {"lamella_sklearn": ""}),
    "writing": ("Layers of your own", {"lamella": "Layer ArraySpec Declare Context Configured layer layers register"}),
    "primitives": ("Primitives", {"lamella.primitives": ""}),
    "testing": ("Laws", {"lamella.testing": ""}),
    "errors": ("Errors", {"lamella.errors": " ".join(_ERRORS)}),
    "data": ("Data", {"lamella.datasets": ""}),
}
INTRODUCTIONS = {"models": "lamella.model", "writing": "lamella.protocol"}


class Name(NamedTuple):
    """What pages may speak of, and the heading under which it is explained."""

    full: str
    page: str
    anchor: str


@dataclasses.dataclass
class Entry:
    """A section about a class or a function."""

    title: str
    names: Sequence[str]  # in full
    thing: Any
    call: str = ""
    facts: Sequence[str] = ()
    picture: str = ""
    has_methods: bool = False


class Page:
    """A page that is being written, and the names that it explains."""

    def __init__(self, name: str, title: str, *parts: str) -> None:
        self.name, self.names = name, list[Name]()
        self.parts: list[str] = []
        self._headings: list[str] = []
        self.heading(1, title)
        self.parts += parts

    def heading(self, level: int, title: str, *names: str) -> str:
        """Add a heading, to which names lead from now on; return its anchor, by GitHub's rule."""
        plain = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        anchor = f"{plain}-{self._headings.count(plain)}".removesuffix("-0")
        self._headings.append(plain)
        self.parts.append(f"{'#' * level} {title}")
        self.names += [Name(one, self.name, anchor) for one in names]
        return anchor

    def entries(self, entries: Sequence[Entry], level: int = 2) -> None:
        """Add a table of entries, and a section for each."""
        place, rows = len(self.parts), []
        shown = [entry.thing for entry in entries]
        for entry in entries:
            is_above = getattr(lamella, entry.title, None) is entry.thing
            anchor = self.heading(level, entry.title, *entry.names, *([f"lamella.{entry.title}"] if is_above else []))
            rows.append((f"[`{entry.title}`](#{anchor})", _short(entry.thing)))
            said = paragraphs(entry.thing, entry.call, [*entry.facts, *_source(entry.thing)])
            self.parts += [said[0], *([entry.picture] if entry.picture else []), *said[1:]]
            if entry.has_methods:
                self._members(entry, level + 1, [one for one in entry.thing.__mro__[1:] if one in shown])
        self.parts.insert(place, table(("name", "in short"), rows))

    def _members(self, entry: Entry, level: int, bases: Sequence[type]) -> None:
        """Add what lamella gives a class: a table of properties, and a section for each method; not those of bases."""
        known = {name for base in bases for name in dir(base)}
        names = [name for name in dir(entry.thing) if not name.startswith("_") and name not in known]
        members = [(name, inspect.getattr_static(entry.thing, name)) for name in names]
        members = [(name, one) for name, one in members if _is_told(one)]
        properties = [(f"`{name}`", _short(one)) for name, one in members if isinstance(one, _PROPERTIES)]
        if properties:
            self.parts.append(table(("property", "meaning"), properties))
        for name, one in members:
            if isinstance(one, _METHODS):
                self.heading(level, f"{entry.title}.{name}", *(f"{full}.{name}" for full in entry.names))
                bound = types.MethodType(one, entry.thing) if inspect.isfunction(one) else getattr(entry.thing, name)
                self.parts += paragraphs(bound, name)

    def __str__(self) -> str:
        return "\n\n".join(self.parts) + "\n"


_METHODS = (types.FunctionType, classmethod, staticmethod)
_PROPERTIES = (property, functools.cached_property)


def _is_told(member: Any) -> bool:
    """Whether a member of a class is lamella's, and documented."""
    function = member.fget if isinstance(member, property) else getattr(member, "func", member)
    return str(getattr(function, "__module__", "")).startswith("lamella") and bool(member.__doc__)


def _short(thing: Any) -> str:
    """The first sentence of a docstring."""
    return re.split(r"(?<=[^.])\.(?= |$)", " ".join(Docstring.of(thing).sentence.split()), maxsplit=1)[0] + "."


def _source(thing: Any) -> list[str]:
    """A link to the code of a class or a function."""
    try:
        return source_link(inspect.unwrap(thing), tree.ROOT / "docs")
    except TypeError:  # an object
        return []


def pages(written: Mapping[str, str]) -> tuple[dict[str, str], list[Name]]:
    """The text of every page of the reference by its name, and all names; ``written`` are the pages that have one."""
    kinds = [kind for kind in hookspecs.KINDS if kind not in ELSEWHERE]
    found = [*map(_kind, kinds), _family("callbacks", "Callbacks", "Callback")]
    found.append(_family("regularization", "Penalties and constraints", "Penalty", "Constraint"))
    found += [_modules(name, title, modules) for name, (title, modules) in MODULES.items()]
    found += [_hooks(), _commands(written["commands"])]
    texts = {page.name: str(page) for page in found}
    texts["layers"] = markdown([find_package("lamella")], tree.ROOT / "docs")
    layers = {entry.object for entry in registry.entries("layers") if entry.plugin.is_own}
    names = [Name(f"lamella_layers.{one.__name__}", "layers", one.__name__.lower()) for one in layers]
    return texts, [*names, *(name for page in found for name in page.names)]


def _introduction(module: str, title: str) -> list[str]:
    """What a module says of itself but its own name; indented blocks become blocks of Markdown."""

    def block(found: re.Match[str]) -> str:
        return ":\n\n```toml\n" + inspect.cleandoc(found[1]) + "\n```\n"

    first, *parts = paragraphs(importlib.import_module(module), "")
    first = first.removeprefix(f"{title}: ")
    return [f"{first[0].upper()}{first[1:]}", *(re.sub(r"::\n\n((?:    .*\n?)+)", block, one) for one in parts)]


def _offered(module: str, names: str = "") -> list[Entry]:
    """The documented classes and functions of a module, those named or all of ``__all__``; classes with methods."""
    home = importlib.import_module(module)
    entries = []
    for name in names.split() or home.__all__:
        thing = getattr(home, name)
        if callable(thing) and thing.__doc__:
            call = re.sub(r"^lamella\b", "lm", f"{module}.{name}")
            is_class = isinstance(thing, type) and not issubclass(thing, BaseException)
            entries.append(Entry(name, [f"{module}.{name}"], thing, call, has_methods=is_class))
    return entries


def _kind(kind: str) -> Page:
    """What is registered of a kind, and then what authors of others of the kind need."""
    module = f"lamella.{kind}"
    page = Page(f"reference/{kind}", title := kind.capitalize(), *_introduction(module, title))
    offered = {id(entry.thing): entry for entry in _offered(module)}
    same: dict[int, list[registry.Entry]] = {}
    for entry in registry.entries(kind):
        if entry.plugin.is_own:
            same.setdefault(id(entry.object), []).append(entry)
    entries = []
    for key, group in same.items():
        thing = group[0].object
        function = thing.forward if isinstance(thing, ActivationFunction) else thing
        called = registry.snake_case(function.__name__)
        names = sorted((entry.name for entry in group), key=lambda name: (name != called, name))
        facts = ["Registered as " + ", ".join(f"`{name}`" for name in names)]
        entry = Entry(function.__name__, [f"{kind}:{name}" for name in names], function, facts=facts)
        if isinstance(thing, ActivationFunction):
            fitting = [one for one in registry.specimens() if getattr(one.subject, "function", None) is thing]
            entry.title, entry.picture = names[0], drawing.curve(thing, names[0])
            entry.facts = [*facts, *operator_links(fitting)]
        elif key in offered:
            entry.names, entry.call = [*entry.names, *offered[key].names], offered[key].call
        entries.append(entry)
    page.entries(sorted(entries, key=lambda entry: entry.title.lower()))
    (about,) = (one for one in vars(importlib.import_module(module)).values() if _is_kind(one, kind))
    rest = [entry for key, entry in offered.items() if key not in same]
    _for_authors(page, sorted(rest, key=lambda entry: entry.thing not in (about.base, about.of)))
    return page


def _is_kind(value: object, name: str) -> bool:
    return isinstance(value, registry.Kind) and value.name == name


def _for_authors(page: Page, entries: Sequence[Entry]) -> None:
    if entries:
        page.heading(2, "For authors of others")
        page.entries(entries, level=3)


def _family(name: str, title: str, *bases: str) -> Page:
    """The classes of a module of lamella that extend some others, and then these."""
    module = f"lamella.{name}"
    page = Page(f"reference/{name}", title, *_introduction(module, title))
    above = tuple(getattr(importlib.import_module(module), base) for base in bases)
    offered = sorted(_offered(module), key=lambda entry: entry.title.lower())
    members = [entry for entry in offered if isinstance(entry.thing, type) and issubclass(entry.thing, above)]
    members = [dataclasses.replace(one, has_methods=False) for one in members if one.thing not in above]
    page.entries(members)
    shown = [entry.title for entry in members]
    rest = [entry for entry in offered if entry.title not in shown]
    _for_authors(page, sorted(rest, key=lambda entry: entry.thing not in above))
    return page


def _modules(name: str, title: str, modules: Mapping[str, str]) -> Page:
    """What some modules offer."""
    page = Page(f"reference/{name}", title, *_introduction(INTRODUCTIONS.get(name, next(iter(modules))), title))
    page.entries([entry for module, names in modules.items() for entry in _offered(module, names)])
    return page


def _hooks() -> Page:
    """The hooks by which plugins give what they have."""
    page = Page("reference/hooks", "Hooks", *_introduction("lamella.hookspecs", "Hooks"))
    page.names.append(Name("lamella.hookimpl", page.name, "hooks"))
    hooks = [(name, hook) for name, hook in vars(hookspecs).items() if name.startswith("lamella_")]
    page.entries(
        [
            Entry(name, [f"lamella.hookspecs.{name}"], hook, facts=[f"Returns `{hook.__annotations__['return']}`"])
            for name, hook in hooks
        ]
    )
    return page


def _commands(written: str) -> Page:
    """The page on commands, and the options of each as the command itself tells them."""
    title, text = written.removeprefix("# ").split("\n", 1)
    page = Page("commands", title, text.strip())
    page.heading(2, "Options")
    commands: dict[str, Command] = {**cli.OWN}
    commands |= {entry.name: entry.object for entry in COMMANDS.entries() if entry.plugin.is_own}
    for name, command in sorted(commands.items()):
        page.heading(3, f"lamella {name}", f"commands:lamella {name}")
        narrow = functools.partial(argparse.HelpFormatter, width=88)
        parser = argparse.ArgumentParser(prog=f"lamella {name}", formatter_class=narrow)
        command.configure(parser)
        page.parts.append(f"```text\n{parser.format_help().rstrip()}\n```")
    return page


def write_names(names: Iterable[Name], path: Path) -> None:
    """Write the names for the extension that makes links of them."""
    path.write_text(json.dumps(list(names)), encoding="utf-8")
