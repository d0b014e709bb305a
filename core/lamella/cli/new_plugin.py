"""``lamella new-plugin``: writes a distribution with one example of each hook, which passes its own tests at once."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.resources
import importlib.util
import keyword
import os
import re
import sys
import tempfile
from pathlib import Path

from lamella import registry
from lamella.cli.shell import python, quoted
from lamella.cli.wheel import wheel
from lamella.commands import Command
from lamella.errors import ArgumentError
from lamella.protocol.layer import LAYERS
from lamella.registry import snake_case
from lamella.terminal import aside
from lamella.version import __version__

__all__ = ["COMMAND", "KINDS", "create"]

_TEMPLATE = importlib.resources.files("lamella.cli") / "template"  # in a folder, or in a zip file
KINDS = (
    *("layers", "activations", "losses", "metrics", "optimizers"),
    *("schedules", "initializers", "backends", "commands", "laws"),
)
"""Of examples: each a module with its hooks, and a file of tests, which go together where an author deletes them."""

_FILES = {  # where each template goes
    "pyproject.toml": "pyproject.txt",
    "README.md": "readme.txt",
    "LICENSE": "license.txt",
    ".gitignore": "gitignore.txt",
    ".github/workflows/test.yml": "workflow.txt",
    "@package@/__init__.py": "package.txt",
    "@package@/py.typed": "typed.txt",
    **{f"@package@/{kind}.py": f"{kind}.txt" for kind in KINDS},
    **{f"tests/test_{kind}.py": f"test_{kind}.txt" for kind in KINDS},
}

_TAKEN = {
    "test.*": "pytest takes for tests",
    "build|dist": "git would leave out, as what tools build",
    "wheels": "is the folder of lamella's wheel",
    "con|prn|aux|nul|(com|lpt)[0-9]": "Windows keeps for a device",
}
"""Names that no package can have beside the other files, or on other systems, and why."""


def create(name: str, folder: str | Path = ".") -> str:
    """Write a distribution of that name into a new folder, whole or not at all, and return what to do next.

    The wheel of lamella itself goes along, so that the package can be tested where no index has lamella.

    Arguments:
        name: of the distribution, in any spelling: ``soft-gate``, ``lamella_soft_gate`` and ``SoftGate`` all hold a
            layer ``SoftGate``, registered as ``soft_gate``.
        folder: where the new folder goes.

    Raises:
        ArgumentError: if the name can't be one, or is taken, or there is no such folder.
        LamellaError: if lamella is not installed.
    """
    words = _words(name)
    target = Path(folder) / words["distribution"]
    if not target.parent.is_dir():
        raise ArgumentError(f"folder: expected one that exists, got {str(folder)!r}")
    if os.path.lexists(target):
        raise ArgumentError(f"{target} exists already; choose another name, or another place with --folder")
    for entry in LAYERS.entries():  # which imports every plugin
        if entry.name == words["name"]:
            raise ArgumentError(
                f"name: {name!r} would name a layer {entry.name!r}, which {entry.plugin.origin} has; choose another"
            )
    own_name, own = wheel()
    words["wheel"] = f"wheels/{own_name}"
    with tempfile.TemporaryDirectory(prefix=".new-plugin-", dir=target.parent) as waiting:
        root = Path(waiting) / target.name
        for path, template in _FILES.items():
            file = root / _fill(path, words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_fill((_TEMPLATE / template).read_text("utf-8"), words), "utf-8", newline="\n")
        (root / "wheels").mkdir()
        (root / "wheels" / own_name).write_bytes(own)
        root.rename(target)
    install, test = f'{python()} -m pip install --editable ".[test]"', f"{python()} -m pytest"
    return (
        f"{target}: a layer {words['class']} in {words['package']}/layers.py,\n"
        "an example of everything else that a plugin can give, and tests. Keep what you need. Next:\n\n"
        f"    cd {quoted(str(target))}\n    {install}\n    {test}\n"
    )


def _fill(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _words(name: str) -> dict[str, str]:
    """The names of distribution, package, class and layer."""
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ArgumentError(
            f"name: expected letters, digits and '-', with a letter first, such as 'lamella-swish', got {name!r}"
        )
    distribution = registry.canonical(re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", name))
    package = distribution.replace("-", "_")
    stem = re.sub(r"^lamella[-_.]*(?=.)", "", name, flags=re.IGNORECASE)
    cls = "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_.]+", stem))
    for what, word in (("class", cls), ("module", snake_case(cls)), ("package", package)):
        if not word.isidentifier() or keyword.iskeyword(word):
            raise ArgumentError(
                f"name: {name!r} would name a {what} {word!r}, which Python does not allow; choose another"
            )
    for taken, why in _TAKEN.items():
        if re.fullmatch(taken, package):
            raise ArgumentError(
                f"name: {name!r} would name a package {package!r}, which {why}; choose another, such as "
                f"'lamella-{distribution}'"
            )
    if package in sys.stdlib_module_names or importlib.util.find_spec(package):
        raise ArgumentError(
            f"name: {name!r} would name a package {package!r}, but there is one already; choose another"
        )
    if any(importlib.metadata.Distribution.discover(name=distribution)):  # its package may be of another name
        raise ArgumentError(
            f"name: {name!r} would take the place of the distribution {distribution!r}, which is installed; choose "
            "another"
        )
    year = str(datetime.date.today().year)
    words = {"distribution": distribution, "package": package, "class": cls, "name": snake_case(cls)}
    words["command"] = words["name"].replace("_", "-")
    return {**words, "version": ".".join(__version__.split(".")[:2]), "year": year}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the distribution and its folder, such as lamella-swish")
    parser.add_argument("--folder", default=".", metavar="DIR", help="where to put it; default: the current folder")


def _run(arguments: argparse.Namespace) -> int:
    with aside():
        told = create(arguments.name, arguments.folder)
    print(told)
    return 0


COMMAND = Command("write a package for plugins of your own, ready to test", _configure, _run)
