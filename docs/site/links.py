"""An extension of Sphinx: links between files of the repository become links of the site, and names become links.

A link to a Markdown file leads to its page; one to any other file, or to a folder, leads to a page that shows it. Code
such as ``lm.losses.Huber`` or ``Dense`` leads to where the reference explains it. The first paragraph describes a page.
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import tree
from docutils import nodes
from names import Names
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

MADE = re.compile(r"^\.|__pycache__|\.egg-info$|^build$|^dist$|^node_modules$")  # of others, not for reading
LARGEST = 200_000  # bytes of a file that a page shows
_navigations: dict[int, str] = {}  # of pages that show files, by their depth
OTHERS = ("Keras", "PyTorch")  # whose columns speak of other names


class RepositoryLinks(SphinxPostTransform):
    """Links, as a repository's browser understands them."""

    default_priority = 5  # before MyST looks for what they mean
    shown: ClassVar[set[PurePosixPath]] = set()  # files and folders that links lead to, and what is in these

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(addnodes.pending_xref)):
            link, _, anchor = str(node["reftarget"]).partition("#")
            path = tree.named(link, self.env.docname) if node["refdomain"] != "doc" and link else None
            if path is None:
                continue  # a page, which MyST finds, or nothing, of which it warns
            if page := tree.page_of(path):
                node.update_basic_atts({})
                node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", page, anchor or None
            else:
                node.replace_self(self._shown(path, node))

    def _shown(self, path: PurePosixPath, node: nodes.Element) -> nodes.reference:
        self.shown.update(_with_files(path))
        uri = self.app.builder.get_relative_uri(self.env.docname, f"source/{path}")
        return nodes.reference("", "", *node.children, refuri=uri, internal=True)


class Entries(SphinxPostTransform):
    """Tables of what the reference explains, which a narrow screen shows as lists."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for table in self.document.findall(nodes.table):
            heads = [one.astext() for one in table.findall(nodes.entry)][:2]
            if heads in (
                ["name", "in short"],
                ["argument", "default"],
                ["property", "meaning"],
                ["attribute", "meaning"],
            ):
                table["classes"].append("entries")


class NameLinks(SphinxPostTransform):
    """Code that is a name of the reference, or the path of a page, becomes a link."""

    default_priority = 6
    names = Names()

    def run(self, **kwargs: Any) -> None:
        here = self.env.docname
        for node in list(self.document.findall(nodes.literal)):
            above = list(_above(node))
            if any(isinstance(one, nodes.title | nodes.reference | addnodes.pending_xref) for one in above):
                continue
            page, anchor = self._place(node.astext(), *_cell(above))
            if not page or (page == here and any(anchor in one.get("ids", ()) for one in above)):
                continue  # nothing that is explained, or the section that explains it
            uri = "" if page == here else self.app.builder.get_relative_uri(here, page)
            uri += f"#{anchor}" if anchor else ""
            node.replace_self(nodes.reference("", "", node.deepcopy(), refuri=uri, internal=True, classes=["name"]))

    def _place(self, code: str, row: str, column: str) -> tuple[str, str]:
        """The page and the anchor that code means, if any."""
        if code.endswith(".md") and (page := tree.page_of(PurePosixPath(code))):
            return page, ""
        place = None if column in OTHERS else self.names.find(code, self.env.docname, row)
        if place is None:
            return "", ""
        page, slug = place
        return page, self.env.metadata[page]["myst_slugs"][slug][1]


def _above(node: nodes.Node) -> Iterator[nodes.Element]:
    while node.parent is not None:
        node = node.parent
        yield node


def _cell(above: list[nodes.Element]) -> tuple[str, str]:
    """The words with which the row and the column of a table begin, for what stands in a cell."""
    for entry, row in itertools.pairwise(above):
        if isinstance(row, nodes.row):
            head = next(iter(row.parent.parent.findall(nodes.row)))
            return row[0].astext(), head[row.index(entry)].astext()
    return "", ""


def read_names(app: Sphinx) -> None:
    """Read which names the reference explains."""
    NameLinks.names = Names(json.loads(Path(app.srcdir, "names.json").read_text(encoding="utf-8")))


def _with_files(path: PurePosixPath) -> Iterator[PurePosixPath]:
    """A path, and all below it that can be shown."""
    yield path
    if (tree.ROOT / path).is_dir():
        for one in _listed(path):
            yield from _with_files(one)


def _listed(folder: PurePosixPath) -> list[PurePosixPath]:
    """What a folder has to show: folders first."""
    inside = [one for one in (tree.ROOT / folder).iterdir() if not MADE.search(one.name)]
    texts = [one for one in inside if one.is_dir() or (one.stat().st_size < LARGEST and b"\0" not in one.read_bytes())]
    return [folder / one.name for one in sorted(texts, key=lambda one: (one.is_file(), one.name))]


def pages_of_files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file and folder that a page links to."""
    for path in sorted(RepositoryLinks.shown):
        name = f"source/{path}"
        if (tree.ROOT / path).is_dir():
            rows = [(app.builder.get_relative_uri(name, f"source/{one}"), one.name) for one in _listed(path)]
            body = "".join(f'<li><a href="{uri}"><code>{html.escape(text)}</code></a></li>' for uri, text in rows)
            body = f"<ul>{body}</ul>"
        else:
            code = (tree.ROOT / path).read_text(encoding="utf-8")
            body = app.builder.highlighter.highlight_block(code, _language(path))
        title = html.escape(str(path))
        body = f"<section><h1><code>{title}</code></h1>{body}</section>"
        yield name, {"title": title, "body": body, "parents": [], "display_toc": False}, "page.html"


def _language(path: PurePosixPath) -> str:
    try:
        return str(get_lexer_for_filename(path.name).aliases[0])
    except ClassNotFound:
        return "docker" if path.name == "Containerfile" else "text"


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give a page its first paragraph as its description."""
    if doctree is not None and (first := next(iter(doctree.findall(nodes.paragraph)), None)):
        words = " ".join(first.astext().split())
        context["metatags"] += f'<meta name="description" content="{html.escape(words)}">'


def reuse_navigation(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Give pages that show files of one depth the navigation of the first of them: it is the same, and takes long."""
    if page.startswith("source/"):
        make = context["toctree"]

        def navigation(**options: Any) -> str:
            depth = page.count("/")
            if depth not in _navigations:
                _navigations[depth] = str(make(**options))
            return _navigations[depth]

        context["toctree"] = navigation


def break_in_tables(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let code in tables go on in the next line behind ``.``, ``(``, ``/`` and ``:``, and nowhere within a word."""

    def in_cell(cell: re.Match[str]) -> str:
        return re.sub(r'<span class="pre">[^<]*', in_code, cell[0])

    def in_code(code: re.Match[str]) -> str:
        return re.sub(r"(?<=\w[.(/:])(?=\w)", "<wbr>", code[0])

    if "body" in context:
        context["body"] = re.sub(r"<td\b.*?</td>", in_cell, context["body"], flags=re.DOTALL)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(RepositoryLinks)
    app.add_post_transform(Entries)
    app.add_post_transform(NameLinks)
    app.connect("builder-inited", read_names)
    app.connect("html-collect-pages", pages_of_files)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", break_in_tables)
    app.connect("html-page-context", reuse_navigation, priority=400)  # before the theme asks for it
    return {"parallel_read_safe": True, "parallel_write_safe": False}
