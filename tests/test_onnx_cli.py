"""The command line on streams that are closed, or that take ASCII only."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import lamella as lm
from lamella_layers import Dense
from lamella_onnx import export


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
@pytest.mark.parametrize(("command", "status"), [("layers", 0), ("verify nowhere.onnx", 2)])
def test_closed_streams_are_no_error(command, status, closed):
    done = subprocess.run(f"{sys.executable} -m lamella {command} {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "nowhere" not in done.stdout


def test_a_pipe_that_takes_ascii_only_gets_ascii(tmp_path):
    path = (
        tmp_path / "a long name, too long for a line of a hundred and twenty characters with its folder, and an ü.onnx"
    )
    export(lm.Sequential([Dense(2)], input_shape=(3,)), path)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for arguments in (["verify", str(path)], ["layers"]):
        command = [sys.executable, "-m", "lamella", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
        if arguments[0] == "verify":
            assert done.stdout.startswith(f"{path}: opset 21".replace("ü", "\\xfc"))
            assert "----" in done.stdout
