"""The reference of layers: every built-in layer is documented whole, and the page in docs/ says what the code says."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
from wheels import ROOT

from lamella import cli, registry
from lamella.cli.reference import Docstring, markdown, paragraphs, table
from lamella.testing.package import find_package

LAYERS = {entry.name: entry.object for entry in registry.entries("layers") if entry.plugin.distribution == "lamella"}


def test_the_page_is_what_docstrings_and_specimens_say_now():
    written = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    now = markdown([find_package("lamella")], ROOT / "docs")
    assert written == now, "docs/layers.md is old; run: lamella layers lamella --markdown docs/layers.md"


@pytest.mark.parametrize("layer", LAYERS.values(), ids=lambda layer: layer.__name__)
def test_every_layer_is_documented_whole(layer):
    said = Docstring.of(layer)
    formulas = re.findall(r"``([^`]+)``", f"{said.sentence} {said.more}")
    assert any("=" in formula for formula in formulas), "a formula"
    assert list(said.entries("Arguments")) == list(layer._signature.parameters), "each argument, in order"
    assert "->" in said.sections["Shapes"]
    assert "https://" in said.sections["Source"]
    assert said.entries("Raises"), "errors"
    assert layer.__name__ in said.example
    assert said.example.splitlines()[-1] in inspect.getsource(layer), "plain text in the source"
    assert [one for one in registry.specimens() if type(one.subject) is layer], "specimens"
    assert all(one.docs.startswith("https://") for one in registry.specimens() if type(one.subject) is layer)


LIMIT = 3.0


def gleam(x, y=1.0, power=2):
    """Gleams.

    Arguments:
        x, y: how much
            light.
        power: of two.

    Beyond `LIMIT` it is dark.

    Attributes:
        hue: none.

    Raises:
        ValueError: too little.
        TypeError: if it is none.

    Nothing else.

    >>> import re
    >>> gleam(LIMIT, power=1), Path("a") == Path("a")
    (3.0, True)
    """
    return x**power


def test_everything_a_docstring_says_has_its_place():
    assert paragraphs(gleam, "lm.gleam", ["a fact", "another"]) == [
        "Gleams.",
        "**`lm.gleam(x, y=1.0, power=2)`**",
        "a fact · another",
        table(
            ("argument", "default", "meaning"),
            [("`x`, `y`", "—, `1.0`", "how much light."), ("`power`", "`2`", "of two.")],
        ),
        "Beyond `LIMIT` it is dark.",
        table(("attribute", "meaning"), [("`hue`", "none.")]),
        "**Raises**:\n\n- `ValueError`: too little.\n- `TypeError` if it is none.",
        "Nothing else.",
        f"```pycon\n>>> from {__name__} import gleam, LIMIT\n>>> from pathlib import Path\n"
        f'>>> import re\n>>> gleam(LIMIT, power=1), Path("a") == Path("a")\n(3.0, True)\n```',
    ]


def test_an_example_that_cannot_be_read_is_shown_as_it_is():
    def broken():
        """Breaks.

        >>> 1 +
        """

    assert paragraphs(broken, "")[-1] == "```pycon\n>>> 1 +\n```"


SHINE = '''
"""Things that shine."""

import lamella as lm
from lamella.testing import Specimen


class Shine(lm.Layer):
    """Makes numbers brighter: ``y = x + light``; see `Dense` and `Glow` | `Gleam`.

    Arguments:
        light: how much, in [0, 1]
            or more | less.

    Shapes: (N, ...) -> the same. Parameters: none.

    Source: https://example.org/a_b; https://example.org/c.

    >>> Shine(1.0)
    Shine(1.0)
    """

    def __init__(self, light, *, color="red"):
        self.light = light

    def forward_pass(self, ctx, x):
        return x + self.light

    def backward_pass(self, ctx, dy):
        return dy


class Glow(lm.Layer):
    pass


@lm.hookimpl
def lamella_layers():
    return {"shine": Shine, "glow": Glow}


@lm.hookimpl
def lamella_specimens():
    return [Specimen(Shine(0.5), (lm.ArraySpec(("N", "T"), "float32"),), ("Add",))]
'''


@pytest.fixture
def shining(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("pyproject.toml").touch()
    Path("shining.py").write_text(SHINE)
    Path("docs").mkdir()
    yield
    for name in ("shining", "dull"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("shining")
def test_packages_of_others_get_a_page_too():
    assert cli.main(["layers", "shining", "--markdown", "docs/layers.md"]) == 0
    page = Path("docs/layers.md").read_text(encoding="utf-8")
    for part in (
        "| [Shining layers](#shining-layers) | [`Glow`](#glow), [`Shine`](#shine) |",
        "## Shining layers\n\nThings that shine.\n\n### Glow\n\n**`Glow()`**\n\n"
        "Registered as `glow` · [source](../shining.py)\n\n### Shine\n\nMakes numbers brighter: ``y = x + light``; "
        "see `Dense` and [`Glow`](#glow) | `Gleam`.\n\n**`Shine(light, *, color='red')`**\n\n"
        "Registered as `shine` · [source](../shining.py) · ONNX: [Add](https://onnx.ai/onnx/operators/onnx__Add.html)",
        "| `light` |  | how much, in [0, 1] or more \\| less. |",
        "**Shapes**: (N, ...) -> the same.\n\n**Parameters**: none.",
        "**Source**: <https://example.org/a_b>; <https://example.org/c>.",
        "```pycon\n>>> from shining import Shine\n>>> Shine(1.0)\nShine(1.0)\n```",
        "| `Shine(0.5)` | (N, T) → (N, T) | Add |",
    ):
        assert part in page


@pytest.mark.usefixtures("shining")
def test_a_package_may_be_listed_alone(capsys):
    assert cli.main(["layers", "lamella_layers.dense"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.startswith("name ")
    assert [row.split()[0] for row in rows] == ["dense"]
    assert cli.main(["layers", "nowhere"]) == 2
    assert "'nowhere': no installed distribution, package or module" in capsys.readouterr().err


@pytest.mark.usefixtures("shining")
def test_what_is_missing_on_the_page_is_told(capsys):
    Path("dull.py").write_text(SHINE.replace('("Add",))]', '("Add",)), 7]'))
    assert cli.main(["layers", "dull", "--markdown", "docs/layers.md"]) == 1
    assert "### Shine" in Path("docs/layers.md").read_text(encoding="utf-8")
    assert "lamella: module dull: lamella_specimens()" in capsys.readouterr().err
    assert cli.main(["layers", "shining", "--markdown", "nowhere/layers.md"]) == 2
    assert capsys.readouterr().err == "lamella: nowhere/layers.md: No such file or directory\n"
