"""The reference as Markdown: what docstrings say of layers and of everything else, and what specimens show."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import itertools
import os
import re
import sys
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamella import registry
from lamella.protocol.layer import LAYERS, Layer
from lamella.protocol.node import Input, Node
from lamella.protocol.spec import ArraySpec
from lamella.protocol.specimen import Specimen
from lamella.testing.package import Package, Subject

__all__ = [
    "Docstring",
    "is_composite",
    "markdown",
    "operator_links",
    "operators",
    "paragraphs",
    "signature_of",
    "source_link",
    "table",
]

_SECTION = re.compile(r"^(Arguments|Attributes|Inputs|Shapes|Raises|Source): ?", re.MULTILINE)
_LISTS = ("Arguments", "Attributes", "Raises")
_ENTRY = re.compile(r"^    (\w[\w, ]*): ", re.MULTILINE)
_NONE = inspect.Parameter.empty
_INTRODUCTION = """
N stands for the batch; a letter such as T in place of a size for any number. Numbers are float32 unless something else
is said. Each layer's specimens are the examples of itself that the laws are tested with. ONNX operators are those of
the exported layer in inference; where there are none, they follow from its array code.

This page is generated from docstrings and specimens: `lamella layers PACKAGE --markdown FILE`.
"""
_ONNX = "https://onnx.ai/onnx/operators/onnx__{}.html"


class Docstring(NamedTuple):
    """The parts of a docstring.

    Attributes:
        sentence: the first paragraph.
        more: the paragraphs after it.
        sections: ``"Shapes"`` and so on, to what stands under it.
        after: ``"Arguments"`` and so on, to the paragraphs that follow its entries.
        example: all that is to be run, from the first ``>>>`` on.
    """

    sentence: str
    more: str
    sections: dict[str, str]
    after: dict[str, str]
    example: str

    @classmethod
    def of(cls, thing: object) -> Docstring:
        """Take a docstring apart.

        >>> from lamella_layers import Flatten
        >>> Docstring.of(Flatten).sections["Source"]
        'https://onnx.ai/onnx/operators/onnx__Flatten.html'
        """
        said, arrow, example = inspect.cleandoc(thing.__doc__ or "").partition(">>> ")
        intro, *parts = _SECTION.split(said)
        sentence, _, more = intro.strip().partition("\n\n")
        sections = {name: text.rstrip().strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}
        after = {}
        for name in sections.keys() & _LISTS:  # entries are indented, and what follows them is not
            sections[name], *rest = re.split(r"\n\n(?=\S)", sections[name], maxsplit=1)
            after[name] = "".join(rest)
        return cls(sentence, more.strip(), sections, after, arrow + example.strip())

    def entries(self, section: str) -> dict[str, str]:
        """What a section says of each name, in one line each; ``a, b: ...`` speaks of both."""
        names = _ENTRY.split(self.sections.get(section, ""))[1:]
        said = zip(names[::2], names[1::2], strict=True)
        return {name: " ".join(text.split()) for both, text in said for name in both.split(", ")}


def operators(specimens: Iterable[Specimen]) -> tuple[str, ...] | None:
    """The ONNX operators that a layer becomes by its specimens; None where they leave it open.

    Those with an activation, or made of other layers in another way, count only where there are no others.
    """
    found: dict[str, None] | None = None
    for specimen in sorted(specimens, key=is_composite):
        if specimen.operators is not None and (not found or not is_composite(specimen)):
            found = {**(found or {}), **dict.fromkeys(specimen.operators)}
    return None if found is None else tuple(found)


def operator_links(specimens: Iterable[Specimen]) -> list[str]:
    """A line that links to the pages of these operators; none where specimens leave them open."""
    known = operators(specimens)
    links = ", ".join(f"[{node}]({_ONNX.format(node)})" for node in known or ())
    return [] if known is None else [f"ONNX: {links or 'nothing'}"]


def is_composite(specimen: Specimen) -> bool:
    """Whether a layer is made of others, such as one with an activation."""
    if not isinstance(specimen.subject, Layer):
        return False
    try:
        call = _call(specimen)[0].call
    except registry.FAILURES:  # `lamella check` tells what is wrong with it
        return False
    return call is not None and call.parent is not None


def _call(specimen: Specimen) -> tuple[Node, ...]:
    """The nodes of the outputs."""
    nodes = [Input(s.shape[1:], None if s.is_float else s.dtype, low=s.low, high=s.high) for s in specimen.inputs]
    outputs = specimen.subject(*nodes)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def markdown(packages: Sequence[Package], folder: Path) -> str:
    """The reference of all layers of some packages, as a page for a folder: links to sources start there."""
    families = _families(packages)
    anchors = _anchors([heading for title, subjects in families for heading in (title, *map(_name, subjects))])
    rows = [
        (f"[{title}](#{anchors[title]})", ", ".join(f"[`{_name(one)}`](#{anchors[_name(one)]})" for one in subjects))
        for title, subjects in families
    ]
    parts = ["# Layers", _INTRODUCTION.strip(), table(("family", "layers"), rows)]
    for title, subjects in families:
        family = Docstring.of(importlib.import_module(_module(subjects[0])))
        parts += [f"## {title}", _text(family.sentence, anchors)]
        for subject in subjects:
            parts += _entry(subject, anchors, folder)
    return "\n\n".join(parts) + "\n"


def _families(packages: Sequence[Package]) -> list[tuple[str, list[Subject]]]:
    """Layers by the module of the plugin that gives them."""
    found: dict[str, list[Subject]] = {}
    for package in packages:
        for subject in package.subjects:
            if subject.cls is not None and issubclass(subject.cls, Layer):
                family = _module(subject).rpartition(".")[2].replace("_", " ").capitalize()
                found.setdefault(f"{family} layers", []).append(subject)
    return sorted(found.items())


def _module(subject: Subject) -> str:
    entry = LAYERS.entry_of(subject.cls)
    return entry.plugin.module.partition(":")[0] if entry else str(getattr(subject.cls, "__module__", ""))


def _name(subject: Subject) -> str:
    return getattr(subject.cls, "__name__", subject.name)


def _anchors(headings: Sequence[str]) -> dict[str, str]:
    """Where each heading of a page is found, by GitHub's rule; of equal ones, the first.

    >>> _anchors(["Dense layers", "Conv2D"])
    {'Dense layers': 'dense-layers', 'Conv2D': 'conv2d'}
    """
    return {heading: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _entry(subject: Subject, anchors: dict[str, str], folder: Path) -> list[str]:
    """The paragraphs about one layer."""
    cls: Any = subject.cls
    facts = [f"Registered as `{subject.name}`", *source_link(cls, folder), *operator_links(subject.specimens)]
    others = {heading: anchor for heading, anchor in anchors.items() if heading != cls.__name__}
    return [
        f"### {cls.__name__}",
        *paragraphs(cls, cls.__name__, facts, others),
        *(_specimens(subject.specimens) if subject.specimens else []),
    ]


def paragraphs(thing: Any, call: str, facts: Sequence[str] = (), anchors: Mapping[str, str] | None = None) -> list[str]:
    """What a class, a function or a module says of itself, as Markdown.

    Arguments:
        thing: the class, function or module.
        call: how it is called, in front of its arguments, such as ``"lm.load"``; ``""`` for what is not called.
        facts: what else is known of it, for a line of its own.
        anchors: names that are headings of the page, to where they are found there.

    >>> from lamella.regularization import L1
    >>> print("\\n".join(paragraphs(L1, "L1")[:2]))
    ``strength * sum(|p|)``, which draws small entries to zero; its gradient is ``strength * sign(p)``.
    **`L1(strength=0.01)`**
    """
    said = Docstring.of(thing)
    signature = signature_of(thing) if call else None
    shown = "" if signature is None else f"**`{call}{signature}`**"
    parts = [said.sentence, shown, " · ".join(facts), said.more]
    rows = _arguments(said.entries("Arguments"), signature)
    parts += [table(("argument", "default", "meaning"), rows) if rows else "", said.after.get("Arguments", "")]
    for part in ("Inputs", "Shapes"):
        if part in said.sections:  # parameters get a paragraph of their own
            parts.append(f"**{part}**: " + re.sub(r"\s(Parameters?): ", r"\n\n**\1**: ", said.sections[part]))
    held = [(f"`{name}`", text) for name, text in said.entries("Attributes").items()]
    parts += [table(("attribute", "meaning"), held) if held else "", said.after.get("Attributes", "")]
    raises = said.entries("Raises").items()
    parts.append("**Raises**:\n\n" + "\n".join(map(_raised, raises)) if raises else "")
    parts.append(said.after.get("Raises", ""))
    parts.append(f"**Source**: {said.sections['Source']}" if "Source" in said.sections else "")
    example = "\n".join([*_imports(thing, said.example), said.example])
    return [
        *(_text(part, anchors or {}) for part in parts if part),
        *([f"```pycon\n{example}\n```"] if said.example else []),
    ]


def _arguments(said: Mapping[str, str], signature: inspect.Signature | None) -> list[tuple[str, str, str]]:
    """Rows of arguments with their defaults; those of which one thing is said share a row."""
    known = {} if signature is None else signature.parameters
    defaults = {name: known[name].default if name in known else _NONE for name in said}
    rows = []
    for text, names in itertools.groupby(said, key=said.__getitem__):
        shared = list(names)
        cells = ["—" if defaults[name] is _NONE else f"`{defaults[name]!r}`" for name in shared]
        rows.append((", ".join(f"`{name}`" for name in shared), "" if {*cells} == {"—"} else ", ".join(cells), text))
    return rows


def _raised(entry: tuple[str, str]) -> str:
    """A line about an error: ``if ...`` goes on from its name, and what it is of gets a colon."""
    error, text = entry
    return f"- `{error}`{'' if text.startswith(('if ', 'for ', 'where ')) else ':'} {text}"


def signature_of(thing: Any) -> inspect.Signature | None:
    """The arguments of a class or a function without their types; None where it has no signature.

    >>> import lamella as lm
    >>> print(signature_of(lm.load))
    (path, *, backend=None, layers=None, optimizer=True)
    """
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    return inspect.Signature([one.replace(annotation=_NONE) for one in signature.parameters.values()])


def _specimens(specimens: Sequence[Specimen]) -> list[str]:
    """A table that unfolds."""
    rows = list(map(_specimen, specimens))
    title = f"{len(specimens)} specimen{'s' * (len(specimens) > 1)}: what goes in, what comes out"
    return [f"<details><summary>{title}</summary>", table(("layer", "shapes", "ONNX"), rows), "</details>"]


def _specimen(specimen: Specimen) -> tuple[str, str, str]:
    """The layer, its inputs and outputs, and the ONNX operators."""
    shapes = [", ".join(map(_shape, specs)) for specs in (specimen.inputs, [node.spec for node in _call(specimen)])]
    counts = Counter(specimen.operators or ())
    nodes = ", ".join(node if count == 1 else f"{count} {node}" for node, count in counts.items())
    return f"`{specimen.subject!r}`", " → ".join(shapes), "nothing" if specimen.operators == () else nodes


def _shape(spec: ArraySpec) -> str:
    return str(spec).removesuffix(" float32")


def source_link(thing: Any, folder: Path) -> list[str]:
    """A link to where a class or a function is written, if that is in the project of the folder."""
    source = Path(inspect.getfile(thing)).resolve()
    folder = folder.resolve()
    project = next((one for one in (folder, *folder.parents) if (one / "pyproject.toml").exists()), folder)
    if not source.is_relative_to(project) or "site-packages" in source.parts:
        return []
    return [f"[source]({Path(os.path.relpath(source, folder)).as_posix()})"]


def _imports(thing: Any, example: str) -> list[str]:
    """The lines that import what an example takes from the module of its docstring."""
    module = thing if isinstance(thing, types.ModuleType) else sys.modules[thing.__module__]
    packages, lines = dict[str, list[str]](), []
    for name in _taken(example):
        value = vars(module).get(name)
        if isinstance(value, types.ModuleType):
            lines.append(f">>> import {value.__name__}" + (f" as {name}" if name != value.__name__ else ""))
        elif name in vars(module):
            packages.setdefault(_home(name, value, module.__name__), []).append(name)
    return [*(f">>> from {package} import {', '.join(names)}" for package, names in packages.items()), *lines]


def _taken(example: str) -> list[str]:
    """The names that an example uses and does not make itself; none of one that can't be read.

    >>> _taken(">>> import numpy as np\\n>>> y = Scale(2.0)(np.ones(3))")
    ['Scale']
    """
    try:
        trees = [ast.parse(one.source) for one in doctest.DocTestParser().get_examples(example)]
    except (SyntaxError, ValueError):  # whoever runs it is told
        return []
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            made |= {one.asname or one.name.partition(".")[0] for one in node.names}
    return [name for name in dict.fromkeys(node.id for node in names) if name not in made]


def _home(name: str, value: Any, module: str) -> str:
    """The uppermost package that has a value by a name, else the module that uses it."""
    parts = str(getattr(value, "__module__", module)).split(".")
    packages = [".".join(parts[: k + 1]) for k in range(len(parts))]
    having = (one for one in packages if getattr(sys.modules.get(one), name, None) is value)
    return next(having, module)


def _text(text: str, anchors: Mapping[str, str]) -> str:
    """A docstring's text as Markdown: addresses and names of layers become links.

    >>> _text("as in `Dense`, see https://arxiv.org/abs/1502.03167, and `x`", {"Dense": "dense"})
    'as in [`Dense`](#dense), see <https://arxiv.org/abs/1502.03167>, and `x`'
    """
    text = re.sub(r"(?<!\()\bhttps://[^\s;,]*[^\s;,.)]", r"<\g<0>>", text)
    return re.sub(
        r"(?<![`\[])`(\w+)`(?!`)", lambda m: f"[`{m[1]}`](#{anchors[m[1]]})" if m[1] in anchors else m[0], text
    )


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown.

    >>> print(table(("name", "meaning"), [("a|b", "either")]))
    | name | meaning |
    | --- | --- |
    | a\\|b | either |
    """

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
