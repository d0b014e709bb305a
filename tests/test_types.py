"""Types: mypy and pyright, as strict as they get, understand what users and authors write. `make lint` runs this."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typed import user

from lamella.cli.new_plugin import create

PYRIGHT = shutil.which("pyright") or shutil.which("pyright", path=Path(sys.executable).parent)
ROOT = Path(__file__).parent.parent
SOURCES = [str(ROOT / folder) for folder in ("core", "plugins", "exporters")]


@pytest.fixture
def scripts(tmp_path):
    """A folder of what is checked: the scripts beside this file, and a package that `lamella new-plugin` wrote."""
    shutil.copytree(Path(user.__file__).parent, tmp_path / "typed", ignore=shutil.ignore_patterns("__pycache__"))
    create("lamella-soft-gate", tmp_path)
    return tmp_path


def run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy comes with lamella[dev]; make lint runs this")
def test_mypy(scripts):
    path = os.pathsep.join([*SOURCES, "lamella-soft-gate"])
    options = ("--strict", "--follow-imports=silent", "--config-file=", "--cache-dir=cache", "--python-version=3.11")
    done = run(sys.executable, "-m", "mypy", *options, "typed", "lamella-soft-gate", folder=scripts, MYPYPATH=path)
    assert done.stdout.startswith("Success: no issues found in 23 source files"), done.stdout + done.stderr


@pytest.mark.skipif(not PYRIGHT, reason="pyright comes with lamella[dev]; make lint runs this")
def test_pyright(scripts):
    if run(str(PYRIGHT), "--version", folder=scripts).returncode:
        pytest.skip("pyright can't start: it fetches itself with npm when it is called first")
    settings = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "pythonVersion": "3.11",
        "extraPaths": [*SOURCES, "lamella-soft-gate"],
    }
    (scripts / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run(str(PYRIGHT), "--pythonpath", sys.executable, "typed", "lamella-soft-gate", folder=scripts)
    assert "\n0 errors, 0 warnings" in f"\n{done.stdout}", done.stdout + done.stderr


def test_the_script_of_a_user_runs(tmp_path, capsys):
    user.main(tmp_path)
    assert (tmp_path / "digits.onnx").exists()
