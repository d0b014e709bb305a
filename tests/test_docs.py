"""Every page in docs/ tells the truth: its Python runs, its commands succeed, its settings parse, its links lead on.

Python blocks of a page run in order; each block of examples with ``>>>`` runs by itself. A block that starts with the
name of a file, ``# radial_basis.py``, is also added to that file. Commands run in an environment of their own, where
``pip install --editable`` stands for a wheel.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from wheels import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run_from_top_to_bottom(page, environment, monkeypatch, capsys):
    monkeypatch.chdir(environment.folder)
    scope: dict[str, object] = {"__name__": page.stem}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(block, page.name, "exec"), scope)
            if file := re.match(r"# (\w+\.py)", block):
                with open(file[1], "a") as module:
                    module.write(block)
        elif language == "pycon":
            examples = doctest.DocTestParser().get_doctest(block, {}, page.name, str(page), 0)
            assert not doctest.DocTestRunner().run(examples).failed, capsys.readouterr().out
        elif language == "toml":
            tomllib.loads(block)
        elif language == "sh":
            for line in block.splitlines():
                command(shlex.split(line), environment)
        else:
            assert language == "text", f"{page.name}: what is to be done with a block of {language!r}?"


def command(words, environment):
    match words:
        case ["lamella", *_]:
            environment.run("-m", *words, folder=Path.cwd())
        case ["cd", folder]:
            os.chdir(folder)
        case ["python", "-m", "pip", "install", "--editable", _]:
            environment.install(Path.cwd())
        case ["python", *rest]:
            environment.run(*rest, folder=Path.cwd())
        case _:
            raise AssertionError(f"what is to be done with {words}?")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = [link for link in links if link not in anchors]
    paths = re.findall(r"`((?:core|plugins|exporters|tests|docs|examples)/[\w/.-]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []
