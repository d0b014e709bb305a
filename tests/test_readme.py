"""The README keeps its promises: its Python runs as it stands, and gives what the page says."""

from __future__ import annotations

import re

import pytest
from pages import blocks, run_page
from wheels import ROOT

from lamella import cli

README = ROOT / "README.md"
TEXT = README.read_text()


@pytest.mark.smoke
def test_it_runs_from_top_to_bottom(request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    python = [block for language, block in blocks(README) if language == "python"]
    assert len(python) >= 5
    run_page(README, lambda: request.getfixturevalue("environment"))
    printed = capsys.readouterr().out
    accuracy = float(re.search(r"'accuracy': ([\d.]+)", printed)[1])  # type: ignore[index]
    assert accuracy > 0.85
    assert {path.name for path in tmp_path.iterdir()} == {"digits.lamella", "digits.onnx", "digits-step"}
    assert cli.main(["verify", "digits.onnx"]) == 0

    (report,) = [block for language, block in blocks(README) if language == "text"]
    shown = re.sub(r"\d\.\de-\d\d", "...", printed)
    assert all(re.sub(r"\d\.\de-\d\d", "...", line).rstrip() in shown for line in report.splitlines())


def test_a_layer_takes_thirty_lines():
    (layer,) = [block for language, block in blocks(README) if language == "python" and "lm.Layer" in block]
    assert "check_layer" in layer
    assert "A layer takes 30 lines" in TEXT
    assert len([line for line in layer.splitlines() if line.strip()]) <= 30


def test_the_picture_is_small():
    (picture,) = re.findall(r"!\[[^\]]+\]\(([\w/.-]+)\)", TEXT)
    assert (ROOT / picture).stat().st_size < 60_000
