"""Build the documentation site: ``python docs/site [FOLDER]``, by default into ``runs/site``.

The pages of the repository and those of the reference, which are written here from docstrings and the registry, become
the sources of Sphinx. A warning is an error.
"""

from __future__ import annotations

import argparse
import io
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
    folder = parser.parse_args().folder.absolute()
    with tempfile.TemporaryDirectory() as work:
        source = Path(work, "source")
        stage(source)
        said = io.StringIO()
        shutil.rmtree(folder, ignore_errors=True)
        site = Sphinx(
            source, HERE, folder, Path(work, "doctrees"), "html", status=None, warning=said, exception_on_warning=False
        )
        site.build(force_all=True)
        for page, path in tree.pages().items():  # a warning names the file to mend
            said = io.StringIO(said.getvalue().replace(f"{source}/{page}.md", str(path.relative_to(tree.ROOT))))
    (folder / ".buildinfo").unlink()  # for a next build into the same folder; each begins anew
    if warnings := said.getvalue():
        print(warnings, end="", file=sys.stderr)
        return 1
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
