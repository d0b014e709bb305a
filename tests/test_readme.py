"""The README tells the truth: its Python runs as it stands, and what it lists is all there is, and is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lamella as lm
from lamella import cli, registry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "readme"}
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    accuracy = float(re.search(r"'accuracy': ([\d.]+)", printed)[1])  # type: ignore[index]
    assert accuracy > 0.85
    assert {path.name for path in tmp_path.iterdir()} == {"digits.lamella", "digits.onnx"}
    assert cli.main(["verify", "digits.onnx"]) == 0


@pytest.mark.parametrize(
    "kind", ["activations", "losses", "optimizers", "schedules", "metrics", "initializers", "layers"]
)
def test_tables_name_what_is_registered(kind):
    (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", TEXT, re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", row))
    classes = {cls.__name__ for cls in lm.layers().values()}
    assert told == (classes if kind == "layers" else {entry.name for entry in registry.entries(kind)})


def test_commands_exist():
    make = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", make, re.MULTILINE) for name in re.findall(r"^make (\w+)", TEXT, re.MULTILINE))
    told = set(re.findall(r"`lamella ([\w-]+)", TEXT)) - {"--version"}
    assert told == {entry.name for entry in registry.entries("commands")} | set(cli.OWN)


def test_the_tree_is_there():
    paths = re.findall(r"^(\w+/[\w/]*) ", TEXT, re.MULTILINE)
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
