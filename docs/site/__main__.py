"""Build the documentation site: ``python docs/site [FOLDER]``, by default into ``runs/site``.

The pages of the repository and those of the reference, which are written here from docstrings and the registry, become
the sources of Sphinx. A warning is an error.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

import reference
import tree
from sphinx.application import Sphinx

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python docs/site", description="Build the documentation site.")
    parser.add_argument("folder", nargs="?", type=Path, default=tree.ROOT / "runs" / "site", help="where to write")
    folder = parser.parse_args().folder.resolve()
    if folder.exists() and not folder.is_dir():
        parser.error(f"{folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / "searchindex.js").exists():
        parser.error(f"{folder} holds something that is no site; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=folder.parent) as work:
        source, built, said = Path(work, "source"), Path(work, "built"), io.StringIO()
        stage(source)
        site = Sphinx(source, HERE, built, Path(work, "doctrees"), "html", status=None, warning=said)
        site.build(force_all=True)
        warnings = re.sub(r"\x1b\[[\d;]*m", "", said.getvalue())
        for page, path in tree.pages().items():  # a warning names the file to mend
            warnings = warnings.replace(f"{source}/{page}.md", path.relative_to(tree.ROOT).as_posix())
        if warnings:
            print(warnings, end="", file=sys.stderr)
            return 1
        if folder.exists():  # only a site that is whole takes the place of the last one
            folder.rename(Path(work, "last"))
        built.rename(folder)
    print(f"{len(list(folder.rglob('*.html')))} pages: {folder / 'index.html'}")
    return 0


def stage(source: Path) -> None:
    """Write the sources of every page, and the pictures they show."""
    texts = {page: path.read_text(encoding="utf-8") for page, path in tree.pages().items()}
    generated, names = reference.pages(texts)
    pictures = set()
    for page, text in {**texts, **generated}.items():
        file = source / f"{page}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        text, found = tree.with_pictures(text, page)
        file.write_text(text, encoding="utf-8")
        pictures |= found
    for picture in pictures:
        (source / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree.ROOT / picture, source / picture)
    shutil.copyfile(tree.ROOT / "README.md", source / "README.txt")  # of which the front page shows a part
    reference.write_names(names, source / "names.json")


if __name__ == "__main__":
    sys.exit(main())
