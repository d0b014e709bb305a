"""What can be typed into the shell from which this program was started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["program", "python", "quoted"]


def python() -> str:
    """Return the command that starts the Python that runs."""
    return next(filter(_is_here, ("python", "python3")), None) or quoted(sys.executable, runs=True)


def program() -> str:
    """Return the command that starts ``lamella`` with the Python that runs."""
    if _is_here("lamella"):
        return "lamella"
    if Path(sys.argv[0]).stem == "lamella":  # such as .venv/bin/lamella
        return quoted(sys.argv[0], runs=True)
    return f"{python()} -m lamella"


def quoted(path: str, *, runs: bool = False) -> str:
    """Return a path as the system's shell takes it; PowerShell ``runs`` what is quoted only behind ``&``."""
    if os.name != "nt":
        return shlex.quote(path)
    text = f'"{path}"' if re.search(r"[^\w.:\\/~+-]", path) else path
    return f"& {text}" if runs and text != path else text


def _is_here(command: str) -> bool:
    """Whether the shell finds a command, and that of the Python that runs."""
    found = shutil.which(command)
    if found is None or not sys.executable:
        return False
    return os.path.samefile(os.path.dirname(os.path.abspath(found)), os.path.dirname(sys.executable))
