"""Where each page of the repository stands on the site, and which file of the repository a link means."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
IMAGE = re.compile(r"(!\[[^\]]*\]\()([^)\s]+)\)")


def pages() -> dict[str, Path]:
    """Every Markdown page of the site by its name there: ``docs/train.md`` is ``train``.

    >>> pages()["contributing"].name, pages()["examples/index"].parent.name
    ('CONTRIBUTING.md', 'examples')
    """
    found = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
    found["index"] = ROOT / "docs" / "site" / "index.md"
    found |= {name.lower(): ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG")}
    for path in sorted((ROOT / "examples").rglob("README.md")):  # the page of its folder
        found[f"{path.parent.relative_to(ROOT).as_posix()}/index"] = path
    return found


def folder_of(page: str) -> str:
    """The folder of the repository from which the links of a page start; ``docs`` for pages that are generated."""
    file = pages().get(page, ROOT / "docs" / "page.md")
    return file.parent.relative_to(ROOT).as_posix()


def named(link: str, page: str) -> PurePosixPath | None:
    """The path of the repository that a link of a page means, if there is such a file or folder.

    >>> named("../examples/serve.py", "export")
    PurePosixPath('examples/serve.py')
    """
    path = posixpath.normpath(posixpath.join(folder_of(page), link))
    return PurePosixPath(path) if not path.startswith("..") and (ROOT / path).exists() else None


def page_of(path: PurePosixPath) -> str | None:
    """The page of the site that a path of the repository has: a Markdown file, or a folder with a README."""
    known = {file: page for page, file in pages().items()} | {ROOT / "README.md": "index"}
    return known.get(ROOT / path) or known.get(ROOT / path / "README.md")


def with_pictures(text: str, page: str) -> tuple[str, set[PurePosixPath]]:
    """A page whose pictures are named by their paths from the root of the sources, and these paths."""
    found = set[PurePosixPath]()

    def picture(link: re.Match[str]) -> str:
        if path := named(link[2], page):
            found.add(path)
        return f"{link[1]}/{path})" if path else link[0]

    return IMAGE.sub(picture, text), found
