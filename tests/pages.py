"""Markdown pages as programs: every snippet of a page runs, from top to bottom.

Python blocks of a page run in order, in one namespace; each block of examples with ``>>>`` runs by itself. A block that
starts with the name of a file, ``# radial_basis.py``, is also added to that file. What is said to print ``# about 0.9``
is about that. Commands of lamella run; of ``make`` and ``pytest`` it is checked that targets and files exist. A page
that installs packages gets an environment of its own, where ``pip install --editable`` stands for a wheel.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from wheels import ROOT, Environment, run

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of every block of code on a page."""
    for _, language, text in BLOCK.findall(page.read_text()):
        yield language, textwrap.dedent(text)


def run_page(page: Path, environment: Callable[[], Environment]) -> None:
    """Run every snippet in the current folder; ``environment`` makes a fresh one for pages that install packages."""
    with contextlib.ExitStack() as servers:
        _run_page(page, environment, servers)


def _run_page(page: Path, environment: Callable[[], Environment], servers: contextlib.ExitStack) -> None:
    port = ""  # of the server that the page has started; it says 8000
    fresh = environment() if "pip install --editable" in page.read_text() else None
    scope: dict[str, object] = {"__name__": page.stem}
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), scope)
            for told, about in re.findall(r"^print\((.*)\)  # about ([\d.]+)$", block, re.MULTILINE):
                assert abs(eval(told, scope) - float(about)) < 0.03, f"{page.name}: {told} is not about {about}"
            if file := re.match(r"# (\w+\.py)", block):
                with open(file[1], "a") as module:
                    module.write(block)
        elif language == "pycon":
            examples = doctest.DocTestParser().get_doctest(block, {}, page.name, str(page), 0)
            said: list[str] = []
            assert not doctest.DocTestRunner().run(examples, out=said.append).failed, "".join(said)
        elif language == "toml":
            tomllib.loads(block)
        elif language == "html":
            pass  # tests/test_browser.py opens it
        elif language == "sh":
            for line in block.splitlines():
                words = shlex.split(line.replace("localhost:8000", f"localhost:{port}"), comments=True)
                if words[:2] == ["lamella", "serve"]:
                    port = servers.enter_context(serving(*words[2:]))
                else:
                    _command(words, fresh)
        else:
            assert language == "text", f"{page.name}: what is to be done with a block of {language!r}?"


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run ``lamella serve`` while the block runs, and give its port, a free one."""
    command = [sys.executable, "-m", "lamella", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            for line in process.stdout or ():
                said += line
                if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                raise AssertionError(f"{' '.join(command)} ended: {said}")
            yield found[1]
        finally:
            process.terminate()


def _command(words: list[str], environment: Environment | None) -> None:
    if words:
        words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    match words:
        case []:
            pass
        case ["make", target]:
            assert target in TARGETS, f"make has no target {target!r}"
        case ["cd", folder]:
            os.chdir(folder)
        case ["python", "-m", "pip", "install", "--editable", _] if environment:
            environment.install(Path.cwd())
        case ["python", "-m", "pip", "install", one] if one == "." or (one[:2] == ".[" and one[2:-1] in EXTRAS):
            pass  # lamella is installed
        case ["curl", url, *rest] if rest[:1] in ([], ["--data"]):
            content = Path(rest[1].removeprefix("@")).read_bytes() if rest else None
            urllib.request.urlopen(url, content, timeout=10).close()  # raises for a refusal
        case ["python", "-m", "pytest", *arguments] if paths := [one for one in arguments if one.endswith(".py")]:
            assert [path for path in paths if not (ROOT / path).exists()] == []
        case ["lamella", *_]:
            run("-m", *words, folder=Path.cwd(), python=environment.python if environment else sys.executable)
        case ["python", *rest] if environment:
            environment.run(*rest, folder=Path.cwd())
        case _:
            raise AssertionError(f"what is to be done with {words}?")
