"""Every example runs, in a reduced form, and does what it says."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_custom_layer(capsys):
    accuracy = runpy.run_path(str(EXAMPLES / "custom_layer.py"))["main"](epochs=3)
    assert accuracy > 0.8
    text = capsys.readouterr().out
    assert re.search(r"onnx +holds", text)
    assert "agrees" in text
